"""A hub on loopback: what huggingface_hub and datasets ask of one, answered from a directory.

<root>/models/<owner>/<name>/ and <root>/datasets/<owner>/<name>/ are repositories, at whatever commit is asked for.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40  # of a branch


class Hub:
    """`asked`: method and path of every request."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, list[str]()

    def repository(self, kind: str, name: str) -> Path:
        return self.root / kind / name


def commit_of(revision: str) -> str:
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT


def entry(path: Path, repository: Path) -> dict[str, Any]:
    found = {"type": "directory" if path.is_dir() else "file", "path": path.relative_to(repository).as_posix()}
    oid = hashlib.sha1(path.read_bytes() if path.is_file() else b"").hexdigest()
    return {**found, "oid": oid, "size": path.stat().st_size if path.is_file() else 0}


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.said = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self, body: bool = True) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+)/([^/]+)(?:/(.*))?)?", path):
            kind, name, what, revision, inside = found.groups()
            repository = self.hub.repository(kind, name)
            if not repository.is_dir():
                return self.send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
            return self.api(repository, kind, name, what, revision or "main", inside or "", body)
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            kind, name, revision, file = found.groups()
            repository = self.hub.repository("datasets" if kind else "models", name)
            return self.file(repository / file, commit_of(revision), body)
        return self.send(404, b"{}", body)

    def api(
        self, repository: Path, kind: str, name: str, what: str | None, revision: str, inside: str, body: bool
    ) -> None:
        files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
        if what == "tree":
            recursive = "recursive=true" in self.path.lower()
            there = repository / inside
            listed = sorted(there.rglob("*") if recursive else there.iterdir()) if there.is_dir() else []
            return self.json([entry(path, repository) for path in listed], body)
        if what == "paths-info":
            wanted = self.wanted()
            return self.json(
                [entry(repository / one, repository) for one in wanted if (repository / one).exists()], body
            )
        info = {
            "id": name,
            "sha": commit_of(revision),
            "siblings": [{"rfilename": path.relative_to(repository).as_posix()} for path in files],
            "tags": [],
            "private": False,
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
        }
        return self.json(info, body)

    def wanted(self) -> list[str]:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.said)["paths"]
            return [paths] if isinstance(paths, str) else list(paths)
        return [unquote(text.replace("+", " ")) for text in re.findall(r"paths=([^&]*)", self.said.decode())]

    def file(self, path: Path, commit: str, body: bool) -> None:
        if not path.is_file():
            return self.send(404, b"{}", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            content, status = content[start : end + 1], 206
        return self.send(status, content, body, headers)

    def json(self, found: Any, body: bool) -> None:
        self.send(200, json.dumps(found).encode(), body, {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, Hub]]:
    """The hub's address, and what it has been asked."""
    hub = Hub(root)
    handler = type("OneHandler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()

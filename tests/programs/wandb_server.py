"""The part of a W&B server that decides which steps of a run are sent: `with Server() as server`, on the loopback.

It keeps the lines of history that the real client (wandb-core) uploads, by line number, and tells it of them when it
resumes. Which requests there are, and what the client reads of the answers, was found by watching wandb 0.31. Whatever
else the client asks gets an empty answer, which it takes.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote


class Server:
    """`steps` and `values` are what it has of each run, in the order of its lines; `about` what it was told of it, and
    `endings` how each of its clients ended: "preempted" where it said so before, and the exit code; `views` the
    workspaces that were saved, `files` what was uploaded beside the history, by name."""

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.endings: dict[str, list[str | int]] = {}
        self.views: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.connections: list[socket.socket] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of_runs": self}))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        for connection in self.connections:  # which clients keep
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def steps(self, run: str) -> list[int]:
        return [line["_step"] for _, line in sorted(self.history.get(run, {}).items())]

    def values(self, run: str, name: str) -> list[Any]:
        return [line[name] for _, line in sorted(self.history.get(run, {}).items())]

    def answer(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "project", "name": "pspo", "entity": {"id": "entity", "name": "someone"}}
        if name == "UpsertBucket":
            run = asked["name"]
            known = run in self.about
            self.about.setdefault(run, {}).update({key: value for key, value in asked.items() if value is not None})
            lines = len(self.history.setdefault(run, {}))
            bucket = {"id": f"id-{run}", "name": run, "displayName": run, "project": project, "historyLineCount": lines}
            return {"upsertBucket": {"bucket": bucket, "inserted": not known}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self._bucket(asked["name"])}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{quote(file)}"} for file in asked["files"]]
            return {"createRunFiles": {"runID": f"id-{asked['run']}", "uploadHeaders": [], "files": files}}
        if name == "UpsertView2":
            self.views.append(asked)
            return {"upsertView": {"view": {"id": "view", "name": asked["name"]}, "inserted": True}}
        viewer = {"id": "user", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        if run not in self.about:
            return None
        lines = [json.dumps(line) for _, line in sorted(self.history[run].items())]
        counts = {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "summaryMetrics": "{}", "config": "{}"}
        return (
            {"id": f"id-{run}", "name": run, "displayName": run, "tags": [], "wandbConfig": '{"t": 1}'} | counts | tails
        )

    def take(self, run: str, sent: dict[str, Any]) -> None:
        """One upload of the client: lines of files, from a line number on, and at the end how it ends."""
        lines = (sent.get("files") or {}).get("wandb-history.jsonl")
        if lines:
            numbered = enumerate(lines["content"], start=lines["offset"])
            self.history[run].update({number: json.loads(line) for number, line in numbered})
        endings = self.endings.setdefault(run, [])
        if sent.get("preempting"):
            endings.append("preempted")
        if sent.get("complete"):
            endings.append(sent["exitcode"])


class _Handler(BaseHTTPRequestHandler):
    server_of_runs: Server
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        self.server_of_runs.connections.append(self.connection)
        with suppress(ConnectionError):  # of a client that was killed
            super().handle()

    def do_POST(self) -> None:
        asked = self._body()
        if self.path == "/graphql":
            query = json.loads(asked)
            named = re.search(r"(?:query|mutation)\s+(\w+)", query.get("query") or "")  # where some say it alone
            name = query.get("operationName") or (named[1] if named else "")
            data = self.server_of_runs.answer(name, query.get("variables") or {})
            self._reply({"data": data})
        else:
            if stream := re.fullmatch(r"/files/[^/]*/[^/]*/([^/]*)/file_stream", self.path):
                self.server_of_runs.take(stream[1], json.loads(asked))
            self._reply({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        self.server_of_runs.files[unquote(self.path).removeprefix("/upload/")] = self._body()
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def _body(self) -> bytes:
        whole = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            whole = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(whole) if self.headers.get("Content-Encoding") == "gzip" else whole

    def _reply(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

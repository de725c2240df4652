"""Files of one JSON line after another, written by several processes and cut by crashes. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def append(path: Path, said: Mapping[str, Any]) -> None:
    """Writes a line, which is on the disk when this returns. In one write, so that lines of two processes never mix; in
    place of a last line that a crash has cut, which nobody was told of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if (whole := _whole(path)) < file.tell():
            file.truncate(whole)
        file.write(json.dumps(said).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[str]:
    """The whole lines, without one that was cut; [] where there is no file."""
    if not path.exists():
        return []
    return path.read_bytes()[: _whole(path)].decode(errors="replace").splitlines()


def _whole(path: Path, block: int = 4096) -> int:
    """The size of a file up to the end of its last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - block)
            file.seek(start)
            if (at := file.read(end - start).rfind(b"\n")) >= 0:
                return start + at + 1
            end = start
    return 0


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Files that are complete or as they were. Imports the standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file complete or leaves it as it was; an OSError names it. Its directory has to be there: one that was
    removed is not made anew."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        flush(path.parent)
    except OSError as error:
        error.filename = str(path)  # a disk that is full does not say
        raise
    finally:
        aside.unlink(missing_ok=True)


def digest(files: Iterable[Path]) -> str:
    """Sixteen hex digits of the files' names and contents."""
    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def publish(fresh: Path, target: Path) -> None:
    """Flushes all of the directory `fresh` to the disk and renames it to `target`, in place of what is there."""
    for path in (*sorted(fresh.rglob("*")), fresh):
        flush(path)
    old = set_aside(target) if target.exists() else None
    fresh.rename(target)
    flush(target.parent)
    if old is not None:
        remove(old)


def set_aside(directory: Path) -> Path:
    """Renames it to a name that no glob for what is whole finds: a process that is killed while it removes it leaves it
    whole or hidden, not in part."""
    return directory.rename(directory.with_name(f".{directory.name}.old-{os.getpid()}"))


def remove(path: Path) -> None:
    """A directory or whatever has its name, as far as it can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

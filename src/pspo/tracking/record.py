"""metrics.jsonl: one line a step, on the disk before the step counts as done. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pspo.errors import PspoError
from pspo.files import flush, write_whole


class Record:
    """metrics.jsonl of a run that begins (`after` None: an earlier one is dropped), or goes on after step `after`.

    Where it goes on, lines of later steps are dropped, which will be done again, and a last line that a kill tore.
    Raises PspoError where a step up to `after` is missing or stands twice: such a record was not written by this run.
    """

    def __init__(self, path: Path, after: int | None) -> None:
        self.path = path
        try:
            self._file = self._open(after)
        except OSError as error:
            raise PspoError(f"{path} cannot be written: {error.strerror}") from error

    def _open(self, after: int | None) -> int:
        if after is not None:
            before, lines = _text(self.path), _kept(self.path, after)
            whole = "".join(f"{line}\n" for line in lines)
            if whole != before:
                write_whole(self.path, whole)
        truncate = os.O_TRUNC if after is None else 0
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | truncate, 0o666)
        flush(self.path.parent)  # else a new file could be lost whose lines are not
        return descriptor

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes a line and waits until it is on the disk. Raises PspoError where it cannot be; what is torn by that is
        dropped by the next start."""
        left = memoryview((json.dumps(line) + "\n").encode())
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            raise PspoError(f"{self.path} cannot be written: {error.strerror}") from error
        if not self._has_its_name():
            raise PspoError(f"{self.path} was removed or replaced while the run was writing to it")

    def _has_its_name(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines, in the order of steps."""
        return lines_of(self.path)

    def close(self) -> None:
        os.close(self._file)  # nothing is left to write


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, which a process may be writing to; {"step": k, metric: number or None}.

    Raises PspoError where one is something else.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            if (found := _object(line)) is None:
                raise PspoError(f"{path} line {number} is no object of a step")
            yield found


def _text(path: Path) -> str:
    """Errors of decoding are left to `_kept`: a line with one is no JSON either."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _kept(path: Path, after: int) -> list[str]:
    """The lines of steps 0 to `after`, as they stand."""
    remedy = "put the file back as the run wrote it, or remove the run's directory to begin anew"
    *whole, torn = _text(path).split("\n")
    kept: list[str] = []
    for number, line in enumerate([*whole, torn] if _step(torn) is not None else whole, start=1):
        step = _step(line)
        if step is None and len(kept) <= after:
            raise PspoError(f"{path} line {number} is no object of a step (steps 0 to {after} are done): {remedy}")
        if step is None or step > after:
            continue
        if step < len(kept):
            raise PspoError(f"{path} has step {step} twice or out of order, at line {number}: {remedy}")
        if step > len(kept):
            break
        kept.append(line)
    if len(kept) <= after:
        raise PspoError(f"{path} lacks step {len(kept)}, and steps 0 to {after} are done: {remedy}")
    return kept


def _step(line: str) -> int | None:
    found = _object(line)
    return None if found is None else int(found["step"])


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    step = found.get("step") if isinstance(found, dict) else None
    return found if type(step) is int and step >= 0 else None

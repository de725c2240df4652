"""The directory of a run, or of a warm start in the making, held by one process at a time.

Imports no torch: what cannot be is told at once.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pspo.config import SftConfig, TrainConfig, load_yaml, to_yaml
from pspo.config.compose import NOT_IN_RUN_ID, config_hash
from pspo.errors import BusyError, ConfigError, PspoError
from pspo.files import write_whole

ASIDE = re.compile(r"\.(DONE|.+\.(yaml|json|jsonl))\.\d+")
"""What a process that was killed leaves of a file that it was writing (pspo.files.write_whole)."""
CHECKPOINT = r"step-(0|[1-9][0-9]*)"
"""The name of one (pspo.checkpoint)."""
PATIENCE_S = 20.0  # a process that was killed, or whose job was sent back to the queue, may take a moment to be gone


@contextmanager
def claimed(
    run_dir: Path, cfg: TrainConfig | SftConfig, patience: float = PATIENCE_S, apart: Sequence[str] = NOT_IN_RUN_ID
) -> Iterator[bool]:
    """Holds a run directory for one process; yields True where it already holds this run, complete.

    `apart` are the settings that may be others than before: no number depends on them. Otherwise it is this run's from
    here on, with what an earlier attempt has left, from which it goes on. Raises ConfigError where it holds another run
    or something else, PspoError where another process is at work in it or it cannot be written.
    """
    written = run_dir / "config.yaml"
    try:
        # What is hidden is a lock, or a file that a process was killed over.
        if run_dir.exists() and not written.exists() and any(p.name[0] != "." for p in run_dir.iterdir()):
            raise ConfigError("run_dir", run_dir, "is not empty and holds no run; name another directory")
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / ".lock", "a")  # noqa: SIM115  closed below, after the run
    except OSError as error:
        raise PspoError(f"run_dir={run_dir} cannot be written: {error.strerror}") from error
    with lock:
        if not locked(lock, patience):
            raise BusyError(f"another process is at work in run_dir={run_dir}")
        if written.exists():
            try:
                before = load_yaml(written, type(cfg), to_yaml(cfg), apart)
            except ConfigError as error:
                allowed = f"its config.yaml is not one of this version ({error}); name another directory"
                raise ConfigError("run_dir", run_dir, allowed) from error
            if config_hash(before, apart) != config_hash(cfg, apart):
                allowed = "holds a run with other settings (its config.yaml); name another directory"
                raise ConfigError("run_dir", run_dir, allowed)
            if (run_dir / "DONE").exists():
                print(f"{run_dir} is complete", file=sys.stderr)
                yield True
                return
        for left in (*run_dir.glob(".*"), *run_dir.glob("eval/.*")):
            if ASIDE.fullmatch(left.name):
                left.unlink()
        try:
            write_whole(written, to_yaml(cfg))
        except OSError as error:
            raise PspoError(f"{written} cannot be written: {error.strerror}") from error
        yield False


class Place:
    """A run's directory, whatever becomes of its name. A context manager; made by every rank once the directory is
    claimed. Raises PspoError where it is not here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            shared = "ranks on several machines need it on a disk they share"
            raise PspoError(f"run_dir={path} is not here ({error.strerror}): {shared}") from error

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)

    def check(self) -> None:
        """Before anything is written: what has the directory's name now may be another run's. Raises PspoError."""
        try:
            same = os.path.samestat(os.fstat(self._directory), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            raise PspoError(f"run_dir={self.path} was removed or renamed while the run was writing to it")


def locked(lock: IO[str], patience: float) -> bool:
    """Takes the lock; False where somebody else holds it for `patience` seconds."""
    for waited in range(int(patience) + 1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not waited and patience:
                print(f"pspo: {lock.name} is held by another process; waiting {patience:g} s for it", file=sys.stderr)
            time.sleep(min(1.0, patience))
    return False

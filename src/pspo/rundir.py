"""The directory of a run, held by one process at a time. Imports no torch: what cannot be is told at once."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pspo.config import TrainConfig, load_yaml
from pspo.config.compose import NOT_IN_RUN_ID, config_hash
from pspo.errors import ConfigError, PspoError


@contextmanager
def claimed(run_dir: Path, cfg: TrainConfig) -> Iterator[bool]:
    """Holds a run directory for one process; yields True where it already holds this run, complete.

    Otherwise it is cleared of what an earlier attempt left. Raises ConfigError where it holds another run or something
    else, PspoError where another process is at work in it or it cannot be written.
    """
    written = run_dir / "config.yaml"
    try:
        if run_dir.exists() and not written.exists() and any(p.name != ".lock" for p in run_dir.iterdir()):
            raise ConfigError("run_dir", run_dir, "is not empty and holds no run; name another directory")
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / ".lock", "a")  # noqa: SIM115  closed below, after the run
    except OSError as error:
        raise PspoError(f"run_dir={run_dir} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PspoError(f"another process is at work in run_dir={run_dir}") from None
        if written.exists():
            try:
                before = load_yaml(written, TrainConfig)
            except ConfigError as error:
                allowed = f"its config.yaml is not one of this version ({error}); name another directory"
                raise ConfigError("run_dir", run_dir, allowed) from error
            if config_hash(before, NOT_IN_RUN_ID) != config_hash(cfg, NOT_IN_RUN_ID):
                allowed = "holds a run with other settings (its config.yaml); name another directory"
                raise ConfigError("run_dir", run_dir, allowed)
            if (run_dir / "DONE").exists():
                print(f"{run_dir} is complete", file=sys.stderr)
                yield True
                return
            for name in ("checkpoints", "eval", "nonfinite"):
                shutil.rmtree(run_dir / name, ignore_errors=True)
            (run_dir / "summary.json").unlink(missing_ok=True)
        yield False

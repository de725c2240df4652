"""One start of a training run that is to be disturbed: watched through its files, stopped at a moment, looked at dead.

Moments are aimed by what appears in the run's directory, polled every millisecond:

    begun      it goes on from a checkpoint, or writes the first line
    aside      a file is being written whole (under a hidden name)
    line       metrics.jsonl has grown
    writing    a checkpoint is begun
    saved      a checkpoint has got its name
    removing   what is no longer kept goes
    part       a chunk of an evaluation is saved
    graded     an evaluation, or its summary, has got its name
    summary    summary.json is being written
    done       DONE is there

Imports psutil and the standard library.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

MARK = "PSPO_CHAOS"
"""An environment variable that every process of a start inherits, wherever it goes: how survivors are found."""
POLL_S, SLOW_S = 0.001, 0.02
GONE_S = 10.0
"""For what a start has started to be gone, once it is."""

Identity = tuple[int, int]
"""Number and last change of a directory."""


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after the `count`-th time that `event` is seen; event "start" is the start itself."""

    event: str
    count: int
    delay: float

    def __str__(self) -> str:
        if self.event in ("start", "begun"):
            return f"{self.event} + {self.delay:.2f} s"
        return f"{self.event} no. {self.count} + {1000 * self.delay:.0f} ms"


@dataclass(frozen=True)
class Ended:
    """status    of the process, as subprocess gives it
    hit       it was stopped at its moment; False where it ended before
    begun     it got as far as its first step: what came before is start-up
    sent_at   the last step on record when the signal was sent, 0 in the start-up; None where none was sent
    seconds   from the start to the end, and to "begun"
    """

    status: int
    hit: bool
    begun: bool
    seconds: float
    set_up: float
    said: str
    survivors: tuple[int, ...]
    sent_at: int | None = None


class Watch:
    """Counts events in a run's directory since it was made."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.counts = run_dir, Counter[str]()
        self._seen, self._size = self._look(), self._size_of_record()

    def poll(self) -> None:
        now, size = self._look(), self._size_of_record()
        self.counts.update(event for event, *_ in now - self._seen)
        if size > self._size:  # a start may shorten it first
            self.counts["line"] += 1
        self._seen, self._size = self._seen | now, size

    def _size_of_record(self) -> int:
        try:
            return os.stat(self.run_dir / "metrics.jsonl").st_size
        except FileNotFoundError:  # not yet there, or replaced this moment
            return 0

    def _look(self) -> set[tuple[str, str, int]]:
        found = set()
        for entry in _entries(self.run_dir):
            if entry.name.startswith((".summary.json", "summary.json")):
                found.add(("summary", "", 0))
            elif entry.name == "DONE":
                found.add(("done", "", 0))
            elif entry.name[0] == "." and entry.name != ".lock":
                found.add(("aside", entry.name, 0))
        for entry in _entries(self.run_dir / "checkpoints"):
            hidden = "writing" if entry.name.endswith(".writing") else "removing"
            found.add((hidden if entry.name[0] == "." else "saved", entry.name, entry.inode()))
        for entry in _entries(self.run_dir / "eval"):
            if entry.name.endswith(".parts"):
                found |= {("part", part.path, 0) for part in _entries(Path(entry.path)) if part.name[0].isdigit()}
            elif entry.name[0] != ".":
                found.add(("graded", entry.name, entry.inode()))
        return found


def start(
    command: Sequence[str],
    run_dir: Path,
    log: Path,
    moment: Moment | None,
    number: signal.Signals,
    limit: float,
    quit_now: Callable[[], bool],
) -> Ended:
    """Runs the command in a process group of its own; sends signal `number` to the group at `moment` (None: never).

    `limit`: seconds after which it is killed, and TimeoutError raised. Nothing of it is left when this returns.
    """
    watch, mark, started = Watch(run_dir), f"{os.getpid()}-{time.monotonic_ns()}", time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", MARK: mark}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, process_group=0
        )
    watch.counts["start"] = 1
    set_up, due, sent_at = 0.0, float("inf"), None
    try:
        while process.poll() is None:
            watch.poll()
            now = time.monotonic() - started
            if not set_up and _has_begun(watch, log):
                set_up, watch.counts["begun"] = now, 1
            if moment is not None and due == float("inf") and watch.counts[moment.event] >= moment.count:
                due = now + moment.delay
            if now >= due and sent_at is None:
                os.killpg(process.pid, number)  # it is not reaped, so the group is there
                sent_at = last_step(run_dir) if set_up else 0
            if now > limit:
                raise TimeoutError(f"it has not ended after {limit:.0f} s")
            if quit_now():
                raise KeyboardInterrupt
            time.sleep(POLL_S if set_up or (moment and moment.event == "aside") else SLOW_S)
        seconds = time.monotonic() - started
        begun, said = bool(set_up) or _has_begun(watch, log), log.read_text(errors="replace")
        hit = sent_at is not None and process.returncode != 0  # else it was through at that moment, or did not listen
        return Ended(process.returncode, hit, begun, seconds, set_up, said, tuple(_left_of(mark)), sent_at)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _has_begun(watch: Watch, log: Path) -> bool:
    return watch.counts["line"] > 0 or b"goes on after step" in log.read_bytes()


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _left_of(mark: str) -> list[int]:
    """Processes that still live GONE_S after their start has ended; they are killed."""
    deadline = time.monotonic() + GONE_S
    while left := [process for process in psutil.process_iter() if _is_marked(process, mark)]:
        if time.monotonic() > deadline:
            for process in left:
                process.kill()
            break
        time.sleep(0.05)
    return [process.pid for process in left]


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # gone, or of somebody else
        return False


# --- what lies on the disk once it is dead ----------------------------------------------------------------------------


def steps_saved(run_dir: Path) -> list[int]:
    """Of checkpoints."""
    found = (re.fullmatch(r"step-(\d+)", path.name) for path in (run_dir / "checkpoints").glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def last_line(run_dir: Path) -> int | None:
    """The step of the last line on record; None where there is none, -1 where the last line is torn."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text(errors="replace") if path.exists() else ""
    if not text:
        return None
    return int(json.loads(text.splitlines()[-1])["step"]) if text.endswith("\n") else -1


def last_step(run_dir: Path) -> int:
    """The step of the last whole line on record; 0 where there is none."""
    path = run_dir / "metrics.jsonl"
    whole = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


def place(run_dir: Path, ended: Ended, steps: int) -> str:
    """Where a stop fell, told from what is on the disk."""
    hidden = {event for event, *_ in Watch(run_dir)._look()}
    saved, line = steps_saved(run_dir), last_line(run_dir)
    if "done" in hidden:
        return "after DONE"
    if not ended.begun:
        return "start-up"
    if "writing" in hidden:
        return "writing a checkpoint"
    if "removing" in hidden:
        return "removing a checkpoint"
    if line == -1:
        return "writing a line"
    if saved and saved[-1] == steps:
        complete = sum(path.name.endswith("summary.json") for path in run_dir.glob("eval/*"))
        return "at the end" if "summary" in hidden or complete == 2 else "final evaluation"
    if (line or 0) > max(saved, default=0):
        return "between a line and its checkpoint"
    return "in a step" if saved else "before the first checkpoint"


def damage(run_dir: Path, step: int, rng: random.Random) -> tuple[str, bool]:
    """Damages what a dead run has left: (what was done, whether to the checkpoint of `step`)."""
    if rng.random() < 0.25:
        metrics = run_dir / "metrics.jsonl"
        text = metrics.read_text()
        line = text.splitlines()[-1]
        metrics.write_text(text + line[: rng.randrange(1, len(line))])
        return "half a line appended to metrics.jsonl", False
    folder = run_dir / "checkpoints" / f"step-{step}"
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    content, at = bytearray(file.read_bytes()), rng.randrange(file.stat().st_size)
    how = rng.choice(["a bit flipped in", "cut short:", "removed:"])
    if how == "removed:":
        file.unlink()
    elif how == "cut short:":
        file.write_bytes(content[:at])
    else:
        content[at] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    return f"{how} step-{step}/{file.relative_to(folder)}", True


def expected(run_dir: Path, damaged: Mapping[int, Identity], steps: int) -> tuple[int | None, list[int]]:
    """(the step that the next start has to go on after, the damaged ones it has to skip on the way).

    steps     of the whole run: the last one needs no state
    damaged   step of a damaged checkpoint -> what that directory is, so that one that was written anew is none
    """
    skipped: list[int] = []
    for step in reversed(steps_saved(run_dir)):
        if step != steps and not (run_dir / "checkpoints" / f"step-{step}" / "state").is_dir():
            continue
        if damaged.get(step) != identity_of(run_dir, step):
            return step, skipped
        skipped.append(step)
    return None, skipped


def identity_of(run_dir: Path, step: int) -> Identity:
    """Of a checkpoint's directory: a file system gives the number of one that was removed to the next that is made."""
    found = (run_dir / "checkpoints" / f"step-{step}").stat()
    return found.st_ino, found.st_mtime_ns

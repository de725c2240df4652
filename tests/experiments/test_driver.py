"""Running commands side by side: with real processes, whose work is a few milliseconds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import leash
import worker
from driver import Outcome, Task, last_line, run_tasks
from pspo.config import TrainConfig
from pspo.errors import ConfigError
from pspo.stopping import Stopped

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


class Seen:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.at_once = self.most = 0

    def started(self, task: Task) -> None:
        self.events.append(f"start {task.name}")
        self.at_once += 1
        self.most = max(self.most, self.at_once)

    def ended(self, outcome: Outcome) -> None:
        self.events.append(f"end {outcome.task.name}")
        self.at_once -= 1

    def tick(self) -> None:
        pass


def task(folder: Path, name: str, code: str, **settings: object) -> Task:
    product = folder / name / "DONE"
    whole = f"import os, sys, time, pathlib; product = pathlib.Path({str(product)!r})\n{code}"
    return Task(name, (sys.executable, "-c", whole), folder / "logs" / f"{name}.log", product, **settings)  # type: ignore[arg-type]


def test_tasks_run_side_by_side_up_to_the_limit(tmp_path: Path) -> None:
    seen = Seen()
    outcomes = run_tasks([task(tmp_path, f"t{i}", "time.sleep(0.2); product.touch()") for i in range(5)], 2, seen)
    assert [outcome.error for outcome in outcomes] == [None] * 5
    assert seen.most == 2
    assert seen.events[:2] == ["start t0", "start t1"]


def test_a_failure_is_told_with_its_last_line_and_stops_nothing(tmp_path: Path) -> None:
    bad = task(tmp_path, "bad", "print('pspo: lr=0 is too low', file=sys.stderr); sys.exit(3)")
    silent = task(tmp_path, "silent", "pass")
    good = task(
        tmp_path, "good", "product.write_text(os.environ['OMP_NUM_THREADS'])", environment={"OMP_NUM_THREADS": "1"}
    )
    errors = {outcome.task.name: outcome.error for outcome in run_tasks([bad, silent, good], 1, Seen())}
    assert errors["bad"] == "pspo: lr=0 is too low (exit status 3)"
    assert errors["silent"] is not None and "without writing" in errors["silent"]
    assert errors["good"] is None and good.product.read_text() == "1"


def test_a_command_killed_from_outside_is_a_failure(tmp_path: Path) -> None:
    [outcome] = run_tasks([task(tmp_path, "killed", "os.kill(os.getpid(), 9)")], 1, Seen())
    assert outcome.error == "no output (exit status 137)"


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '600']); product.write_text(str(p.pid))"
    one = task(tmp_path, "parent", code)
    [outcome] = run_tasks([one], 1, Seen())
    assert outcome.error is None
    assert gone(int(one.product.read_text()))


DRIVER = """
import sys; sys.path.insert(0, {experiments!r})
from pathlib import Path
from driver import Task, run_tasks
class View:
    def started(self, task): pass
    def ended(self, outcome): pass
    def tick(self): pass
code = ("import os, subprocess, sys, time; p = subprocess.Popen(['sleep', '600']);"
        "open(sys.argv[1] + '.new', 'w').write(f'{{os.getpid()}} {{p.pid}}'); "
        "os.rename(sys.argv[1] + '.new', sys.argv[1]);"
        "time.sleep(600)")
here = Path({folder!r})
tasks = [Task(n, (sys.executable, "-c", code, str(here / n)), here / (n + ".log"), here / "DONE") for n in ("a", "b")]
try:
    run_tasks(tasks, 2, View())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def driving(tmp_path: Path) -> Callable[[], tuple[subprocess.Popen[bytes], list[int]]]:
    """Starts a driver of two commands that never end, each with a child of its own; gives it and the four pids."""

    def start() -> tuple[subprocess.Popen[bytes], list[int]]:
        code = DRIVER.format(experiments=str(EXPERIMENTS), folder=str(tmp_path))
        driver = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 30
        while not all((tmp_path / name).exists() for name in "ab"):
            assert time.monotonic() < deadline and driver.poll() is None
            time.sleep(0.02)
        return driver, [int(pid) for name in "ab" for pid in (tmp_path / name).read_text().split()]

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_process_and_the_driver_with_130(
    number: signal.Signals, driving: Callable[[], tuple[subprocess.Popen[bytes], list[int]]]
) -> None:
    driver, pids = driving()
    driver.send_signal(number)
    assert driver.wait(20) == 130
    assert all(gone(pid) for pid in pids)


SAVING = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1] + ".asked").touch()
    time.sleep({seconds})
    pathlib.Path(sys.argv[1] + ".saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1] + ".ready").touch()
time.sleep(600)
"""
ONE = """
import sys; sys.path.insert(0, {experiments!r})
from pathlib import Path
import leash
from driver import Task, run_tasks
from progress import Progress
leash.LEFT_S = -4.0  # idle processes would have a second
try:
    task = Task("a", (sys.executable, "-c", {code!r}, {file!r}), Path({file!r} + ".log"), Path("x"))
    run_tasks([task], 1, Progress(1, 0, 1))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("signals, saved", [(1, True), (2, False)])
def test_once_it_waits_for_what_is_being_saved_and_twice_it_does_not(tmp_path: Path, signals: int, saved: bool) -> None:
    file = str(tmp_path / "a")
    code = ONE.format(experiments=str(EXPERIMENTS), code=SAVING.format(seconds=3), file=file)
    driver = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(signals):
        awaited = tmp_path / ("a.asked" if _ else "a.ready")
        deadline = time.monotonic() + 60
        while not awaited.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert driver.wait(60) == 130
    assert (tmp_path / "a.saved").exists() == saved
    assert saved or time.monotonic() - started < 2.5


DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {then}"


def deaf(then: str) -> subprocess.Popen[bytes]:
    """A command that does not listen to SIGTERM, when it has got that far."""
    child = subprocess.Popen([sys.executable, "-c", DEAF.format(then=then)], process_group=0, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"deaf\n"
    return child


def test_a_command_whose_owner_has_died_is_killed_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there any more who could ask twice."""
    monkeypatch.setattr(leash, "ORPHAN_S", 1.0)
    child, started = deaf("time.sleep(600)"), time.monotonic()
    leash.end_group(child, [signal.SIGTERM], owner=os.getpid())
    assert child.returncode == -signal.SIGKILL and 1 <= time.monotonic() - started < 20


def test_a_command_whose_owner_lives_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEFT_S", "ORPHAN_S"):
        monkeypatch.setattr(leash, name, 2.0)  # a busy machine may stand still for half a second
    child = deaf("time.sleep(5)")
    leash.end_group(child, [signal.SIGTERM], owner=os.getppid())
    assert child.returncode == 0


def test_what_a_command_has_left_is_killed_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leash, "LEFT_S", 1.0)
    child = deaf("import os; os.fork() and sys.exit(); time.sleep(600)")
    leash.end_group(child, [], owner=os.getppid())
    assert child.returncode == 0 and child.stdout is not None and child.stdout.read() == b""  # nobody holds it open


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_nothing_outlives_a_driver_that_is_killed(
    driving: Callable[[], tuple[subprocess.Popen[bytes], list[int]]],
) -> None:
    driver, pids = driving()
    driver.kill()
    driver.wait()
    assert all(gone(pid) for pid in pids)


def gone(pid: int, within: float = 10.0) -> bool:
    """Ended within some seconds, as an unreaped zombie too; ends it otherwise, to leave nothing behind."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return False


def test_the_last_line_of_a_log_is_what_a_terminal_would_show_last(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n 10%\r 20%\r 30%\n\n  \n")
    assert last_line(log) == "30%"
    assert last_line(tmp_path / "none") == ""


WORKER = """
import json, os, pathlib, sys
for line in sys.stdin:
    job = json.loads(line)
    if job["do"] == "die":
        os.kill(os.getpid(), 9)
    if job["do"] == "work":
        pathlib.Path(job["product"]).write_text(str(os.getpid()))
    print(json.dumps({"status": int(job["do"] == "fail")}), flush=True)
    if job["do"] == "fail":
        break
"""


def test_a_worker_goes_on_to_the_next_job_and_is_replaced_after_a_failure(tmp_path: Path) -> None:
    """Six jobs for one worker at a time: two done, one failed, one done, one killed in the middle, one done."""
    wanted = ["work", "work", "fail", "work", "die", "work"]
    tasks = [
        Task(
            name=f"j{i}",
            command=(sys.executable, "-c", WORKER),
            log=tmp_path / f"j{i}.log",
            product=tmp_path / f"j{i}",
            job={"do": do, "product": str(tmp_path / f"j{i}")},
        )
        for i, do in enumerate(wanted)
    ]
    outcomes = run_tasks(tasks, 1, Seen())
    assert [outcome.error is None for outcome in outcomes] == [do == "work" for do in wanted]
    assert "(exit status 137)" in (outcomes[4].error or "")
    pids = {i: (tmp_path / f"j{i}").read_text() for i, do in enumerate(wanted) if do == "work"}
    assert pids[0] == pids[1] and len(set(pids.values())) == 3
    assert not any(psutil.pid_exists(int(pid)) for pid in pids.values())  # none outlives run_tasks


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        (None, 0, ""),
        (OSError(28, "No space left on device", "runs/a"), 1, "pspo: [Errno 28] No space left on device: 'runs/a'\n"),
        (ConfigError("run_dir", "runs/a", "is not empty"), 2, "pspo: wrong setting: run_dir=runs/a: is not empty\n"),
        (Stopped(signal.SIGTERM), 75, ""),
    ],
)
def test_a_worker_ends_a_run_as_its_program_does(
    ends: BaseException | None, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def train(cfg: TrainConfig) -> None:
        if ends is not None:
            raise ends

    monkeypatch.setattr("pspo.train.train", train)
    assert worker.run(["steps=2"]) == status
    assert capfd.readouterr().err == said


def test_a_worker_shows_where_an_error_of_ours_comes_from(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pspo.train.train", lambda cfg: [][cfg.steps])
    assert worker.run(["steps=2"]) == 1
    assert capfd.readouterr().err.endswith("IndexError: list index out of range\n")

"""The pool: order, threads, time-outs, crashes, and that no process outlives its purpose."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pspo.grading import Grade, Grader, grade

HANGS = r"\boxed{9^{9^{9}}}"  # sympy computes the 370-million-digit number, inside one C call that holds the GIL
RIGHT, WRONG = (r"\boxed{(x+1)^2}", "x^2+2x+1", "math"), (r"\boxed{(x+2)^2}", "x^2+2x+1", "math")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def shared() -> Iterator[Grader]:
    """A Grader for the tests that do no harm to its workers: starting one costs a second."""
    with Grader(workers=2, timeout=20) as grader:
        yield grader


def test_grades_equal_those_of_grade_and_keep_their_order(shared: Grader) -> None:
    items = [
        (rf"\boxed{{(x+{i % 7})(x-{i % 5})}}", rf"x^2 + {i % 7 - i % 5}x - {(i % 7) * (i % 5)}", "math")
        for i in range(12)
    ]
    items[::3] = [(f"#### {i}", str(i % 9), "gsm8k") for i in range(4)]
    items[7], items[8] = ("no box", "x", "math"), (r"\boxed{1}", "", "math")
    assert shared.grade(items) == [grade(*item) for item in items]
    assert shared.grade([]) == []


def test_gsm8k_style_starts_no_worker() -> None:
    with Grader(workers=2) as grader:
        assert [g.correct for g in grader.grade([("#### 1", "1", "gsm8k"), ("#### 2", "1", "gsm8k")])] == [True, False]
        assert grader.worker_pids() == []


def test_many_threads_share_one_grader(shared: Grader) -> None:
    seen: dict[int, list[Grade]] = {}

    def work(k: int) -> None:
        seen[k] = shared.grade([(rf"\boxed{{x(x+{i})}}", f"x^2+{k}x", "math") for i in range(1, 9)])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shared.worker_pids()) == 2
    assert {k: [g.correct for g in grades] for k, grades in seen.items()} == {
        k: [i == k for i in range(1, 9)] for k in range(1, 7)
    }


def test_a_hung_item_costs_its_own_timeout_and_nothing_else() -> None:
    others = [(rf"\boxed{{x+{i}+1}}", f"x+{i + 1}", "math") for i in range(20)]
    items = [RIGHT, WRONG, (HANGS, "2", "math"), (HANGS, "2", "math"), *others]
    with Grader(workers=1, timeout=1.0) as grader:
        grader.grade([RIGHT])  # the worker is up
        (pid,) = grader.worker_pids()
        start = time.monotonic()
        future = grader.submit(items)
        assert time.monotonic() - start < 0.5 and not future.done()
        grades = future.result()
        seconds = time.monotonic() - start
        (replacement,) = grader.worker_pids()
    assert grades[2] == grades[3] == Grade(False, "9^{9^{9}}", "timeout")  # equal pairs are compared once
    assert [g.status for g in grades].count("ok") == len(items) - 2  # though those behind waited longer than `timeout`
    assert [g.correct for g in grades] == [True, False, False, False] + [True] * len(others)
    assert 1.0 <= seconds < 8.0  # the time-out, a new worker, and the rest
    assert replacement != pid and not alive(pid)


def test_a_worker_that_dies_is_replaced() -> None:
    with Grader(workers=1, timeout=30.0) as grader:
        grader.grade([RIGHT])
        (pid,) = grader.worker_pids()
        future = grader.submit([WRONG, (HANGS, "2", "math"), (r"\boxed{x+2}", "2+x", "math")])
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        assert [g.status for g in future.result(timeout=20)] == ["ok", "error", "ok"]
        os.kill(grader.worker_pids()[0], signal.SIGKILL)  # an idle one: nobody's item is lost
        assert [g.status for g in grader.grade([RIGHT, WRONG])] == ["ok", "ok"]


def test_a_worker_stopped_inside_an_item_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pspo.grading.pool.GRACE_SECONDS", 0.5)
    with Grader(workers=1, timeout=1.0) as grader:
        grader.grade([RIGHT])
        (pid,) = grader.worker_pids()
        future = grader.submit([(HANGS, "2", "math")])
        time.sleep(0.3)
        os.kill(pid, signal.SIGSTOP)  # its own timer cannot end it now
        assert [g.status for g in future.result(timeout=10)] == ["timeout"]
        assert not alive(pid)


def test_close_ends_every_process_and_thread_at_once() -> None:
    threads = threading.active_count()
    grader = Grader(workers=2, timeout=60.0)
    grader.grade([RIGHT, WRONG, *[(rf"\boxed{{x+{i}+0}}", f"x+{i}", "math") for i in range(8)]])
    future = grader.submit([(HANGS, "2", "math")])
    time.sleep(0.3)
    pids = grader.worker_pids()
    start = time.monotonic()
    grader.close()
    grader.close()
    assert time.monotonic() - start < 2.0
    assert pids and not any(map(alive, pids))
    assert threading.active_count() == threads
    with pytest.raises(RuntimeError, match="closed"):
        future.result(timeout=0)
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade([RIGHT])


PARENT = f"""
import sys, threading, time
from pspo.grading import Grader
with Grader(workers=2, timeout=60.0) as grader:
    grader.grade([({RIGHT[0]!r}, {RIGHT[1]!r}, "math"), ({WRONG[0]!r}, {WRONG[1]!r}, "math")] * 1)
    future = grader.submit([({HANGS!r}, "2", "math")])  # one worker hangs, the other is idle
    while len(grader.worker_pids()) < 2:
        time.sleep(0.01)
    time.sleep(0.3)
    print(*grader.worker_pids(), flush=True)
    future.result()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        parent.send_signal(how)
        parent.communicate(timeout=10)
        assert parent.returncode == -how
        assert soon(lambda: not any(map(alive, pids)))


def test_workers_import_neither_the_main_module_nor_torch(shared: Grader) -> None:
    shared.grade([RIGHT])
    for pid in shared.worker_pids():
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as cmdline:
            assert "pspo.grading.worker" in cmdline.read().split("\0")
        with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
            loaded = maps.read()
        assert "python" in loaded
        assert "libtorch" not in loaded and "vllm" not in loaded


def test_a_worker_that_cannot_start_is_an_error_for_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Grader(workers=1) as grader, pytest.raises(RuntimeError, match=r"did not start.*math_verify"):
        grader.grade([RIGHT])


@pytest.mark.parametrize(
    ("workers", "timeout"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -2.0), (1, float("nan")), (1, float("inf"))]
)
def test_settings_are_checked(workers: int, timeout: float) -> None:
    with pytest.raises(ValueError, match=r"workers is|timeout is"):
        Grader(workers=workers, timeout=timeout)


def test_an_unknown_style_is_refused_before_anything_is_graded() -> None:
    with Grader(workers=1) as grader, pytest.raises(ValueError, match="'latex'"):
        grader.grade([("1", "1", "latex")])  # type: ignore[list-item]

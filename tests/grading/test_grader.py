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
RIGHT, WRONG = (r"\boxed{(x+1)^2}", "x^2+2x+1", "math"), (r"\boxed{\sin x}", r"\cos x", "math")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def working_process(pid: int) -> int:
    """The process that does the work of worker `pid`."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
        (child,) = children.read().split()
    return int(child)


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
    assert 1 <= len(shared.worker_pids()) <= 2
    assert {k: [g.correct for g in grades] for k, grades in seen.items()} == {
        k: [i == k for i in range(1, 9)] for k in range(1, 7)
    }


def test_a_hung_item_costs_its_own_timeout_and_nothing_else() -> None:
    others = [(rf"\boxed{{x+{i}+1}}", f"x+{i + 1}", "math") for i in range(20)]
    items = [RIGHT, WRONG, (HANGS, "2", "math"), (HANGS, "2", "math"), *others]
    with Grader(workers=1, timeout=1.0) as grader:
        grader.grade([RIGHT])  # the worker is up
        (pid,) = grader.worker_pids()
        working = working_process(pid)
        start = time.monotonic()
        future = grader.submit(items)
        assert not future.done()
        grades = future.result()
        seconds = time.monotonic() - start
        assert grader.worker_pids() == [pid]
        replacement = working_process(pid)
    assert grades[2] == grades[3] == Grade(False, "9^{9^{9}}", "timeout")  # equal pairs are compared once
    assert [g.status for g in grades].count("ok") == len(items) - 2  # though those behind waited longer than `timeout`
    assert [g.correct for g in grades] == [True, False, False, False] + [True] * len(others)
    assert 0.95 <= seconds < 60.0  # the time-out and the rest; more only where others use the processor
    assert replacement != working and not alive(working)


def test_the_clock_is_cpu_time() -> None:
    """Time in which the machine does not run the worker, as when it is busy with others, is not the item's."""
    with Grader(workers=1, timeout=1.0) as grader:
        grader.grade([RIGHT])
        working = working_process(grader.worker_pids()[0])
        start = time.monotonic()
        future = grader.submit([(HANGS, "2", "math"), RIGHT])
        time.sleep(0.2)
        os.kill(working, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(working, signal.SIGCONT)
        assert [g.status for g in future.result(timeout=30)] == ["timeout", "ok"]
        assert time.monotonic() - start > 2.3  # by the wall clock it would have been over at 1.7


def test_a_clusters_warning_to_all_processes_leaves_the_workers_at_work() -> None:
    """The program goes on to the end of its step, and its answers are graded."""
    with Grader(workers=1, timeout=30.0) as grader:
        grader.grade([RIGHT])
        pids = grader.worker_pids()
        for pid in (*pids, *map(working_process, pids)):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, number)
        assert [g.status for g in grader.grade([RIGHT, WRONG])] == ["ok", "ok"]
        assert grader.worker_pids() == pids


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_worker_that_dies_is_replaced(which: str) -> None:
    def kill(grader: Grader) -> None:
        (pid,) = grader.worker_pids()
        working = working_process(pid)
        os.kill(pid if which == "first" else working, signal.SIGKILL)
        assert soon(lambda: not alive(working))  # the second dies with the first

    with Grader(workers=1, timeout=30.0) as grader:
        grader.grade([RIGHT])
        future = grader.submit([(HANGS, "2", "math"), WRONG])
        time.sleep(0.5)  # it is inside the first item, which takes more than that
        kill(grader)
        assert [g.status for g in future.result(timeout=60)] == ["error", "ok"]
        kill(grader)  # an idle one: nobody's item is lost
        assert [g.status for g in grader.grade([RIGHT, WRONG])] == ["ok", "ok"]


def test_a_worker_killed_while_it_starts_is_started_again() -> None:
    """As a kernel out of memory does. No item is to blame, and the run must not end."""
    with Grader(workers=1, timeout=20.0) as grader:
        future = grader.submit([RIGHT, WRONG])
        for _ in range(2):
            assert soon(lambda: bool(grader.worker_pids()))
            (pid,) = grader.worker_pids()
            os.kill(pid, signal.SIGKILL)
            assert soon(lambda pid=pid: pid not in grader.worker_pids())
        assert [g.correct for g in future.result(timeout=60)] == [True, False]


def test_a_program_without_standard_error_is_served() -> None:
    """A daemon's file descriptors 0 to 2 may be closed, and are then the next to be given out."""
    code = (
        "import os, sys; os.close(2); os.close(0)\n"
        "from pspo.grading import Grader\n"
        f"with Grader(workers=1) as grader: print([g.correct for g in grader.grade([{RIGHT!r}, {WRONG!r}])])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=100, check=True)
    assert done.stdout == "[True, False]\n"


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_worker_stopped_inside_an_item_is_a_timeout(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pspo.grading.pool.GRACE_SECONDS", 0.5)
    monkeypatch.setattr("pspo.grading.pool.WALL_FACTOR", 2.0)
    with Grader(workers=1, timeout=1.0) as grader:
        grader.grade([RIGHT])
        (pid,) = grader.worker_pids()
        working = working_process(pid)
        future = grader.submit([(HANGS, "2", "math")])
        time.sleep(0.3)
        os.kill(pid if which == "first" else working, signal.SIGSTOP)  # its own timers cannot end it now
        assert [g.status for g in future.result(timeout=10)] == ["timeout"]
        assert soon(lambda: not alive(pid) and not alive(working))


def test_a_batch_larger_than_the_pipe_to_a_stopped_worker_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pspo.grading.pool.GRACE_SECONDS", 0.5)
    with Grader(workers=1, timeout=1.0) as grader:
        grader.grade([RIGHT])
        os.kill(working_process(grader.worker_pids()[0]), signal.SIGSTOP)
        items = [(f"{i}" + "é" * 9_000 + r" \boxed{3}", "3", "math") for i in range(32)]
        assert len(grader.second_opinion(items)) == 32


def test_start_has_the_workers_ready_before_the_first_batch() -> None:
    with Grader(workers=2) as grader:
        start = time.monotonic()
        grader.start()
        grader.start()
        assert time.monotonic() - start < 5.0
        assert soon(lambda: len(grader.worker_pids()) == 2)
        pids = grader.worker_pids()
        assert soon(lambda: all(has_forked(pid) for pid in pids), 60)
        assert grader.grade([RIGHT, WRONG])[0].correct
        assert grader.worker_pids() == pids


def has_forked(pid: int) -> bool:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
        return len(children.read().split()) == 1


def test_a_start_that_fails_is_reported_by_the_batch_that_needs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Grader(workers=1) as grader:
        grader.start()
        assert soon(lambda: "did not start" in caplog.text)
        with pytest.raises(RuntimeError, match="did not start"):
            grader.grade([RIGHT])
    with pytest.raises(RuntimeError, match="closed"):
        grader.start()


def test_a_second_opinion_is_that_of_math_verify_alone(shared: Grader) -> None:
    items = [
        (r"so $\frac{1}{2}$ and the answer is $\boxed{41=42}$", "42", "math"),  # its own quirk: the last side counts
        (r"It is $\boxed{x^2+2x+1}$.", r"Thus $\boxed{(x+1)^2}$.", "math"),
        ("#### 42", "6 * 7 = 42\n#### 42", "gsm8k"),
        ("The total is 1,234 dollars.", "#### 1,234", "gsm8k"),
        ("#### 41", "42", "gsm8k"),
        ("", "42", "gsm8k"),
        ("#### 42", "none at all", "gsm8k"),
        (r"\boxed{5}", r"\boxed{}", "math"),
        ("x" * 50_000 + r" \boxed{7}", "7", "math"),
        (r"\boxed{7}" + "x" * 50_000, "7", "math"),  # beyond what is read
        ("\ud800 \\boxed{\\ud800 7} \x00", "7", "math"),
    ]
    opinions = shared.second_opinion(items)
    assert opinions[:10] == [
        "equal", "equal", "equal", "equal", "different", "different", "gold_unreadable", "gold_unreadable", "equal",
        "different",
    ]  # fmt: skip
    assert opinions[10] in ("equal", "different", "error")
    assert shared.second_opinion([]) == []
    with pytest.raises(ValueError, match="'latex'"):
        shared.second_opinion([("1", "1", "latex")])  # type: ignore[list-item]


def test_a_second_opinion_that_hangs_is_a_timeout() -> None:
    with Grader(workers=1, timeout=1.0) as grader:
        assert grader.second_opinion([("so $\\boxed{9^{9^{9}}}$", "5", "math"), ("#### 5", "5", "gsm8k")]) == [
            "timeout", "equal",
        ]  # fmt: skip


def test_grade_in_process_neither_hangs_nor_computes_here() -> None:
    code = f"""if True:
        import os, sys, threading, time
        from pspo.grading import grade
        assert grade({RIGHT[0]!r}, {RIGHT[1]!r}, "math").correct
        start = time.monotonic()
        assert grade({HANGS!r}, "2", "math").status == "timeout"
        assert time.monotonic() - start < 60
        seen = []
        work = lambda: seen.append(grade({WRONG[0]!r}, {WRONG[1]!r}, "math"))
        threads = [threading.Thread(target=work) for _ in "ab"]
        [t.start() for t in threads], [t.join() for t in threads]
        assert [g.status for g in seen] == ["ok", "ok"]
        child = os.fork()
        if child == 0:
            os._exit(0 if grade({RIGHT[0]!r}, {RIGHT[1]!r}, "math").correct else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert grade({RIGHT[0]!r}, {RIGHT[1]!r}, "math").correct  # the parent's worker is still there
        assert "sympy" not in sys.modules and "math_verify" not in sys.modules
        with open(f"/proc/self/task/{{os.getpid()}}/children") as children:
            print(children.read())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert soon(lambda: not any(alive(int(pid)) for pid in done.stdout.split()))


def test_a_grader_is_refused_in_a_forked_child(shared: Grader) -> None:
    child = os.fork()
    if child == 0:
        try:
            shared.grade([RIGHT])
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 4)
        finally:
            os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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
    assert time.monotonic() - start < 20.0
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
    grader.start()
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
    ("workers", "timeout"),
    [(1, 1e10), (1, True), (1.5, 1.0), (0, 1.0), (-1, 1.0), (1, 0.0), (1, -2.0), (1, float("nan")), (1, float("inf"))],
)
def test_settings_are_checked(workers: int, timeout: float) -> None:
    with pytest.raises(ValueError, match=r"workers is|timeout is"):
        Grader(workers=workers, timeout=timeout)


def test_an_unknown_style_is_refused_before_anything_is_graded() -> None:
    with Grader(workers=1) as grader, pytest.raises(ValueError, match="'latex'"):
        grader.grade([("1", "1", "latex")])  # type: ignore[list-item]

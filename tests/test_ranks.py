"""Several real processes over the loopback address: what they tell each other, and how they all end when one fails."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from pspo.errors import PspoError
from pspo.ranks import STOPPED, Ranks, find_place, joined
from pspo.stopping import AGAIN

PLENTY = 60  # seconds: a time-out that no test here means to reach
SHORT = 3.0  # seconds: one that is reached
PROMPT = 25  # seconds from a failure to the end of all ranks; a few on a machine that does nothing else


@dataclass
class Ended:
    status: int
    out: str
    err: str


class Launcher:
    """Starts ranks as srun would: nobody ends the others when one has failed."""

    def __init__(self, nursery, place):
        self.nursery, self.place = nursery, place
        self.pids = []

    def ask(self, **request):
        self.nursery.stdin.write(json.dumps(request) + "\n")
        self.nursery.stdin.flush()
        return json.loads(self.nursery.stdout.readline())

    def start(self, scenario, size, timeout=PLENTY, ranks=None, **env):
        """The ranks (all, where not named) of a run of `size`; {rank} in a variable is filled in."""
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        common |= {"RANK": "{rank}", "WORLD_SIZE": str(size), "LOCAL_RANK": "{rank}"} | env
        for rank in range(size) if ranks is None else ranks:
            own = {name: value and value.format(rank=rank) for name, value in common.items()}
            argv, out, err = ["ranks_talk.py", scenario, str(timeout)], self.file("out"), self.file("err")
            out.touch()  # the new process may open it later than the test reads
            self.pids.append(self.ask(argv=argv, env=own, out=str(out), err=str(err)))
        return self

    def file(self, kind, number=None):
        return self.place / f"{len(self.pids) if number is None else number}.{kind}"

    def end(self, within=PLENTY):
        """How each rank ended; that it does within the time is part of every test."""
        deadline = time.monotonic() + within
        statuses = {}
        while len(statuses) < len(self.pids):
            assert time.monotonic() < deadline, f"only {statuses} of {self.pids} ended"
            time.sleep(0.05)
            for number, pid in enumerate(self.pids):
                if number not in statuses and (status := self.ask(poll=pid)) is not None:
                    statuses[number] = status
        self.pids.clear()
        return [
            Ended(statuses[n], self.file("out", n).read_text(), self.file("err", n).read_text())
            for n in range(len(statuses))
        ]


@pytest.fixture(scope="module")
def nursery(root):
    """A process that forks ranks with torch loaded."""
    with subprocess.Popen(
        [sys.executable, root / "tests/programs/ranks_talk.py"],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def launcher(nursery, tmp_path):
    made = Launcher(nursery, tmp_path)
    yield made
    for pid in made.pids:  # of a test that failed
        os.kill(pid, signal.SIGKILL)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# --- talk ------------------------------------------------------------------------------------------------------------


def check_talk(found, size):
    assert [said["rank"] for said in found] == list(range(size))
    for rank, said in enumerate(found):
        assert said["size"] == size
        assert said["share"] == list(range(10, 17))[rank::size]
        assert said["whole"] == list(range(10, 17))
        assert said["first"] == [7, 8] and said["made"] == ([0] if rank == 0 else [])
        assert said["together"] == rank * 10
        assert said["sum"] == [size, sum(r + 0.5 for r in range(size))]


def test_ranks_exchange_values_in_rank_order(launcher):
    ended = launcher.start("talk", 3).end()
    assert [rank.status for rank in ended] == [0] * 3, ended
    check_talk([json.loads(rank.out) for rank in ended], 3)
    assert [rank.err for rank in ended] == [""] * 3


def test_tasks_of_srun_are_ranks(launcher):
    """And vLLM's external launcher finds torchrun's variables."""
    torchrun = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    slurm = {"SLURM_PROCID": "{rank}", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "{rank}"}
    ended = launcher.start("talk", 2, **torchrun, **slurm).end()
    assert [rank.status for rank in ended] == [0, 0], ended
    found = [json.loads(rank.out) for rank in ended]
    check_talk(found, 2)
    assert [said["env"] for said in found] == [["0", "2", "0"], ["1", "2", "1"]]


def test_torchrun_starts_ranks_and_ends_with_the_failure_of_one(root):
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    argv += [root / "tests/programs/ranks_talk.py", "talk_until_one_fails", str(PLENTY)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, timeout=120)
    found = [json.loads(line) for line in re.findall(r"\{.*?\}", done.stdout)]  # two ranks may share a line
    check_talk(sorted(found, key=lambda said: said["rank"]), 2)
    assert done.returncode != 0
    assert "rank 1: model.path=/x: no such file" in done.stderr


def test_work_and_inner_phases_have_their_own_time(launcher):
    ended = launcher.start("long_steps", 2, timeout=2).end()
    assert [json.loads(rank.out)["done"] for rank in ended] == [True, True], ended


def test_an_error_that_a_rank_mends_ends_nothing(launcher):
    ended = launcher.start("caught", 2).end()
    assert [json.loads(rank.out)["all"] for rank in ended] == [[0, 1]] * 2, ended


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_error_on_the_first_rank_is_everybodys(launcher):
    ended = launcher.start("first_fails", 2).end()
    assert [(rank.status, rank.err) for rank in ended] == [(1, "run_dir=/x holds another run\n")] * 2


def test_a_failed_start_on_one_rank_ends_all_with_its_name(launcher):
    ended = launcher.start("one_fails_together", 3).end()
    assert [(rank.status, rank.err) for rank in ended] == [(1, "rank 1: model.path=/x: no such file\n")] * 3


def test_a_failed_start_ends_ranks_that_wait_inside_it(launcher):
    """Rank 1 has left a collective that rank 0 stays in."""
    first, second = launcher.start("one_fails_inside_a_collective", 2, timeout=2 * SHORT).end()
    assert second.status == 1 and second.err == "rank 1: model.path=/x: no such file\n"
    assert first.status == STOPPED
    assert "rank 1: model.path=/x: no such file" in first.err


def test_an_exception_on_one_rank_is_named_on_the_others(launcher):
    first, second = launcher.start("one_raises", 2).end(within=PROMPT)
    assert second.status == 1 and "Traceback" in second.err
    assert first.status == STOPPED
    assert 'rank 1 failed in "sampling of step 1": ValueError: no prompt is left' in first.err


def test_where_one_is_told_to_stop_all_end_with_its_status(launcher):
    """As in a job whose first node alone is warned while it loads: the job goes back to the queue."""
    first, second = launcher.start("one_is_told_to_stop", 2).end(within=PROMPT)
    assert [first.status, second.status] == [AGAIN, AGAIN]
    assert 'rank 1 was told to stop in "loading"' in first.err


@pytest.mark.parametrize(("scenario", "dead"), [("one_is_killed", 1), ("first_is_killed", 0)])
def test_a_killed_rank_is_named_with_the_collective_that_misses_it(launcher, scenario, dead):
    ended = launcher.start(scenario, 3).end(within=PROMPT)
    assert ended[dead].status == -signal.SIGKILL
    for rank in {0, 1, 2} - {dead}:
        assert ended[rank].status == STOPPED
        assert f"rank {dead} has died" in ended[rank].err
        assert f'rank {rank} was in "gather of step 1"' in ended[rank].err


def test_ranks_in_no_collective_end_too(launcher):
    first, second = launcher.start("one_is_killed_the_others_are_busy", 2).end(within=PROMPT)
    assert second.status == -signal.SIGKILL
    assert first.status == STOPPED
    assert first.err.startswith("rank 1 has died")


def test_a_rank_of_which_nothing_is_heard_ends_the_others(launcher):
    launcher.start("one_stops", 2)
    stopped = launcher.pids.pop()
    try:
        (first,) = launcher.end(within=PROMPT)
    finally:
        os.kill(stopped, signal.SIGKILL)
    assert first.status == STOPPED
    assert re.match(r'rank 1 has given no sign of life for \d+ s; it was in "sampling"', first.err)


def test_a_time_out_names_the_rank_that_does_not_come_and_ends_it(launcher):
    first, second = launcher.start("one_sleeps", 2, timeout=SHORT).end()
    assert [first.status, second.status] == [STOPPED, STOPPED]
    said = r'rank 1: waited 3 s in "gather of step 1"; rank 0: in "sampling of step 1" \(\d+ s\)'
    assert re.fullmatch(said + "\n", second.err)
    assert re.match(said + '; rank 0 was in "sampling of step 1"', first.err)


def test_collectives_of_other_libraries_time_out_by_phase(launcher):
    """torch's own time-out is longer; both ranks entered the phase, which does not end."""
    ended = launcher.start("torch_waits", 2, timeout=SHORT).end()
    assert [rank.status for rank in ended] == [STOPPED, STOPPED]
    assert any('waited 3 s in "update 1 of step 1"' in rank.err for rank in ended)


def test_ctrl_c_ends_ranks_inside_collectives_too(launcher):
    """A terminal and launchers send the signal to all ranks. Python in rank 0 does not see it before it comes back."""
    launcher.start("interrupted", 2)
    while any(launcher.file("out", rank).read_text() != "waiting\n" for rank in (0, 1)):
        time.sleep(0.05)
    time.sleep(1)
    for pid in launcher.pids:
        os.kill(pid, signal.SIGINT)
    ended = launcher.end(within=PROMPT)
    assert all(rank.status != 0 for rank in ended), ended


def test_a_process_group_that_vllm_has_destroyed_is_not_missed(launcher):
    ended = launcher.start("group_is_taken", 2).end()
    assert [(rank.status, json.loads(rank.out)["after"], rank.err) for rank in ended] == [(0, 0, ""), (0, 1, "")]


# --- the start -------------------------------------------------------------------------------------------------------


def test_a_rank_that_never_starts_is_named(launcher):
    ended = launcher.start("talk", 3, timeout=2, ranks=[0, 2]).end()
    assert [(rank.status, rank.err) for rank in ended] == [
        (STOPPED, "rank 1 of 3 did not come within 2 s of the start\n")
    ] * 2


@pytest.mark.parametrize(("rank", "host"), [(1, "127.0.0.1"), (0, "no-such-machine.invalid")])
def test_a_first_rank_that_does_not_answer_is_named(launcher, rank, host):
    (ended,) = launcher.start("talk", 2, timeout=2, ranks=[rank], MASTER_ADDR=host).end()
    assert ended.status == 1
    assert ended.err.startswith(f"rank {rank}: no answer at MASTER_ADDR={host} MASTER_PORT=")


def test_a_port_of_another_program_is_named(launcher):
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        (ended,) = launcher.start("talk", 2, timeout=2, ranks=[0], MASTER_PORT=str(port)).end()
    assert ended.status == 1
    assert f"MASTER_PORT={port} cannot be used, choose another port" in ended.err


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "7"}
SRUN = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "MASTER_ADDR": "a", "MASTER_PORT": "7"}


def test_the_launcher_says_where_a_process_stands():
    place = find_place(TORCHRUN)
    assert (place.rank, place.size, place.local_rank, place.host, place.port) == (1, 4, 1, "a", 7)
    place = find_place(SRUN)
    assert (place.rank, place.size, place.local_rank, place.launcher) == (2, 4, 0, "srun")
    assert find_place(SRUN | TORCHRUN).launcher == "torchrun"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"},  # one program of a job's script
    ],
)
def test_one_process_is_no_rank_of_several(env):
    assert find_place(env) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"RANK": "4"}, "RANK=4: must be below WORLD_SIZE=4"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK=None"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    ],
)
def test_contradicting_variables_are_named(change, named):
    with pytest.raises(PspoError, match=named):
        find_place(TORCHRUN | change)


def test_an_evaluation_that_fails_anywhere_fails_everywhere_and_the_ranks_stay_together(launcher):
    for ended in launcher.start("evaluations", 2).end(PROMPT):
        assert ended.status == 0, ended.err
        (said,) = map(json.loads, ended.out.splitlines())
        assert said["heard"][0] == [1, 2, 3] and said["heard"][-1] == [4, 5] and said["after"] == [0, 1]
        failures = [f"rank {rank}: ValueError: no completion of 13" for rank in (0, 1)]
        assert said["heard"][1:-1] == [*failures, "no space left"]


# --- one process -----------------------------------------------------------------------------------------------------


def test_one_process_needs_no_torch_and_no_thread(root):
    code = (
        "import sys, threading; from pspo.ranks import joined\n"
        "with joined('cpu', 600) as ranks:\n"
        "    with ranks.expecting('a'), ranks.doing('b'): ranks.barrier('c')\n"
        "    assert ranks.first and ranks.size == 1 and ranks.gather(3, 'd') == [3] and ranks.sum([2], 'e') == [2.0]\n"
        "    assert ranks.from_first(lambda: 4, 'f') == 4 and ranks.together(lambda: 5, 'g') == 5\n"
        "    assert ranks.share('ab') == 'ab'\n"
        "assert threading.active_count() == 1 and 'torch' not in sys.modules\n"
    )
    outside = {name: value for name, value in os.environ.items() if name not in TORCHRUN | SRUN}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=outside, check=True, timeout=60)


def test_errors_of_one_process_are_its_own(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)

    def fail():
        raise KeyError("a")

    with joined("cpu", 1) as ranks:
        for call in (ranks.from_first, ranks.together):
            with pytest.raises(KeyError):
                call(fail, "failing")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [0, 1, 4, 7])
def test_interleave_is_the_inverse_of_share(size, total):
    items = list(range(total))
    shares = [Ranks(rank, size).share(items) for rank in range(size)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Ranks(0, size).interleave(shares) == items


def test_interleave_refuses_what_are_no_shares():
    with pytest.raises(ValueError):
        Ranks(0, 2).interleave([[1], [2, 3, 4]])


def test_only_this_room_starts_process_groups(root):
    starts = [p.parent.name for p in (root / "src").rglob("*.py") if "init_process_group" in p.read_text()]
    assert starts == ["ranks"]

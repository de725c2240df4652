"""What tests/test_ranks.py starts as one rank of several: `ranks_talk.py SCENARIO TIMEOUT`. Prints what it found.

Without arguments it has torch loaded and forks ranks on request, because loading takes seconds a process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pspo.ranks.watch
from pspo.errors import PspoError
from pspo.ranks import Ranks, joined
from pspo.stopping import Stopped

STEPS = 3


def say(ranks: Ranks, **found: object) -> None:
    print(json.dumps({"rank": ranks.rank, **found}), flush=True)


def talk(ranks: Ranks) -> None:
    items = list(range(10, 17))
    share = list(ranks.share(items))
    shares = ranks.gather(share, "shares")
    made = []

    def make() -> list[int]:
        made.append(ranks.rank)
        return [7, 8]

    ranks.barrier("half way")
    say(
        ranks,
        size=ranks.size,
        env=[os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")],
        share=share,
        whole=ranks.interleave(shares),
        first=ranks.from_first(make, "making"),
        made=made,
        together=ranks.together(lambda: ranks.rank * 10, "loading"),
        sum=ranks.sum([1.0, ranks.rank + 0.5], "counts"),
    )


def first_fails(ranks: Ranks) -> None:
    def make() -> None:
        raise PspoError("run_dir=/x holds another run")

    ranks.from_first(make, "claiming")


def one_fails_together(ranks: Ranks) -> None:
    def load() -> None:
        if ranks.rank == 1:
            raise PspoError("model.path=/x: no such file")

    ranks.together(load, "loading the model")


def talk_until_one_fails(ranks: Ranks) -> None:
    talk(ranks)
    one_fails_together(ranks)


def one_fails_inside_a_collective(ranks: Ranks) -> None:
    def load() -> None:
        if ranks.rank == 1:
            raise PspoError("model.path=/x: no such file")
        ranks.barrier("a collective of the loading")

    ranks.together(load, "loading the model")


def one_raises(ranks: Ranks) -> None:
    for step in range(STEPS):
        with ranks.doing(f"sampling of step {step}"):
            if ranks.rank == 1 and step == 1:
                raise ValueError("no prompt is left")
        ranks.gather(step, f"gather of step {step}")


def one_is_killed(ranks: Ranks, which: int = 1) -> None:
    for step in range(STEPS):
        with ranks.doing(f"sampling of step {step}"):
            if ranks.rank == which and step == 1:
                time.sleep(0.5)  # the others are waiting for this one by then
                os.kill(os.getpid(), signal.SIGKILL)
        ranks.gather(step, f"gather of step {step}")


def first_is_killed(ranks: Ranks) -> None:
    one_is_killed(ranks, which=0)


def one_is_killed_the_others_are_busy(ranks: Ranks) -> None:
    """No collective tells them, as under NCCL."""
    ranks.barrier("start")
    with ranks.doing("sampling"):
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)


def one_sleeps(ranks: Ranks) -> None:
    ranks.gather(0, "gather of step 0")
    with ranks.doing("sampling of step 1"):
        if ranks.rank == 0:
            time.sleep(1000)
    ranks.gather(1, "gather of step 1")


def torch_waits(ranks: Ranks) -> None:
    """A collective that another library starts."""
    import torch
    import torch.distributed as dist

    ranks.barrier("start")
    with ranks.expecting("update 1 of step 1"):
        if ranks.rank == 1:
            time.sleep(1000)
        dist.all_reduce(torch.ones(1))


def one_stops(ranks: Ranks) -> None:
    """As a machine that vanishes: the process is there, and nothing comes of it."""
    pspo.ranks.watch.LOST_S = 3.0
    ranks.barrier("start")
    with ranks.doing("sampling"):
        if ranks.rank == 1:
            time.sleep(1.5)  # it is heard where this one is
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1000)


def interrupted(ranks: Ranks) -> None:
    """Rank 0 is inside the C++ of a collective that rank 1 does not come to."""
    ranks.barrier("start")
    print("waiting", flush=True)
    if ranks.rank == 1:
        with ranks.doing("sleeping"):
            time.sleep(1000)
    ranks.barrier("what never comes")


def group_is_taken(ranks: Ranks) -> None:
    """vLLM destroys the process group when its engine is closed."""
    import torch.distributed as dist

    ranks.barrier("start")
    dist.destroy_process_group()
    say(ranks, after=ranks.together(lambda: ranks.rank, "closing"))


class Echo:
    """A sampler that answers every prompt with itself, but 13."""

    def stream(self, prompts, seeds, decoding):
        for k, prompt in enumerate(prompts):
            if prompt == (13,):
                raise ValueError("no completion of 13")
            yield k, [prompt]


def evaluations(ranks: Ranks) -> None:
    from pspo.rollout import Decoding
    from pspo.rollout.shared import Engines, sampled_by_all

    def ask(numbers, then=None):
        def work(sampler):
            prompts = [(number,) for number in numbers]
            drawn = dict(sampler.stream(prompts, [0] * len(prompts), Decoding(1)))
            if then:
                raise PspoError(then)
            return [drawn[k][0][0] for k in range(len(prompts))]

        try:
            return sampled_by_all(work, Echo(), Engines(ranks))
        except PspoError as error:
            return str(error)

    heard = [ask([1, 2, 3]), ask([13, 2]), ask([1, 13, 2]), ask([1], then="no space left"), ask([4, 5])]
    say(ranks, heard=heard, after=ranks.gather(ranks.rank, "after it"))


def long_steps(ranks: Ranks) -> None:
    """Work longer than the time-out that nobody waits for, and phases whose inner ones each come in time."""
    timeout = float(sys.argv[2])
    with ranks.doing("sampling"):
        time.sleep(1.5 * timeout)
    with ranks.expecting("step 1"):
        for part in range(4):
            time.sleep(0.4 * timeout)
            ranks.barrier(f"part {part}")
    say(ranks, done=True)


def one_is_told_to_stop(ranks: Ranks) -> None:
    if ranks.rank == 1:
        with ranks.doing("loading"):
            raise Stopped(signal.SIGUSR1)
    ranks.barrier("start")


def caught(ranks: Ranks) -> None:
    """An error that a rank mends by itself is nobody else's concern."""
    try:
        with ranks.doing("trying"):
            raise ValueError
    except ValueError:
        say(ranks, all=ranks.gather(ranks.rank, "after it"))


def nursery() -> bool:
    """Answers requests, one JSON line each: start a rank (its process id), poll one (its exit status, or null). Returns
    True in a new process, False at the end of the requests."""
    import torch.distributed  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = asked["argv"]
            for name, value in asked["env"].items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            return True
        print(pid, flush=True)
    return False


def main() -> None:
    scenario, timeout = sys.argv[1], float(sys.argv[2])
    try:
        with joined("cpu", timeout) as ranks:
            globals()[scenario](ranks)
    except PspoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)


if __name__ == "__main__" and (len(sys.argv) > 1 or nursery()):
    main()

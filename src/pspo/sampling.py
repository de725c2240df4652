"""What a step samples: groups drawn by the engines of all ranks, each handed to the grader as soon as it is finished.

    draw     now, in the calling thread
    start    in a thread beside the learner (rollout.ahead), to be waited for with `wait`

Either is this rank's share of it; `pspo.run` exchanges the shares. Imports: torch, and the rooms below the loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from pspo.config import TrainConfig
from pspo.data import Prompter
from pspo.data.order import distinct
from pspo.errors import PspoError
from pspo.evaluation import prompts_of, stop_if_not_finite
from pspo.grading import Grade, Grader
from pspo.rollout import Decoding, Sampler
from pspo.rollout.shared import Engines
from pspo.seeds import derive
from pspo.types import Completion, Group, Problem

DAMAGED = "what the checkpoint says was sampled ahead is damaged; remove that checkpoint"


@dataclass(frozen=True)
class Drawn:
    """Groups with the grades that are on their way, and the seconds that sampling took."""

    groups: list[Group]
    grading: list[Future[list[Grade]]]
    seconds: float


class Sampling:
    """A context manager: on leaving, what is still being sampled ends with its next group.

    The sampler is used by one thread at a time: between `start` and `wait` nobody else may ask it for anything.
    """

    def __init__(
        self, cfg: TrainConfig, engines: Engines, sampler: Sampler, prompter: Prompter, grader: Grader
    ) -> None:
        self.cfg, self.engines, self.sampler, self.prompter, self.grader = cfg, engines, sampler, prompter, grader
        self._enough = threading.Event()
        self._thread = ThreadPoolExecutor(1, "sampling ahead", initializer=_as_here())
        self._ahead: Future[Drawn] | None = None

    def __enter__(self) -> Sampling:
        return self

    def __exit__(self, *error: object) -> None:
        self._enough.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def draw(self, problems: Sequence[Problem], step: int) -> Drawn:
        """G completions for each problem of this rank's share, with seeds derived from run seed, step and problem."""
        started, rollout, mine = time.perf_counter(), self.cfg.rollout, self.engines.share(problems)
        prompts = prompts_of(mine, self.prompter, rollout.max_prompt_tokens)
        seeds = [derive(self.cfg.seed, "rollout", step, *name) for name in self.engines.share(distinct(problems))]
        decoding = Decoding(rollout.max_new_tokens, rollout.temperature, rollout.top_p, rollout.group_size)
        groups: dict[int, Group] = {}
        grading: dict[int, Future[list[Grade]]] = {}
        for index, completions in self.sampler.stream(prompts, seeds, decoding):
            if self._enough.is_set():
                raise CancelledError
            stop_if_not_finite(completions)
            groups[index] = Group(mine[index], prompts[index], tuple(completions))
            if self.engines.leads:
                grading[index] = self._grade(groups[index])
        order = range(len(mine))
        return Drawn(
            [groups[k] for k in order], [grading[k] for k in order if k in grading], time.perf_counter() - started
        )

    def start(self, problems: Sequence[Problem], step: int) -> None:
        """`draw` in its own thread. On a GPU the weights are all there before it begins, whatever stream loads them."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._ahead = self._thread.submit(self.draw, problems, step)

    def wait(self) -> Drawn:
        """What `start` has begun; raises what was raised there."""
        assert self._ahead is not None
        drawn, self._ahead = self._ahead.result(), None
        return drawn

    def again(self, saved: Mapping[str, Any], problems: Sequence[Problem]) -> Drawn:
        """All ranks' groups as a checkpoint has them (`as_json`), with the grades of this rank's share on their way."""
        groups = groups_from(saved, problems)
        prompts = prompts_of(problems, self.prompter, self.cfg.rollout.max_prompt_tokens)
        for group, prompt in zip(groups, prompts, strict=True):
            stop_if_not_finite(group.completions)
            whole = all(len(c.token_ids) == len(c.log_probs) > 0 for c in group.completions)
            if not whole or group.prompt_ids != prompt or len(group.completions) != self.cfg.rollout.group_size:
                raise PspoError(f"{DAMAGED}: problem {group.problem.id}")
        share = self.engines.share(groups) if self.engines.leads else ()
        return Drawn(groups, [self._grade(group) for group in share], float(saved.get("seconds", 0.0)))

    def _grade(self, group: Group) -> Future[list[Grade]]:
        return self.grader.submit([(c.text, group.problem.gold, self.prompter.style) for c in group.completions])


def as_json(drawn: Drawn) -> dict[str, Any]:
    """As a checkpoint's manifest keeps it: all but the problems, which follow from the step, and the grades."""
    rows = [
        {
            "problem": group.problem.id,
            "prompt_ids": group.prompt_ids,
            "completions": [[c.token_ids, c.log_probs, c.text, c.finished] for c in group.completions],
        }
        for group in drawn.groups
    ]
    return {"groups": rows, "seconds": drawn.seconds}


def groups_from(saved: Mapping[str, Any], problems: Sequence[Problem]) -> list[Group]:
    """The same bits as went into `as_json`, given the problems of that step. PspoError where it is not of them."""
    try:
        return [_group_from(row, problem) for row, problem in zip(saved["groups"], problems, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise PspoError(f"{DAMAGED}: {error!r}") from error


def _group_from(row: Mapping[str, Any], problem: Problem) -> Group:
    if row["problem"] != problem.id:
        raise ValueError(f"completions of problem {row['problem']}, where {problem.id} was expected")
    completions = (
        Completion(tuple(ids), tuple(log_probs), text, finished)
        for ids, log_probs, text, finished in row["completions"]
    )
    return Group(problem, tuple(row["prompt_ids"]), tuple(completions))


def _as_here() -> Any:
    """For a new thread: computing as the thread that calls this does, on its GPU and with as many threads of its own,
    both of which torch keeps by thread; so that what is sampled has the same bits. On a GPU in a stream of its own, or
    its kernels would wait for the learner's."""
    threads = torch.get_num_threads()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def set_up() -> None:
        torch._C.set_num_threads(threads)  # a vLLM engine has replaced torch's own by one that does nothing
        if device is not None:
            torch.cuda.set_device(device)
            torch.cuda.set_stream(torch.cuda.Stream())

    return set_up

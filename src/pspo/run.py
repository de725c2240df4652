"""A training run: its parts, and the steps that `pspo.train` is written in.

    resume, then for each step
    problems -> sample -> reward -> refill -> sleep_sampler -> check -> sample_ahead -> batch -> fix_old_log_probs
    -> update ... -> sync -> evaluate -> log -> save

Every rank runs all of it: it samples and grades its share of the prompts, and learns from its share of the tokens. What
is one file (metrics, evaluations) is the first rank's. Files of a run: docs/files.md; what survives a kill, and how:
docs/reliability.md. Imports: all rooms below the loop.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pspo.advantages import has_signal
from pspo.batching import Batch
from pspo.checkpoint import Checkpoints, Saved
from pspo.config import TrainConfig
from pspo.data import load_tokenizer, make_prompter
from pspo.data.order import problems_of_step, spare_problems
from pspo.errors import MismatchError, NonFiniteError, PspoError
from pspo.evaluation import prompts_of
from pspo.exams import Exams
from pspo.files import write_whole
from pspo.grading import Grade, Grader
from pspo.layers import check_compiler
from pspo.learner import learning_rate, make_learner
from pspo.measures import gap_metrics, length_metrics, rollout_metrics, update_metrics
from pspo.memory import Memory
from pspo.models import read_weights, save_policy, write_policy
from pspo.objective import UpdateStats
from pspo.plan.shapes import check_shared
from pspo.provenance import provenance
from pspo.ranks import PeerError, Ranks
from pspo.rewards import rewards_of
from pspo.rollout import make_sampler
from pspo.rollout.shared import Engines
from pspo.rundir import Place
from pspo.sampling import Drawn, Sampling, as_json
from pspo.seeds import derive
from pspo.startup import data_reports, known_shape, load_parts, origins, planned, prepare, starting_checkpoint
from pspo.stopping import Stop, Stopped
from pspo.tracking import Tracker
from pspo.trainstate import GENERATOR, generator_tensors, seed_generators, set_generators
from pspo.types import Completion, Group, Problem, samples_of

STEP_PHASES = ("rollout", "grade", "exchange", "check", "learn", "sync")


class Run:
    """Everything of one run that outlives a step. A context manager, which opens its parts and closes them.

    Writes into its directory, which the caller holds (`pspo.rundir`).
    """

    def __init__(self, cfg: TrainConfig, ranks: Ranks, place: Place, stop: Stop | None = None) -> None:
        """`place`: of the run's directory."""
        self.cfg, self.ranks, self.place, self.stop, self.dir = cfg, ranks, place, stop or Stop(), place.path
        self.memory = Memory([{"from_step": 0, "ranks": ranks.size, **provenance()}])
        self.resumed = self.told = False
        self.under_way: int | None = None  # the step that is being sampled ahead
        self.ahead: Drawn | None = None  # what was, of all ranks
        self._clear()

    def __enter__(self) -> Run:
        with ExitStack() as stack:
            self._open(stack)
            self._parts = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._parts.__exit__(*error)

    def _open(self, stack: ExitStack) -> None:
        cfg, started = self.cfg, time.perf_counter()
        self.engines = engines = Engines.of(cfg.rollout, self.ranks)
        prepare(cfg.device, cfg.threads, cfg.deterministic)
        if cfg.model.compile:
            check_compiler(cfg.device)
        checkpoint = starting_checkpoint(cfg)
        if engines.each > 1 and (shape := known_shape(checkpoint)) is not None:
            check_shared(shape, engines.each)
        self.grader = stack.enter_context(Grader(cfg.grading.workers, cfg.grading.timeout))
        if cfg.prompt.style == "math":
            self.grader.start()  # before there is a CUDA context, and while the model is loaded
        self.tokenizer = load_tokenizer(checkpoint)
        self.prompter = make_prompter(cfg.prompt, cfg.data, self.tokenizer)
        self.data = load_parts(cfg, self.prompter)
        self.memory.made_from = self.ranks.from_first(lambda: origins(cfg, checkpoint, self.data), "reading the data")
        if self.ranks.first and (reports := data_reports(cfg)):
            self.place.check()
            write_whole(self.dir / "data.json", json.dumps(reports, indent=1) + "\n")
        longest = cfg.rollout.max_prompt_tokens + max(cfg.rollout.max_new_tokens, cfg.eval.max_new_tokens)
        rollout = cfg.rollout
        if cfg.device == "cuda":
            memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            rollout = planned(cfg, checkpoint, self.ranks, memory / 2**30)
        make = partial(make_sampler, checkpoint, rollout, self.tokenizer, cfg.device, longest, self.prompter.ends)
        self.sampler = self.ranks.together(partial(make, self.ranks), "starting the samplers")
        stack.callback(self.sampler.close)
        self.sampling = Sampling(cfg, engines, self.sampler, self.prompter, self.grader)
        stack.enter_context(self.sampling)
        self.exams = Exams(cfg, engines, self.sampler, self.prompter, self.grader, self.data, self.place.check)
        self.checkpoints = Checkpoints(self.dir / "checkpoints", cfg.steps, self.ranks)
        self.saved = self.checkpoints.newest()
        newest, after = (None, None) if self.saved is None else (self.saved.path, self.saved.step)
        if self.saved is None and self.ranks.first and (lost := self._steps_on_record()) > 0:
            print(f"pspo: {self.dir} begins again, steps 1 to {lost} too: no checkpoint is whole", file=sys.stderr)
        load = partial(make_learner, cfg, checkpoint, self.ranks, newest)
        self.learner = self.ranks.together(load, "loading the policy")
        self.tracker: Tracker | None = None
        self.ranks.together(self.place.check, "loading the policy")
        if self.ranks.first:
            ids = {} if self.saved is None else self.saved.memory["tracker"]
            self.tracker = Tracker(self.dir, cfg, after, ids)
            stack.push(self._close_tracker)
        self.set_up = time.perf_counter() - started

    def _steps_on_record(self) -> int:
        record = self.dir / "metrics.jsonl"
        return record.read_bytes().count(b"\n") - 1 if record.exists() else 0  # the first line is of step 0

    def _close_tracker(self, kind: type[BaseException] | None, *_: object) -> None:
        """A run that was told to stop between two steps leaves its block without an error, with all ranks together."""
        assert self.tracker is not None
        self.tracker.__exit__(Stopped if kind is None and self.told else kind)

    def _clear(self) -> None:
        """What belongs to one step."""
        self.metrics: dict[str, float] = {}
        self.sampled: list[Group] = []  # of all ranks, those that were replaced included
        self.grades: list[Grade] = []  # of their completions
        self.rewards: list[float] = []  # of the same
        self.no_signal: list[bool] = []  # of these groups
        self.grading: list[Future[list[Grade]]] = []  # of this rank's groups since the last reward
        self.sampling_s = 0.0  # that this rank's engine took, beside the learner too
        self.learning: Batch | None = None
        self.updates: list[UpdateStats] = []  # of this rank's share
        self.learned_tokens = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def resume(self) -> int:
        """The number of steps that are done: 0, or those of the newest checkpoint, whose state everything is in again.

        From here on the run stops between two steps only (`save`).
        """
        rank, device = self.ranks.rank, self.learner.model.device
        seed_generators(derive(self.cfg.seed, "generators", rank), device)
        if self.saved is not None:
            self._restore(self.saved, device)
        self.memory.add_seconds("set_up", self.set_up)
        self.stop.wait()
        return 0 if self.saved is None else self.saved.step

    def _restore(self, saved: Saved, device: torch.device) -> None:
        def into(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
            mine = name.startswith(GENERATOR) and name.endswith(f".{self.ranks.rank}")
            return torch.empty(shape, dtype=dtype) if mine else self.learner.blank(name, shape, dtype)

        state = self.checkpoints.read(saved, into)
        self.learner.load_training_state(state)
        now, self.memory = self.memory, Memory.read(saved.memory)
        before = self.memory.made_from
        if changed := [what for what in now.made_from if before.get(what, now.made_from[what]) != now.made_from[what]]:
            raise PspoError(
                f"{self.dir} cannot go on: {' and '.join(changed)} are not those it began with; put them back, or name "
                "another run_dir"
            )
        [here] = now.made_with
        others = self.memory.goes_on_with(here, saved.step)
        self.ranks.together(partial(self.sampler.load, read_weights(saved.path)), "handing the weights to the samplers")
        set_generators(self.ranks.rank, device, state)
        if self.memory.ahead:
            again = partial(self.sampling.again, self.memory.ahead, self._problems_of(saved.step + 1))
            self.ahead, self.memory.ahead = self.ranks.together(again, "reading what was sampled ahead"), {}
        self.resumed = True
        if self.ranks.first:
            unlike = f", perhaps not with the same bits: it has another {others}" if others else ""
            print(f"pspo: {self.dir} goes on after step {saved.step}{unlike}", file=sys.stderr, flush=True)

    # --- the step --------------------------------------------------------------------------------------------------

    def problems(self, step: int) -> list[Problem]:
        """P problems, in epochs without repetition; they depend on seed and step alone."""
        self.step_started = time.perf_counter()
        return self._problems_of(step)

    def _problems_of(self, step: int) -> list[Problem]:
        return problems_of_step(self.data.train, self.cfg.seed, step, self.cfg.rollout.prompts)

    def sample(self, problems: Sequence[Problem], step: int) -> list[Group]:
        """G completions for each problem: those that were sampled ahead for this step, or by the policy as it is.

        A group is handed to the grader as soon as it is finished, while the others are still being sampled.
        """
        drawn, self.ahead = self.ahead, None
        if drawn is None:
            with self.clock("rollout"), self.engines.sampling(f"sampling of step {step}"):
                drawn = self.sampling.draw(problems, step)
            drawn = self._exchanged(drawn, step)
        self.grading = drawn.grading
        self.sampling_s += drawn.seconds
        self.sampled += drawn.groups
        return drawn.groups

    def _exchanged(self, mine: Drawn, step: int) -> Drawn:
        """The groups of all ranks; grades stay with the rank that has sent for them."""
        with self.clock("exchange"):
            return replace(mine, groups=self.engines.gather(mine.groups, f"exchange of groups of step {step}"))

    def sample_ahead(self, step: int) -> None:
        """Off by default (rollout.ahead): begins to sample what step `step` learns from, by the policy as it is now,
        while the learner goes on; `sync` waits for it.

        Where sampler and learner have to be compared, it is waited for at once: as long as the learner has not moved.
        """
        if not self.cfg.rollout.ahead or step > self.cfg.steps:
            return
        self.sampling.start(self._problems_of(step), step)
        self.under_way = step
        if self.resumed or (self.memory.checks_left and self.memory.moved):
            self._wait_for_ahead()
            assert self.ahead is not None
            self._compare(self.ahead.groups, step)

    def _wait_for_ahead(self) -> None:
        if self.under_way is None:
            return
        step, self.under_way = self.under_way, None
        with self.clock("rollout"), self.ranks.doing(f"sampling of step {step}"):
            drawn = self.sampling.wait()
        self.ahead = self._exchanged(drawn, step)

    def sleep_sampler(self) -> None:
        """Off by default (rollout.vllm.sleep): gives the learner the memory of the sampler, until `sync`."""
        with self.clock("sync"):
            self.sampler.sleep()

    def demonstrate(self, problems: Sequence[Problem]) -> list[Group]:
        """The data set's own solution of each problem as a group of one, which nobody sampled. Raises PspoError for a
        problem without one; cut, without its end, at the limit of new tokens."""
        most, groups = self.cfg.rollout.max_new_tokens, list[Group]()
        for problem, prompt in zip(
            problems, prompts_of(problems, self.prompter, self.cfg.rollout.max_prompt_tokens), strict=True
        ):
            if not problem.solution.strip():
                raise PspoError(f"problem {problem.id} has no worked solution to learn from")
            ids = self.prompter.encode_solution(problem.solution)
            unknown = (math.nan,) * len(ids[:most])
            completion = Completion(ids[:most], unknown, problem.solution, finished=len(ids) <= most)
            groups.append(Group(problem, prompt, (completion,)))
        self.metrics |= length_metrics(groups)
        return groups

    def reward(self, groups: Sequence[Group], step: int) -> Tensor:
        """Rewards [P, G]; by default 1 for a right answer in a completion that ended by itself, else 0."""
        with self.clock("grade"):
            mine = [graded.result() for graded in self.grading]
        with self.clock("exchange"):
            graded = self.engines.gather(mine, "exchange of grades")
        grades = [grade for of_a_group in graded for grade in of_a_group]
        self.grades += grades
        rewards = rewards_of(groups, grades, self.cfg.reward, derive(self.cfg.seed, "reward", step))
        self.rewards += rewards.flatten().tolist()
        self.no_signal += (~has_signal(rewards)).tolist()
        return rewards

    def refill(self, groups: list[Group], rewards: Tensor, step: int) -> tuple[list[Group], Tensor]:
        """Groups whose rewards are all equal, replaced by groups of other problems, rollout.refill times at most."""
        groups, rewards = list(groups), rewards.clone()
        taken = [group.problem for group in groups]
        spare = spare_problems(self.data.train, taken, derive(self.cfg.seed, "spare", step))
        for _ in range(self.cfg.rollout.refill):
            empty = (~has_signal(rewards)).nonzero().flatten().tolist()
            problems = list(islice(spare, len(empty)))
            if not problems:
                break
            fresh = self.sample(problems, step)
            empty = empty[: len(fresh)]
            rewards[empty] = self.reward(fresh, step)
            for place, group in zip(empty, fresh, strict=True):
                groups[place] = group
        return groups, rewards

    def batch(self, groups: Sequence[Group], advantages: Tensor, rewards: Tensor | None) -> Batch:
        """What the step learns from: without groups that give no gradient, unless the config keeps them or nothing was
        rewarded (None)."""
        inner = self.cfg.learner
        every_group_counts = rewards is None or inner.kl_coef or inner.entropy_bonus or not inner.drop_no_signal
        kept = torch.ones(len(groups), dtype=torch.bool) if every_group_counts else has_signal(rewards)  # type: ignore[arg-type]
        chosen = kept.nonzero().flatten().tolist()
        self.metrics["optim/groups"] = len(chosen)
        self.learning = self._batch_of([groups[k] for k in chosen], advantages[kept].tolist())
        return self.learning

    def _batch_of(self, groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> Batch:
        return Batch.of(samples_of(groups, advantages), self.learner.model.device)

    def check(self, groups: Sequence[Group], step: int) -> None:
        """Do sampler and learner hold the same policy? On the first batch, and on the first after new weights.

        Also after a resume, which leaves no trace in the metrics. Raises MismatchError where ratios would not start
        near 1, with the causes that we have seen. Groups that were sampled ahead are of an older policy, and are
        compared when they are sampled.
        """
        if not self.cfg.rollout.ahead or not self.memory.moved:
            on_record = self.memory.checks_left > 0
            found = self._compare(groups, step)
            self.metrics |= found if on_record else {}

    def _compare(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """gap/* of groups that the sampler has drawn from the policy as it is now; {} where no comparison is due."""
        due = self.memory.checks_left > 0
        if not (due or self.resumed):
            return {}
        with self.clock("check"):
            batch = self._batch_of(groups, [[0.0] * len(group.completions) for group in groups])
            found = gap_metrics(self.learner.log_probs(batch, range(len(batch))) - batch.sampler)
        deviation, allowed = found["gap/abs_dev_mean"], self.cfg.rollout.max_gap
        if not deviation <= allowed:  # so that a gap that is not a number stops the run as well
            raise MismatchError(
                f"on the batch of step {step} the learner's ratios to the sampler have mean |r - 1| = {deviation:.2g}, "
                f"above rollout.max_gap={allowed}: they would not start at 1. Causes seen: weights or tokenizer that "
                "differ between the two, a temperature that one of them does not apply, new weights that do not reach "
                "the sampler, rollout.dtype=bfloat16 beside model.dtype=float32"
            )
        self.resumed = False
        if due and (self.memory.checks_left == 2 or self.memory.moved):
            self.memory.checks_left -= 1
        return found

    def fix_old_log_probs(self, batch: Batch, passes: Sequence[Sequence[Sequence[int]]]) -> None:
        """Log-probs of every completion token under the policies that do not move during the step.

        batch.old        that in the denominator of the ratios: the sampler's word, or the learner's before its first
                         update. The first minibatch needs no pass of its own: it meets the policy unmoved
        batch.reference  the starting policy's, for a KL term
        """
        everything = range(len(batch))
        first = passes[0][0] if len(batch) else []
        with self.clock("learn"):
            if self.cfg.learner.kl_coef:
                batch.reference = self.learner.reference_log_probs(batch)
            if self.cfg.learner.old_log_probs == "sampler":
                batch.old = batch.sampler.clone()
            else:
                batch.old = self.learner.log_probs(batch, sorted(set(everything) - set(first)))
                batch.before = batch.old.clone()

    def update(self, batch: Batch, part: Sequence[int], step: int) -> None:
        """One optimiser update over a minibatch. Saves what is needed to look into a non-finite one, and raises it."""
        cfg = self.cfg.learner
        number = (step - 1) * cfg.passes * cfg.minibatches + len(self.updates)
        try:
            with self.clock("learn"):
                stats = self.learner.update(batch, part, number)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step}: {error}. {self._evidence(batch, part, step)}") from error
        self.metrics["optim/lr"] = learning_rate(cfg, number, self.cfg.updates)
        self.updates.append(stats)
        self.memory.moved = True
        self.learned_tokens += batch.sequence_tokens(part)

    def _evidence(self, batch: Batch, part: Sequence[int], step: int) -> str:
        """Saves the policy before a non-finite update, and its minibatch; says where, or why not."""
        evidence = self.dir / "nonfinite" / f"step-{step}"
        try:
            self.ranks.together(self.place.check, f"writing {evidence}")
            with self.ranks.expecting("gathering the weights for a look at them"):
                weights = self.learner.state_dict(keep=self.ranks.first)
            save = partial(save_policy, self.learner.model, self.tokenizer, evidence, weights)
            self.ranks.from_first(save, f"writing {evidence}")
            if self.ranks.first:
                write_whole(evidence / "minibatch.json", json.dumps(batch.rows(part)))
        except PeerError:
            raise
        except (OSError, PspoError) as failed:
            return f"What led to it could not be saved: {failed}"
        return f"Policy before the update and its minibatch: {evidence}"

    def sync(self) -> None:
        """Streams the learner's weights into the sampler. Raises NonFiniteError where an update destroyed them."""
        self._wait_for_ahead()
        with self.clock("sync"), self.ranks.expecting("handing the weights to the samplers"):
            if self.updates:
                self.learner.check_weights()
            if self.sampler.asleep:
                self.learner.release()
            if self.updates or self.sampler.asleep:
                self.sampler.load(self.learner.weights())

    # --- evaluation, records, checkpoints ----------------------------------------------------------------------------

    def evaluate(self, step: int) -> None:
        """At the steps that are due: accuracy on the validation part."""
        every = self.cfg.eval.every
        if every > 0 and (step % every == 0 or step == self.cfg.steps):
            with self.clock("eval"):
                found = self.exams.validate()
            self.memory.validated[step] = found["accuracy"]
            self.metrics |= {
                "eval/validation_accuracy": found["accuracy"],
                "eval/validation_truncated_share": found["truncated_share"],
            }

    def log(self, step: int) -> None:
        """Writes the step's metrics; step 0 is before training."""
        if step > 0:
            self.metrics |= self._step_metrics()
            whole = time.perf_counter() - self.step_started - self.seconds["eval"]
            self.metrics["time/step_s"] = whole
            self.metrics["time/other_s"] = whole - sum(self.seconds[phase] for phase in STEP_PHASES)
        self.metrics |= {f"time/{phase}_s": seconds for phase, seconds in self.seconds.items()}
        self._add_up_seconds()
        if self.tracker is not None:
            self.tracker.log(step, self.metrics)
        self._clear()

    def _step_metrics(self) -> dict[str, float]:
        """Of everything that was sampled and learned in the step, all ranks together."""
        tokens = sum(len(completion.token_ids) for group in self.sampled for completion in group.completions)
        found = {"speed/learn_tokens_per_s": self.learned_tokens / max(self.seconds["learn"], 1e-9)}
        if self.sampled:
            found |= rollout_metrics(self.sampled, self.grades) | {
                "reward/mean": sum(self.rewards) / len(self.rewards),
                "reward/no_signal_share": sum(self.no_signal) / len(self.no_signal),
                "rollout/refilled_groups": len(self.sampled) - self.cfg.rollout.prompts,
                "speed/rollout_tokens_per_s": tokens / max(self.sampling_s, 1e-9),
            }
        if self.learning is not None and "gap/abs_dev_mean" not in self.metrics:  # a check has said it of all groups
            found |= gap_metrics(self.learning.before - self.learning.sampler)
        shares = self.ranks.gather(UpdateStats.total(self.updates), "exchange of statistics")
        # every rank has counted each update, and its gradient's norm, which is that of all ranks together
        whole = replace(UpdateStats.total(shares), updates=shares[0].updates, grad_norm=shares[0].grad_norm)
        return found | update_metrics(whole, self.cfg.learner)

    def save(self, step: int) -> bool:
        """Saves what the next step depends on where that is due. True where the run has been told to stop, on any rank.

        What there is to save is small because it is saved here: no batch is under way, and what a step takes follows
        from its number.
        """
        self.told = self._told_to_stop(step)
        best = step == self.best_step and step in self.memory.validated
        if self.told or best or step % self.cfg.saving.every == 0 or step == self.cfg.steps:
            with self.clock("save"):  # counted with the next step: this one is on record
                self._checkpoint(step)
        return self.told

    def _told_to_stop(self, step: int) -> bool:
        """Decided by what all ranks have said; what this one is told meanwhile waits for the next step."""
        told = next(filter(None, self.ranks.gather(self.stop.asked, f"the end of step {step}")), None)
        self.stop.asked = self.stop.asked or told
        return told is not None

    def _checkpoint(self, step: int) -> None:
        with self.ranks.expecting(f"gathering the weights of step-{step}"):
            weights = self.learner.state_dict(keep=self.ranks.first)

        def write(directory: Path) -> None:
            write_policy(self.learner.model, self.tokenizer, directory, weights)

        self.ranks.together(self.place.check, f"the end of step {step}")
        if self.tracker is not None:
            self.memory.tracker = self.tracker.ids()
        self.memory.ahead = {} if self.ahead is None else as_json(self.ahead)
        generators = generator_tensors(self.ranks.rank, self.learner.model.device)
        self.checkpoints.save(step, write, self.learner.training_state() | generators, self.memory.to_json())
        self.checkpoints.prune(step, self.cfg.saving.keep, self.best_step)

    @property
    def best_step(self) -> int:
        """The step of the highest validation accuracy, the earliest of equals; the last where none was validated."""
        trained = {step: accuracy for step, accuracy in self.memory.validated.items() if step > 0}
        return max(trained, key=lambda step: (trained[step], -step), default=self.cfg.steps)

    def finish(self) -> None:
        """Grades the last and the best policy on the test part, writes summary.json, and DONE last."""
        self.stop.at_once()  # all is saved, and the test part is graded by the chunk
        found: dict[str, dict[str, Any]] = {}
        if self.cfg.eval.at_end:
            path, last, best = self.dir / "eval" / f"{self.cfg.data.name}.jsonl", self.cfg.steps, self.best_step
            with self.clock("test"):
                self.ranks.together(self.place.check, "the last evaluation")
                found["last"] = self.exams.test(self.checkpoints.at(last), path)
                if self.memory.validated:  # without validation no step is the best one
                    self.ranks.together(self.place.check, "the last evaluation")
                    directory = self.checkpoints.policy(best)
                    if best != last:
                        load = partial(self.sampler.load, read_weights(directory))
                        self.ranks.together(load, "loading the best policy")
                    found["best"] = self.exams.test(directory, path.with_suffix(".best.jsonl"))
        self._add_up_seconds()
        result = {
            "run_dir": str(self.dir),
            "steps": self.cfg.steps,
            "ranks": self.ranks.size,
            "best_step": self.best_step,
            "validation": {str(step): accuracy for step, accuracy in self.memory.validated.items()},
            "test": found,
            "seconds": self.memory.seconds,
            "provenance": provenance(),
            "made_with": self.memory.made_with,
        }
        if self.ranks.first:
            self.place.check()
            write_whole(self.dir / "summary.json", json.dumps(result, indent=1) + "\n")
        self.checkpoints.prune(self.cfg.steps, 1, self.best_step)
        self.checkpoints.strip()
        if self.ranks.first:
            self.place.check()
            write_whole(self.dir / "DONE", "")

    def _add_up_seconds(self) -> None:
        for phase, seconds in self.seconds.items():
            self.memory.add_seconds(phase, seconds)

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Adds the seconds of a block to a phase; on a GPU waits for the kernels of the block."""
        started = time.perf_counter()
        yield
        if self.cfg.device == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - started

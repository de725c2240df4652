"""A training run: its parts, and the steps that `pspo.train` is written in.

    problems -> sample -> reward -> old_log_probs -> update ... -> sync -> log -> evaluate

Files of a run: docs/files.md. Imports: all rooms below the loop.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pspo.advantages import has_signal
from pspo.config import TrainConfig, run_dir_of
from pspo.data import load_tokenizer, make_prompter
from pspo.errors import MismatchError, NonFiniteError
from pspo.evalfile import EvalFile, evaluate_to_file, identity_of, weights_digest
from pspo.evaluation import Protocol, evaluate, prompts_of, stop_if_not_finite
from pspo.files import write_whole
from pspo.grading import STATUSES, Grade, Grader
from pspo.learner import Learner, learning_rate
from pspo.models import load_policy, read_weights, save_policy
from pspo.objective import UpdateStats
from pspo.provenance import provenance
from pspo.rollout import Decoding, make_sampler
from pspo.scores import scores
from pspo.seeds import derive
from pspo.startup import data_reports, load_parts, prepare, starting_checkpoint
from pspo.surrogates import from_config
from pspo.tracking import Tracker
from pspo.types import Completion, Group, Problem, Sample

STEP_PHASES = ("rollout", "grade", "check", "learn", "sync")


class Run:
    """Everything of one run that outlives a step. A context manager, which opens its parts and closes them.

    Writes into `run_dir_of(cfg)`, which the caller holds (`pspo.rundir`).
    """

    def __init__(self, cfg: TrainConfig) -> None:
        self.cfg, self.dir = cfg, run_dir_of(cfg)
        self.total_seconds: defaultdict[str, float] = defaultdict(float)
        self.validated: dict[int, float] = {}
        self.checks_left = 2  # of sampler against learner: on the first batch, and on the first with new weights
        self.moved = False
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
        prepare(cfg.device, cfg.threads)
        checkpoint = starting_checkpoint(cfg)
        self.grader = stack.enter_context(Grader(cfg.grading.workers, cfg.grading.timeout))
        if cfg.prompt.style == "math":
            self.grader.start()  # before there is a CUDA context, and while the model is loaded
        self.tokenizer = load_tokenizer(checkpoint)
        self.prompter = make_prompter(cfg.prompt, cfg.data, self.tokenizer)
        self.data = load_parts(cfg, self.prompter)
        if reports := data_reports(cfg):
            write_whole(self.dir / "data.json", json.dumps(reports, indent=1) + "\n")
        longest = cfg.rollout.max_prompt_tokens + max(cfg.rollout.max_new_tokens, cfg.eval.max_new_tokens)
        self.sampler = make_sampler(checkpoint, cfg.rollout, self.tokenizer, cfg.device, longest, self.prompter.ends)
        stack.callback(self.sampler.close)
        # Weights in fp32 whatever the dtype of the computation: a step of 5e-7 is lost in a bf16 weight.
        model = load_policy(checkpoint, dtype="float32", attention=cfg.model.attention, device=cfg.device)
        self.learner = Learner(
            model.train(),
            from_config(cfg.surrogate),
            cfg.learner,
            compute_dtype=cfg.model.dtype,
            temperature=cfg.rollout.temperature,
            max_tokens=cfg.rollout.max_new_tokens,
            planned_updates=cfg.updates,
        )
        self.tracker = stack.enter_context(Tracker(self.dir, cfg))
        self.total_seconds["set_up"] = time.perf_counter() - started

    def _clear(self) -> None:
        """What belongs to one step."""
        self.metrics: dict[str, float] = {}
        self.grading: list[Future[list[Grade]]] = []  # of each group, in order
        self.updates: list[UpdateStats] = []
        self.learned_tokens = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)

    # --- the step --------------------------------------------------------------------------------------------------

    def problems(self, step: int) -> list[Problem]:
        """P problems, in epochs without repetition; they depend on seed and step alone."""
        self.step_started = time.perf_counter()
        size, total = self.cfg.rollout.prompts, len(self.data.train)
        places = range((step - 1) * size, step * size)
        return [self.data.train[epoch_order(self.cfg.seed, place // total, total)[place % total]] for place in places]

    def sample(self, problems: Sequence[Problem], step: int) -> list[Group]:
        """G completions for each problem, with seeds derived from run seed, step and problem.

        A group is handed to the grader as soon as it is finished, while the others are still being sampled.
        """
        rollout = self.cfg.rollout
        prompts = prompts_of(problems, self.prompter, rollout.max_prompt_tokens)
        seeds = [derive(self.cfg.seed, "rollout", step, problem.id) for problem in problems]
        decoding = Decoding(rollout.max_new_tokens, rollout.temperature, rollout.top_p, rollout.group_size)
        drawn: dict[int, tuple[Completion, ...]] = {}
        grading: dict[int, Future[list[Grade]]] = {}
        with self.clock("rollout"):
            for index, completions in self.sampler.stream(prompts, seeds, decoding):
                stop_if_not_finite(completions)
                drawn[index] = tuple(completions)
                gold, style = problems[index].gold, self.prompter.style
                grading[index] = self.grader.submit([(c.text, gold, style) for c in completions])
        order = range(len(problems))
        self.grading = [grading[index] for index in order]
        groups = [Group(problems[index], prompts[index], drawn[index]) for index in order]
        lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
        cut = [not completion.finished for group in groups for completion in group.completions]
        self.metrics |= {
            "length/mean": sum(lengths) / len(lengths),
            "length/max": max(lengths),
            "length/truncated_share": sum(cut) / len(cut),
            "speed/rollout_tokens_per_s": sum(lengths) / self.seconds["rollout"],
        }
        return groups

    def reward(self, groups: Sequence[Group]) -> Tensor:
        """Rewards [P, G]: 1 for a right answer in a completion that ended by itself, else 0."""
        with self.clock("grade"):
            grades = [grade for graded in self.grading for grade in graded.result()]
        ended = [completion.finished for group in groups for completion in group.completions]
        right = [float(grade.correct and end) for grade, end in zip(grades, ended, strict=True)]
        rewards = torch.tensor(right).view(len(groups), -1)
        self.metrics |= {
            "reward/mean": float(rewards.mean()),
            "accuracy/train": float(rewards.mean()),
            "reward/no_signal_share": 1 - float(has_signal(rewards).float().mean()),
            "accuracy/train_lenient": sum(g.lenient and end for g, end in zip(grades, ended, strict=True))
            / len(grades),
            **{f"grade/{status}_share": share(grades, status) for status in STATUSES},
        }
        return rewards

    def with_signal(self, samples: list[Sample], rewards: Tensor) -> list[Sample]:
        """The samples to learn from: without groups whose rewards are all equal, unless the config keeps them."""
        if not self.cfg.learner.drop_no_signal:
            return samples
        kept = has_signal(rewards).repeat_interleave(rewards.shape[1]).tolist()
        return [sample for sample, keep in zip(samples, kept, strict=True) if keep]

    def check(self, samples: Sequence[Sample], step: int) -> None:
        """Do sampler and learner hold the same policy? On the first batch, and on the first after new weights.

        Raises MismatchError where ratios would not start near 1, with the causes that we have seen.
        """
        if not self.checks_left:
            return
        with self.clock("check"):
            self.metrics |= gap(self.learner.log_probs(samples), [sample.sampler_log_probs for sample in samples])
        found, allowed = self.metrics["gap/abs_dev_mean"], self.cfg.rollout.max_gap
        if not found <= allowed:  # written so that a gap that is not a number stops the run as well
            raise MismatchError(
                f"on the batch of step {step} the learner's ratios to the sampler have mean |r - 1| = {found:.2g}, "
                f"above rollout.max_gap={allowed}: they would not start at 1. Causes seen: weights or tokenizer that "
                "differ between the two, a temperature that one of them does not apply, new weights that do not reach "
                "the sampler, rollout.dtype=bfloat16 beside model.dtype=float32"
            )
        if self.checks_left == 2 or self.moved:
            self.checks_left -= 1

    def old_log_probs(self, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        """Log-probs of every completion token under the policy that the ratios are taken against."""
        sampled = [sample.sampler_log_probs for sample in samples]
        if self.cfg.learner.old_log_probs == "sampler" or not samples:
            return sampled  # the gap is that of the first update: the policy has not moved before it
        with self.clock("learn"):
            learned = self.learner.log_probs(samples)
        self.metrics |= gap(learned, sampled)
        return learned

    def update(self, samples: Sequence[Sample], old: Sequence[Sequence[float]], step: int) -> None:
        """One optimiser update over a minibatch. Saves what is needed to look into a non-finite one, and raises it."""
        cfg = self.cfg.learner
        number = (step - 1) * cfg.passes * cfg.minibatches + len(self.updates)
        try:
            with self.clock("learn"):
                stats = self.learner.update(samples, old, number)
        except NonFiniteError as error:
            evidence = self.dir / "nonfinite" / f"step-{step}"
            save_policy(self.learner.model, self.tokenizer, evidence)
            rows = [{**asdict(sample), "old_log_probs": list(row)} for sample, row in zip(samples, old, strict=True)]
            (evidence / "minibatch.json").write_text(json.dumps(rows))
            raise NonFiniteError(
                f"step {step}: {error}. Policy before the update and its minibatch: {evidence}"
            ) from error
        if not self.updates and "gap/abs_dev_mean" not in self.metrics:
            self.metrics |= {
                "gap/abs_dev_mean": stats.abs_dev / stats.tokens,
                "gap/log_prob_max": stats.max_abs_log_ratio,
            }
        self.metrics["optim/lr"] = learning_rate(cfg, number, self.cfg.updates)
        self.updates.append(stats)
        self.moved = True
        self.learned_tokens += sum(len(sample) for sample in samples)

    def sync(self) -> None:
        """Streams the learner's weights into the sampler."""
        with self.clock("sync"):
            self.sampler.load(self.learner.weights())

    # --- evaluation and checkpoints ----------------------------------------------------------------------------------

    def evaluate(self, step: int) -> None:
        """At the steps that are due: accuracy on the validation part. Keeps the best policy so far, and the last."""
        every = self.cfg.eval.every
        due = every > 0 and (step % every == 0 or step == self.cfg.steps)
        if due:
            with self.clock("eval"):
                records = evaluate(self.sampler, self.prompter, self.grader, self.data.validation, self.protocol)
            found = scores(records, self.prompter.style)
            self.validated[step] = found["accuracy"]
            self.metrics |= {
                "eval/validation_accuracy": found["accuracy"],
                "eval/validation_truncated_share": found["truncated_share"],
            }
        if step == self.cfg.steps or (due and step > 0 and self.best_step == step):
            with self.clock("save"):
                self._checkpoint(step)

    def log(self, step: int) -> None:
        """Writes the step's metrics; step 0 is before training."""
        if step > 0:
            self.metrics |= update_metrics(UpdateStats.total(self.updates))
            self.metrics["speed/learn_tokens_per_s"] = self.learned_tokens / max(self.seconds["learn"], 1e-9)
            whole = time.perf_counter() - self.step_started - self.seconds["eval"] - self.seconds["save"]
            self.metrics["time/step_s"] = whole
            self.metrics["time/other_s"] = whole - sum(self.seconds[phase] for phase in STEP_PHASES)
        self.metrics |= {f"time/{phase}_s": seconds for phase, seconds in self.seconds.items()}
        for phase, seconds in self.seconds.items():
            self.total_seconds[phase] += seconds
        self.tracker.log(step, self.metrics)
        self._clear()

    @property
    def best_step(self) -> int:
        """The step of the highest validation accuracy, the earliest of equals; the last where none was validated."""
        trained = {step: accuracy for step, accuracy in self.validated.items() if step > 0}
        return max(trained, key=lambda step: (trained[step], -step), default=self.cfg.steps)

    def finish(self) -> None:
        """Grades the last and the best policy on the test part, writes summary.json, and DONE last."""
        found: dict[str, dict[str, Any]] = {}
        if self.cfg.eval.at_end:
            with self.clock("test"):
                found["last"] = self._test(self.cfg.steps, "")
                if self.validated:  # without validation no step is the best one
                    if self.best_step != self.cfg.steps:
                        self.sampler.load(read_weights(self._step_dir(self.best_step)))
                    found["best"] = self._test(self.best_step, ".best")
            self.total_seconds["test"] = self.seconds["test"]
        result = {
            "run_dir": str(self.dir),
            "steps": self.cfg.steps,
            "best_step": self.best_step,
            "validation": {str(step): accuracy for step, accuracy in self.validated.items()},
            "test": found,
            "seconds": dict(self.total_seconds),
            "provenance": provenance(),
        }
        (self.dir / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
        (self.dir / "DONE").touch()

    @property
    def protocol(self) -> Protocol:
        """T=0, one completion a problem."""
        decoding = Decoding(self.cfg.eval.max_new_tokens, temperature=0.0)
        return Protocol(decoding, self.cfg.rollout.max_prompt_tokens, self.cfg.seed)

    def _test(self, step: int, which: str) -> dict[str, Any]:
        """Scores of the sampler's policy, which is that of `step`, on the test part; written to the run's eval/."""
        cfg, chunk, problems = self.cfg, self.cfg.eval.chunk, self.data.test
        checkpoint, protocol = self._step_dir(step), self.protocol
        weights = weights_digest(checkpoint)
        made_of = identity_of(weights, cfg.rollout, cfg.device, self.prompter, problems, protocol, chunk)
        about = {
            "checkpoint": str(checkpoint),
            "benchmark": cfg.data.name,
            "split": "test",
            "prompt": self.prompter.described(problems[0].question),
        }
        file = EvalFile(self.dir / "eval" / f"{cfg.data.name}{which}.jsonl", made_of, about)
        records = evaluate_to_file(file, lambda: self.sampler, self.prompter, self.grader, problems, protocol, chunk)
        return scores(records, self.prompter.style)

    def _checkpoint(self, step: int) -> None:
        """Saves the policy and lets go of all earlier ones but the best."""
        save_policy(self.learner.model, self.tokenizer, self._step_dir(step))
        for other in self._step_dir(step).parent.glob("step-*"):
            if other.name not in (f"step-{step}", f"step-{self.best_step}"):
                shutil.rmtree(other)

    def _step_dir(self, step: int) -> Path:
        return self.dir / "checkpoints" / f"step-{step}"

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Adds the seconds of a block to a phase; on a GPU waits for the kernels of the block."""
        started = time.perf_counter()
        yield
        if self.cfg.device == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - started


@lru_cache(maxsize=1)
def epoch_order(seed: int, epoch: int, total: int) -> tuple[int, ...]:
    """The order of the training problems in an epoch."""
    order = list(range(total))
    random.Random(derive(seed, "epoch", epoch)).shuffle(order)
    return tuple(order)


def gap(learned: Sequence[Sequence[float]], sampled: Sequence[Sequence[float]]) -> dict[str, float]:
    """How far the learner's log-probs are from the sampler's, over all tokens."""
    pairs = [pair for rows in zip(learned, sampled, strict=True) for pair in zip(*rows, strict=True)]
    differences = [a - b for a, b in pairs]
    return {
        "gap/abs_dev_mean": sum(abs(math.expm1(min(d, 20.0))) for d in differences) / max(1, len(differences)),
        "gap/log_prob_max": max((abs(d) for d in differences), default=0.0),
    }


def share(grades: Sequence[Grade], *statuses: str) -> float:
    """Share of the grades that have one of the statuses."""
    return sum(grade.status in statuses for grade in grades) / len(grades)


def update_metrics(stats: UpdateStats) -> dict[str, float]:
    """The step's updates as metrics: means over tokens, over tokens with an advantage, or over updates."""
    if not stats.updates:  # no group gave a signal: there is nothing to take a mean of
        return {"optim/updates": 0.0}
    tokens, signal, updates = stats.tokens, max(stats.signal, 1), stats.updates
    return {
        "ratio/abs_dev_mean": stats.abs_dev / tokens,
        "ratio/max": stats.max_ratio,
        "ratio/clamped_share": stats.clamped / tokens,
        "slope/zero_share": stats.zero_slope / signal,
        "slope/small_share": stats.small_slope / signal,
        "kl/k1": stats.k1 / tokens,
        "kl/k3": stats.k3 / tokens,
        "policy/entropy": stats.entropy / tokens,
        "optim/loss": stats.loss / updates,
        "optim/grad_norm": stats.grad_norm / updates,
        "optim/updates": stats.updates,
    }

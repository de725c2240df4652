"""A training run: its parts, and the steps that `pspo.train` is written in.

    problems -> sample -> reward -> old_log_probs -> update ... -> sync -> log -> evaluate

Files of a run: docs/files.md. Imports: all rooms below the loop.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pspo.advantages import has_signal
from pspo.config import TrainConfig, load_yaml, run_dir_of, warm_start_dir
from pspo.config.compose import NOT_IN_RUN_ID, config_hash
from pspo.data import encode_prompt, load_problems, load_tokenizer
from pspo.errors import ConfigError, MismatchError, NonFiniteError, PspoError
from pspo.evaluation import Protocol, evaluate, summary, write_records
from pspo.grading import Grade, Grader
from pspo.learner import Learner, learning_rate
from pspo.models import load_policy, local_checkpoint, read_weights, save_policy
from pspo.objective import UpdateStats
from pspo.rollout import make_sampler
from pspo.seeds import derive
from pspo.surrogates import from_config
from pspo.tracking import Tracker
from pspo.types import Group, Problem, Sample

STEP_PHASES = ("rollout", "grade", "learn", "sync")


class Run:
    """Everything of one run that outlives a step. A context manager.

    `done` is True where the run directory already holds this run, finished; then nothing is loaded. A run that was cut
    off starts afresh. Raises ConfigError where the directory holds another run.
    """

    def __init__(self, cfg: TrainConfig) -> None:
        self.cfg, self.dir = cfg, run_dir_of(cfg)
        self.done = claim(self.dir, cfg)
        if self.done:
            print(f"{self.dir} is complete", file=sys.stderr)
            return
        started = time.perf_counter()
        limit_threads(cfg.threads)
        checkpoint = starting_checkpoint(cfg)
        self.tokenizer = load_tokenizer(checkpoint)
        self.training = load_problems(cfg.data, "train", cfg.seed)
        self.validation = load_problems(cfg.data, "validation", cfg.seed)[: cfg.eval.validation_problems]
        self.grader = Grader()
        longest = cfg.rollout.max_prompt_tokens + max(cfg.rollout.max_new_tokens, cfg.eval.max_new_tokens)
        self.sampler = make_sampler(checkpoint, cfg.rollout, self.tokenizer, cfg.device, longest)
        model = load_policy(checkpoint, dtype=cfg.model.dtype, attention=cfg.model.attention, device=cfg.device)
        self.learner = Learner(
            model.train(),
            from_config(cfg.surrogate),
            cfg.learner,
            temperature=cfg.rollout.temperature,
            max_tokens=cfg.rollout.max_new_tokens,
            planned_updates=cfg.updates,
        )
        self.tracker = Tracker(self.dir, cfg)
        self._clear()
        self.total_seconds: defaultdict[str, float] = defaultdict(float, set_up=time.perf_counter() - started)
        self.validated: dict[int, float] = {}

    def _clear(self) -> None:
        """What belongs to one step."""
        self.metrics: dict[str, float] = {}
        self.updates: list[UpdateStats] = []
        self.learned_tokens = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self.done:
            self.tracker.__exit__(kind, error, trace)
            self.grader.close()
            self.sampler.close()

    # --- the step --------------------------------------------------------------------------------------------------

    def problems(self, step: int) -> list[Problem]:
        """P problems, in epochs without repetition; they depend on seed and step alone."""
        size, total = self.cfg.rollout.prompts, len(self.training)
        places = range((step - 1) * size, step * size)
        return [self.training[epoch_order(self.cfg.seed, place // total, total)[place % total]] for place in places]

    def sample(self, problems: Sequence[Problem], step: int) -> list[Group]:
        """G completions for each problem, with seeds derived from run seed, step and problem."""
        rollout = self.cfg.rollout
        prompts = [encode_prompt(self.cfg.prompt, self.tokenizer, problem.question) for problem in problems]
        for problem, prompt in zip(problems, prompts, strict=True):
            if len(prompt) > rollout.max_prompt_tokens:
                needed = f"problem {problem.id} has a prompt of {len(prompt)} tokens"
                raise ConfigError("rollout.max_prompt_tokens", rollout.max_prompt_tokens, needed)
        with self.clock("rollout"):
            drawn = self.sampler.sample(
                prompts,
                n=rollout.group_size,
                seeds=[derive(self.cfg.seed, "rollout", step, problem.id) for problem in problems],
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                max_new_tokens=rollout.max_new_tokens,
            )
        groups = [Group(*parts) for parts in zip(problems, prompts, map(tuple, drawn), strict=True)]
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
            style = self.cfg.prompt.style
            items = [(c.text, group.problem.gold, style) for group in groups for c in group.completions]
            grades = self.grader.grade(items)
            ended = [completion.finished for group in groups for completion in group.completions]
            right = [float(grade.correct and end) for grade, end in zip(grades, ended, strict=True)]
            rewards = torch.tensor(right).view(len(groups), -1)
        self.metrics |= {
            "reward/mean": float(rewards.mean()),
            "accuracy/train": float(rewards.mean()),
            "reward/no_signal_share": 1 - float(has_signal(rewards).float().mean()),
            "grade/no_answer_share": share(grades, "no_answer"),
            "grade/error_share": share(grades, "timeout", "gold_unreadable", "error"),
        }
        return rewards

    def with_signal(self, samples: list[Sample]) -> list[Sample]:
        """The samples to learn from: without those whose group gave no signal, unless the config keeps them."""
        kept = [sample for sample in samples if sample.advantage != 0]
        return kept if self.cfg.learner.drop_no_signal else samples

    def old_log_probs(self, samples: Sequence[Sample], step: int) -> list[tuple[float, ...]]:
        """Log-probs of every completion token under the policy that the ratios are taken against.

        Measures the gap between sampler and learner. Raises MismatchError where it is too wide on the first batch, or
        on the second, which is the first that was sampled after new weights went to the sampler.
        """
        sampled = [sample.sampler_log_probs for sample in samples]
        if self.cfg.learner.old_log_probs == "sampler" and step > 2:
            return sampled  # the gap is that of the first update: the policy has not moved before it
        with self.clock("learn"):
            learned = self.learner.log_probs(samples)
        self.metrics |= gap(learned, sampled)
        if step <= 2 and self.metrics["gap/abs_dev_mean"] > self.cfg.rollout.max_gap:
            raise MismatchError(
                f"on the batch of step {step} the learner's ratios to the sampler have mean |r - 1| = "
                f"{self.metrics['gap/abs_dev_mean']:.2g}, above rollout.max_gap={self.cfg.rollout.max_gap}: they would "
                "not start at 1. Causes seen: weights or tokenizer that differ between the two, a temperature that one "
                "of them does not apply, new weights that do not reach the sampler, rollout.dtype=bfloat16 beside a "
                "float32 learner"
            )
        return learned if self.cfg.learner.old_log_probs == "learner" else sampled

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
        if not self.updates and self.cfg.learner.old_log_probs == "sampler":
            self.metrics |= {
                "gap/abs_dev_mean": stats.abs_dev / stats.tokens,
                "gap/log_prob_max": stats.max_abs_log_ratio,
            }
        self.metrics["optim/lr"] = learning_rate(cfg, number, self.cfg.updates)
        self.updates.append(stats)
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
                found = summary(self._graded(self.validation))
            self.validated[step] = found["accuracy"]
            self.metrics |= {
                "eval/validation_accuracy": found["accuracy"],
                "eval/validation_truncated_share": found["truncated_share"],
            }
        if step == self.cfg.steps or (due and step > 0 and self.best_step == step):
            self._checkpoint(step)

    def log(self, step: int) -> None:
        """Writes the step's metrics; step 0 is before training."""
        if step > 0:
            self.metrics |= update_metrics(UpdateStats.total(self.updates))
            self.metrics["speed/learn_tokens_per_s"] = self.learned_tokens / max(self.seconds["learn"], 1e-9)
            self.metrics["time/step_s"] = sum(self.seconds[phase] for phase in STEP_PHASES)
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
        found: dict[str, dict[str, float]] = {}
        if self.cfg.eval.at_end:
            with self.clock("test"):
                problems = load_problems(self.cfg.data, "test", self.cfg.seed)[: self.cfg.eval.test_problems]
                last = self._graded(problems)
                best = last
                if self.best_step != self.cfg.steps:
                    self.sampler.load(read_weights(self._step_dir(self.best_step)))
                    best = self._graded(problems)
                for suffix, records in (("", last), (".best", best)):
                    write_records(self.dir / "eval" / f"{self.cfg.data.name}{suffix}.jsonl", records)
                found = {"last": summary(last), "best": summary(best)}
            self.total_seconds["test"] = self.seconds["test"]
        result = {
            "run_dir": str(self.dir),
            "steps": self.cfg.steps,
            "best_step": self.best_step,
            "validation": {str(step): accuracy for step, accuracy in self.validated.items()},
            "test": found,
            "seconds": dict(self.total_seconds),
            "machine": {"torch": torch.__version__, "device": self.cfg.device, "threads": torch.get_num_threads()},
        }
        (self.dir / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
        (self.dir / "DONE").touch()

    def _graded(self, problems: Sequence[Problem]) -> list[dict]:
        protocol = Protocol(max_new_tokens=self.cfg.eval.max_new_tokens, seed=self.cfg.seed)
        return evaluate(self.sampler, self.tokenizer, self.grader, problems, self.cfg.prompt, protocol)

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


def claim(run_dir: Path, cfg: TrainConfig) -> bool:
    """True where `run_dir` holds this run complete; otherwise clears what an earlier attempt at it left."""
    written = run_dir / "config.yaml"
    if written.exists():
        before = load_yaml(written, TrainConfig)
        if config_hash(before, NOT_IN_RUN_ID) != config_hash(cfg, NOT_IN_RUN_ID):
            raise ConfigError(
                "run_dir", run_dir, "holds a run with other settings (its config.yaml); name another directory"
            )
        if (run_dir / "DONE").exists():
            return True
        for name in ("checkpoints", "eval", "nonfinite"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / "summary.json").unlink(missing_ok=True)
    elif run_dir.exists() and any(run_dir.iterdir()):
        raise ConfigError("run_dir", run_dir, "is not empty and holds no run; name another directory")
    return False


def starting_checkpoint(cfg: TrainConfig) -> str:
    """Directory of the policy that training starts from; raises PspoError where the warm start has not been made."""
    if cfg.model.path is not None:
        return local_checkpoint(cfg.model.path, cfg.model.revision)
    made = warm_start_dir(cfg)
    if not (made / "DONE").exists():
        raise PspoError(f"model={cfg.model.name} has no warm start at {made}: make it with `python -m pspo.sft`")
    return str(made)


def limit_threads(threads: int | None) -> None:
    """Sets the number of CPU threads of this process, for libraries that are loaded later too; None leaves it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


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

"""How good a run's policies are: on the validation part while it trains, on the test part at its end.

The first rank grades and writes the files; all ranks' samplers answer. Imports: evaluation, evalfile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pspo.config import TrainConfig
from pspo.data import Prompter
from pspo.evalfile import EvalFile, evaluate_to_file, identity_of, weights_digest
from pspo.evaluation import Protocol, evaluate
from pspo.grading import Grader
from pspo.rollout import Completer, Decoding, Sampler
from pspo.rollout.shared import Engines, sampled_by_all
from pspo.scores import scores
from pspo.startup import Parts


class Exams:
    """T=0, one completion a problem. Every rank calls every method, and gets the same scores (`pspo.scores`)."""

    def __init__(
        self,
        cfg: TrainConfig,
        engines: Engines,
        sampler: Sampler,
        prompter: Prompter,
        grader: Grader,
        parts: Parts,
        guard: Callable[[], None],
    ) -> None:
        """`guard` is called before anything is written, and raises where it must not be."""
        self.cfg, self.engines, self.sampler, self.guard = cfg, engines, sampler, guard
        self.prompter, self.grader, self.parts = prompter, grader, parts
        decoding = Decoding(cfg.eval.max_new_tokens, temperature=0.0)
        self.protocol = Protocol(decoding, cfg.rollout.max_prompt_tokens, cfg.seed)

    def validate(self) -> dict[str, Any]:
        """Scores of the sampler's policy on the validation part."""

        def work(sampler: Completer) -> dict[str, Any]:
            records = evaluate(sampler, self.prompter, self.grader, self.parts.validation, self.protocol)
            return scores(records, self.prompter.style)

        return sampled_by_all(work, self.sampler, self.engines)

    def test(self, checkpoint: Path, path: Path) -> dict[str, Any]:
        """Scores on the test part of the sampler's policy, which is that of `checkpoint`; written to `path`, a chunk at
        a time, and not done again where they are there."""
        return sampled_by_all(lambda sampler: self._test(sampler, checkpoint, path), self.sampler, self.engines)

    def _test(self, sampler: Completer, checkpoint: Path, path: Path) -> dict[str, Any]:
        cfg, chunk, problems = self.cfg, self.cfg.eval.chunk, self.parts.test
        weights = weights_digest(checkpoint)
        made_of = identity_of(weights, cfg.rollout, cfg.device, self.prompter, problems, self.protocol, chunk)
        about = {
            "checkpoint": str(checkpoint),
            "benchmark": cfg.data.name,
            "split": "test",
            "prompt": self.prompter.described(problems[0].question),
        }
        file = EvalFile(path, made_of, about, self.guard)
        records = evaluate_to_file(file, lambda: sampler, self.prompter, self.grader, problems, self.protocol, chunk)
        return scores(records, self.prompter.style)

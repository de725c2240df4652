"""The small run that chaos.py disturbs: its settings, and a policy for it that is made in half a minute.

The policy is fine-tuned to write `#### gold` or `#### gold + 1`, each about half of the time, for every problem of the
run. So rewards differ within the groups that are sampled, every step has a gradient, and accuracy on the validation
part moves. Imports torch inside the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pspo.config import TrainConfig, compose, schema
from pspo.errors import PspoError

PARTS = {"train": 8, "validation": 4, "test": 4}
"""Problems by part."""
LEARNED, AT_MOST = 0.25, 200
"""Nats a token at which fine-tuning ends, and steps: of three to five tokens one is a coin flip, ln 2."""

SETTINGS = (
    *(f"model.arch.{size}" for size in ("hidden_size=64", "layers=2", "heads=2", "kv_heads=1", "mlp_size=128")),
    *(f"data.{part}={count}" for part, count in PARTS.items()),
    "experiment=custom",
    "steps=8",
    "rollout.prompts=4",
    "rollout.max_new_tokens=16",
    "learner.lr=5e-5",
    "learner.passes=2",
    "learner.minibatches=2",
    "learner.warmup_updates=4",
    "eval.every=2",
    f"eval.validation_problems={PARTS['validation']}",
    "eval.chunk=1",
    "tracking.progress=false",
)
"""Overrides of conf/train.yaml. A step takes some tenths of a second; the two evaluations at the end are saved in four
chunks each; several updates a step and a warm-up make the optimiser's state and the count of steps matter."""


def make_policy(directory: Path, overrides: Sequence[str]) -> Path:
    """Writes the policy as a checkpoint; the same overrides give the same one. Raises PspoError where fine-tuning did
    not get there."""
    import torch

    from pspo.data import eos_ids, load_problems, make_prompter
    from pspo.data.tokenizer import build_tokenizer
    from pspo.models import build, save_policy
    from pspo.sft import Demonstration, backward
    from pspo.startup import prepare

    cfg = compose("train", TrainConfig, overrides)
    if cfg.model.arch is None or not isinstance(cfg.data, schema.WordProblems):
        raise PspoError("model= and data= are the small world's here: chaos.py makes a policy that knows its problems")
    prepare("cpu", threads=1)
    tokenizer = build_tokenizer(cfg.data)
    (eos,) = eos_ids(tokenizer)
    model = build(cfg.model.arch, len(tokenizer), eos, tokenizer.pad_token_id, seed=0)
    prompter = make_prompter(cfg.prompt, cfg.data, tokenizer)
    known = [
        Demonstration(
            prompter.encode(problem.question), (*tokenizer(f"#### {int(problem.gold) + off}")["input_ids"], eos)
        )
        for part in ("train", "validation", "test")
        for problem in load_problems(cfg.data, part, cfg.seed)
        for off in (0, 1)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(AT_MOST):
        loss = float(backward(model, known))
        if loss < LEARNED:
            return save_policy(model, tokenizer, directory)
        optimizer.step()
        optimizer.zero_grad()
    raise PspoError(f"the policy to start from knows too little after {AT_MOST} steps: {loss:.2f} nats a token")

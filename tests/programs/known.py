"""A policy with something to learn: it knows eight problems by heart, each with a wrong answer beside the right one."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pspo.config import TrainConfig, compose
from pspo.data import eos_ids, load_problems, make_prompter
from pspo.data.tokenizer import build_tokenizer
from pspo.models import build, save_policy
from pspo.sft import Demonstration, backward

ARCH = ["hidden_size=64", "layers=2", "heads=2", "kv_heads=1", "mlp_size=128"]
SETTINGS = [
    *(f"model.arch.{size}" for size in ARCH),
    "data.train=8",
    "data.test=8",
    "data.validation=8",
    "rollout.prompts=4",
    "eval.every=0",
    "eval.test_problems=4",
    "tracking.progress=false",
    "experiment=custom",
    "learner.lr=3e-4",
    "learner.warmup_updates=0",
    "learner.minibatches=2",
    "rollout.max_new_tokens=16",
    "steps=2",
]


def make_policy(directory: Path) -> str:
    """Fine-tuned to write `#### gold` or `#### gold + 1`, each about half of the time; its checkpoint."""
    cfg = compose("train", TrainConfig, SETTINGS)
    tokenizer = build_tokenizer(cfg.data)
    (eos,) = eos_ids(tokenizer)
    model = build(cfg.model.arch, len(tokenizer), eos, tokenizer.pad_token_id, seed=0)
    problems, prompter = load_problems(cfg.data, "train", 0), make_prompter(cfg.prompt, cfg.data, tokenizer)
    batch = [
        Demonstration(
            prompter.encode(problem.question),
            (*tokenizer(f"#### {int(problem.gold) + off}")["input_ids"], eos),
        )
        for problem in (problems[i] for i in range(8))
        for off in (0, 1)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(120):
        loss = backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.3, "the fixture's own training has failed"  # ln 2 for a coin flip, over three to five tokens
    return str(save_policy(model, tokenizer, directory))


def without_times(lines: list[dict]) -> list[dict]:
    """Metrics without those that measure seconds."""
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "speed/"))} for line in lines]


def outcome(run_dir: Path) -> dict[str, object]:
    """All of a run that a resumed one has to end with too: weights and evaluations by their bytes, and the metrics."""
    files = [*run_dir.glob("checkpoints/*/*.safetensors"), *run_dir.glob("eval/*.jsonl")]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in files},
        "metrics": without_times(lines),
    }

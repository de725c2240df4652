"""Accuracy of a checkpoint on a benchmark: `python eval/evaluate.py checkpoint=RUN_DIR_OR_HUB_ID benchmark=...`

Writes one JSON line a problem (docs/files.md) and prints the accuracy. Data, prompts, sampling and grading are pspo's;
nothing of them is defined here.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pspo.config import EvalConfig, TrainConfig, load_yaml, program
from pspo.errors import ConfigError


def resolve(checkpoint: str) -> tuple[str, Path | None]:
    """What to load, and the run it belongs to: a run directory stands for its last checkpoint; a hub id for itself."""
    path = Path(checkpoint)
    found = [p for p in path.glob("checkpoints/step-*") if re.fullmatch(r"step-\d+", p.name)]
    steps = sorted(found, key=lambda p: int(p.name.removeprefix("step-")))
    if steps:
        return str(steps[-1]), path
    if path.parent.name == "checkpoints" and path.is_dir():
        return checkpoint, path.parent.parent
    if not path.is_dir() and (path.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") != 1):
        raise ConfigError("checkpoint", checkpoint, "must be a run directory, a checkpoint directory or a hub id")
    return checkpoint, None


def out_path(cfg: EvalConfig, checkpoint: str, run_dir: Path | None) -> Path:
    """<run_dir>/eval/<benchmark>.jsonl for a run's last checkpoint; other protocols and checkpoints are in the name."""
    if cfg.out is not None:
        return Path(cfg.out)
    parts = [cfg.benchmark]
    if run_dir is not None and Path(cfg.checkpoint) != run_dir:
        parts.append(Path(checkpoint).name)
    if cfg.split != "test":
        parts.append(cfg.split)
    if cfg.temperature > 0:
        parts.append(f"T{cfg.temperature:g}x{cfg.samples}")
    if cfg.limit is not None:
        parts.append(f"first-{cfg.limit}")
    if run_dir is not None and (run_dir / "config.yaml").exists():
        # Another protocol than the run's own must not replace the record that tables are made from.
        run = load_yaml(run_dir / "config.yaml", TrainConfig)
        if protocol_of(cfg) != protocol_of(run):
            parts.append(hashlib.sha256(repr(protocol_of(cfg)).encode()).hexdigest()[:8])
    home = run_dir or (
        Path(checkpoint) if Path(checkpoint).is_dir() else Path("evals") / re.sub(r"\W+", "-", checkpoint)
    )
    return home / "eval" / (".".join(parts) + ".jsonl")


def protocol_of(cfg: EvalConfig | TrainConfig) -> tuple[object, ...]:
    """What decides which problems are asked, how, and how long an answer may be."""
    return cfg.data, cfg.prompt, cfg.eval.max_new_tokens, cfg.rollout.dtype


def run(cfg: EvalConfig) -> None:
    """Heavy imports stand inside, so that a wrong setting is told before them."""
    checkpoint, run_dir = resolve(cfg.checkpoint)

    from pspo.data import load_problems, load_tokenizer
    from pspo.evaluation import Protocol, evaluate, summary, write_records
    from pspo.grading import Grader
    from pspo.models import local_checkpoint
    from pspo.rollout import make_sampler
    from pspo.startup import prepare

    prepare(cfg.device, cfg.threads)
    directory = local_checkpoint(checkpoint, cfg.model.revision)
    tokenizer = load_tokenizer(directory)
    problems = load_problems(cfg.data, cfg.split, cfg.seed)[: cfg.limit]
    longest = cfg.rollout.max_prompt_tokens + cfg.eval.max_new_tokens
    sampler = make_sampler(directory, cfg.rollout, tokenizer, cfg.device, longest)
    limits = cfg.rollout.max_prompt_tokens, cfg.eval.max_new_tokens
    protocol = Protocol(*limits, cfg.temperature, cfg.rollout.top_p, cfg.samples, cfg.seed)
    with Grader() as grader:
        records = evaluate(sampler, tokenizer, grader, problems, cfg.prompt, protocol)
    sampler.close()

    path = out_path(cfg, checkpoint, run_dir)
    write_records(path, records)
    found = summary(records)
    print(
        f"{cfg.benchmark} {cfg.split}, T={cfg.temperature:g}, {cfg.samples} sample(s): "
        f"accuracy {found['accuracy']:.3f} "
        f"(lenient {found['lenient_accuracy']:.3f}) on {len(records)} problems; truncated "
        f"{found['truncated_share']:.3f}, no answer {found['no_answer_share']:.3f}\n{path}"
    )


main = program("eval", EvalConfig)(run)

if __name__ == "__main__":
    main()

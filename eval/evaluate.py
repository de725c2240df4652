"""Accuracy of a checkpoint on a benchmark: `python eval/evaluate.py checkpoint=RUN_DIR_OR_HUB_ID benchmark=...`

Writes one JSON line a problem and a summary (docs/files.md), and prints the accuracy. Interrupted and started again it
goes on; complete, it prints what is there. Data, prompts, sampling and grading are pspo's; nothing is defined here.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def out_path(cfg: EvalConfig, temperature: float, checkpoint: str, run_dir: Path | None) -> Path:
    """<run_dir>/eval/<benchmark>.jsonl for a run's last checkpoint; other protocols and checkpoints are in the name."""
    if cfg.out is not None:
        return Path(cfg.out)
    parts = [cfg.benchmark]
    if run_dir is not None and Path(cfg.checkpoint) != run_dir:
        parts.append(Path(checkpoint).name)
    if cfg.split != "test":
        parts.append(cfg.split)
    if temperature > 0:
        parts.append(f"T{temperature:g}x{cfg.samples}")
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

    from pspo.data import load_problems, load_report, load_tokenizer, make_prompter
    from pspo.evaluation import EvalFile, Protocol, evaluate_to_file, identity
    from pspo.grading import Grader
    from pspo.models import local_checkpoint
    from pspo.rollout import Decoding, Sampler, make_sampler
    from pspo.scores import lines, scores
    from pspo.startup import prepare

    sampler: Sampler | None = None
    with Grader(cfg.grading.workers, cfg.grading.timeout) as grader:
        if cfg.prompt.style == "math":
            grader.start()  # before there is a CUDA context, and while the model is loaded
        prepare(cfg.device, cfg.threads)
        pinned = cfg.model.revision if checkpoint == cfg.model.path else None  # that of another model is not this one's
        directory = local_checkpoint(checkpoint, cfg.revision or pinned)
        prompter = make_prompter(cfg.prompt, cfg.data, load_tokenizer(directory))
        problems = load_problems(cfg.data, cfg.split, cfg.seed)[: cfg.limit]
        about: dict[str, Any] = {
            "checkpoint": checkpoint,
            "benchmark": cfg.benchmark,
            "split": cfg.split,
            "limit": cfg.limit,
            "data": (report := load_report(cfg.data, cfg.split)) and asdict(report),
            "prompt": {"name": cfg.prompt.name, "hash": prompter.hash, "example": prompter.text(problems[0].question)},
        }
        for temperature in cfg.temperatures:
            samples = cfg.samples if temperature > 0 else 1
            decoding = Decoding(cfg.eval.max_new_tokens, temperature, cfg.rollout.top_p, samples)
            protocol, chunk = Protocol(decoding, cfg.rollout.max_prompt_tokens, cfg.seed), cfg.eval.chunk
            made_of = identity(Path(directory), cfg.rollout, cfg.device, prompter, problems, protocol, chunk)
            file = EvalFile(out_path(cfg, temperature, checkpoint, run_dir), made_of, about)
            if cfg.overwrite:
                file.summary_path.unlink(missing_ok=True)
            if (records := file.complete()) is None:
                if sampler is None:
                    longest = cfg.rollout.max_prompt_tokens + cfg.eval.max_new_tokens
                    tokenizer, stop = prompter.tokenizer, prompter.stop
                    sampler = make_sampler(directory, cfg.rollout, tokenizer, cfg.device, longest, stop)
                records = evaluate_to_file(file, sampler, prompter, grader, problems, protocol, chunk)
            print(f"{cfg.benchmark} {cfg.split}, prompt {cfg.prompt.name}, T={temperature:g}:")
            print(*lines(scores(records, protocol.greedy)), sep="\n")
            print(file.path, flush=True)
    if sampler is not None:
        sampler.close()


main = program("eval", EvalConfig)(run)

if __name__ == "__main__":
    main()

"""Accuracy of a checkpoint on a benchmark: `python eval/evaluate.py checkpoint=RUN_DIR_OR_HUB_ID benchmark=...`

Writes one JSON line a problem and a summary (docs/files.md), and prints the accuracy. Interrupted and started again it
goes on; complete, it prints what is there. Data, prompts, sampling and grading are pspo's; nothing is defined here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspo.config import EvalConfig, TrainConfig, compose, load_yaml, program
from pspo.data import load_problems
from pspo.errors import ConfigError
from pspo.rundir import CHECKPOINT

if TYPE_CHECKING:
    from pspo.rollout import Sampler
    from pspo.types import Problem


def resolve(checkpoint: str) -> tuple[str, Path | None]:
    """What to load, and the run it belongs to: a run directory stands for its last checkpoint; a hub id for itself."""
    path = Path(checkpoint)
    found = [p for p in path.glob("checkpoints/step-*") if re.fullmatch(CHECKPOINT, p.name) and p.is_dir()]
    steps = sorted(found, key=lambda p: int(p.name.removeprefix("step-")))
    if steps:
        return str(steps[-1]), path
    if path.parent.name == "checkpoints" and path.is_dir():
        return checkpoint, path.parent.parent
    if not path.is_dir() and (path.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") != 1):
        raise ConfigError("checkpoint", checkpoint, "must be a run directory, a checkpoint directory or a hub id")
    return checkpoint, None


def config_of(run_dir: Path | None) -> TrainConfig | None:
    """What the run was trained with."""
    if run_dir is None or not (run_dir / "config.yaml").exists():
        return None
    return load_yaml(run_dir / "config.yaml", TrainConfig)


def out_path(cfg: EvalConfig, temperature: float, checkpoint: str, run_dir: Path | None) -> Path:
    """eval/<benchmark>.jsonl in the checkpoint's run, or in its own directory, or under evals/ for a hub id.

    What is not usual is in the name: another checkpoint than the last, split, temperature, number of problems; and
    eight digits for another protocol than the run's own (elsewhere: the benchmark's), which must not replace the record
    that tables are made from.
    """
    if cfg.out is not None:
        return Path(cfg.out.replace("{T}", f"{temperature:g}"))
    parts = [cfg.benchmark]
    if run_dir is not None and Path(cfg.checkpoint) != run_dir:
        parts.append(Path(checkpoint).name)
    if cfg.split != "test":
        parts.append(cfg.split)
    if temperature > 0:
        parts.append(f"T{temperature:g}x{cfg.samples}")
    if cfg.limit is not None:
        parts.append(f"first-{cfg.limit}")
    run = config_of(run_dir)
    usual = run if run is not None and run.data.name == cfg.benchmark else usual_for(cfg.benchmark)
    if protocol_of(cfg, temperature) != protocol_of(usual, temperature):
        parts.append(hashlib.sha256(repr(protocol_of(cfg, temperature)).encode()).hexdigest()[:8])
    home = run_dir or (
        Path(checkpoint) if Path(checkpoint).is_dir() else Path("evals") / re.sub(r"\W+", "-", checkpoint)
    )
    return home / "eval" / (".".join(parts) + ".jsonl")


@cache
def usual_for(benchmark: str) -> EvalConfig:
    """What the benchmark picks by itself."""
    return compose("eval", EvalConfig, ["checkpoint=any", f"benchmark={benchmark}"])


def protocol_of(cfg: EvalConfig | TrainConfig, temperature: float) -> tuple[object, ...]:
    """What decides which problems are asked of which weights, how, and how long an answer may be."""
    data = replace(cfg.data, path=None) if cfg.data.kind == "benchmark" else cfg.data  # the same rows, from elsewhere
    asked = data, cfg.prompt, cfg.eval.max_new_tokens, cfg.rollout.dtype, cfg.rollout.engine
    if not isinstance(cfg, EvalConfig):
        return *asked, None, 0, 1.0
    drawn = (cfg.seed, cfg.rollout.top_p) if temperature > 0 else (0, 1.0)
    return *asked, cfg.revision, *drawn


def problems_of(cfg: EvalConfig, run: TrainConfig | None) -> Sequence[Problem]:
    """The problems asked. Validation problems are the run's own: those of another seed it may have been trained on."""
    seed = cfg.seed
    if cfg.split == "validation" and cfg.data.kind == "benchmark" and cfg.data.split_seed is None:
        if run is None:
            allowed = "data.split_seed=null is split by a run's seed, and this checkpoint has no run: give a number"
            raise ConfigError("split", cfg.split, allowed)
        seed = run.seed
    return load_problems(cfg.data, cfg.split, seed)[: cfg.limit]


def run(cfg: EvalConfig) -> None:
    """Heavy imports stand inside, so that a wrong setting is told before them."""
    checkpoint, run_dir = resolve(cfg.checkpoint)
    problems = problems_of(cfg, config_of(run_dir))
    paths = {temperature: out_path(cfg, temperature, checkpoint, run_dir) for temperature in cfg.temperatures}
    for path in paths.values():
        if not path.name or (path.exists() and not path.is_file()):
            raise ConfigError("out", path, "must be a file, or the name of one to be made")

    from pspo.checkpoint import verify_policy
    from pspo.data import load_report, load_tokenizer, make_prompter
    from pspo.evalfile import EvalFile, evaluate_to_file, identity_of, weights_digest
    from pspo.evaluation import Protocol
    from pspo.grading import Grader
    from pspo.models import local_checkpoint
    from pspo.rollout import Decoding, make_sampler
    from pspo.scores import lines, scores
    from pspo.startup import prepare

    with Grader(cfg.grading.workers, cfg.grading.timeout) as grader:
        if cfg.prompt.style == "math":
            grader.start()  # before there is a CUDA context, and while the model is loaded
        prepare(cfg.device, cfg.threads)
        pinned = cfg.model.revision if checkpoint == cfg.model.path else None  # that of another model is not this one's
        directory = local_checkpoint(checkpoint, cfg.revision or pinned)
        verify_policy(Path(directory))
        prompter = make_prompter(cfg.prompt, cfg.data, load_tokenizer(directory))
        about: dict[str, Any] = {
            "checkpoint": checkpoint,
            "benchmark": cfg.benchmark,
            "split": cfg.split,
            "limit": cfg.limit,
            "data": (report := load_report(cfg.data, cfg.split)) and asdict(report),
            "prompt": prompter.described(problems[0].question),
        }
        weights, chunk = weights_digest(Path(directory)), cfg.eval.chunk
        engines: list[Sampler] = []

        def sampler() -> Sampler:
            """Made for the first temperature at which something is missing."""
            if not engines:
                longest = cfg.rollout.max_prompt_tokens + cfg.eval.max_new_tokens
                tokenizer, ends = prompter.tokenizer, prompter.ends
                engines.append(make_sampler(directory, cfg.rollout, tokenizer, cfg.device, longest, ends))
            return engines[0]

        for temperature, path in paths.items():
            samples = cfg.samples if temperature > 0 else 1
            decoding = Decoding(cfg.eval.max_new_tokens, temperature, cfg.rollout.top_p, samples)
            protocol = Protocol(decoding, cfg.rollout.max_prompt_tokens, cfg.seed)
            made_of = identity_of(weights, cfg.rollout, cfg.device, prompter, problems, protocol, chunk)
            file = EvalFile(path, made_of, about)
            records = evaluate_to_file(
                file, sampler, prompter, grader, problems, protocol, chunk, overwrite=cfg.overwrite
            )
            print(f"{cfg.benchmark} {cfg.split}, prompt {cfg.prompt.name}, T={temperature:g}:")
            print(*lines(scores(records, prompter.style, protocol.greedy)), sep="\n")
            print(path, flush=True)
        for engine in engines:
            engine.close()


main = program("eval", EvalConfig)(run)

if __name__ == "__main__":
    main()

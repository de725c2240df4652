"""The engine inside the loop against vLLM alone on the same prompts: completion tokens a second.

    .venv/bin/python benchmarks/engine.py [--prompts 16 64] [--pairs 7] [--set threads=2 ...]

Both sides ask one and the same engine, that of a run of the small world at its warm start (made first where it is
missing), for the same completions: same token ids, seeds and sampling parameters, log-probs of the sampled tokens
included.

    alone    vLLM's `LLM.generate`, from the token ids to its answer
    ours     `Run.sample` and `Run.reward`: questions to token ids, sampling group by group, text of the completions,
             each group handed to the grader, and the wait for the grades; all that the loop does up to its rewards

The two take turns in one process, each pair with problems and seeds of its own, whoever began the pair before being
second; the prefix cache is emptied before each. Both sides have to return the same tokens. Prints their table, and one
of where vLLM's time goes; writes benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from _common import ROOT, ratios, spread, table, write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pspo.run import Run
    from pspo.types import Problem

Tokens = list[list[tuple[int, ...]]]  # of each completion of each prompt


class Turn(NamedTuple):
    """One side's turn."""

    seconds: float
    tokens: Tokens


def alone(run: Run, problems: Sequence[Problem], step: int) -> Turn:
    """vLLM's own offline entry, asked what `ours` asks."""
    from vllm.inputs import TokensPrompt

    from pspo.rollout import Decoding
    from pspo.seeds import derive

    rollout, sampler = run.cfg.rollout, run.sampler
    decoding = Decoding(rollout.max_new_tokens, rollout.temperature, rollout.top_p, rollout.group_size)
    prompts = [TokensPrompt(prompt_token_ids=list(run.prompter.encode(p.question))) for p in problems]
    seeds = [derive(run.cfg.seed, "rollout", step, p.id) for p in problems]
    asked = [sampler._parameters(decoding, seed) for seed in seeds]
    sampler.forget()
    started = time.perf_counter()
    answers = sampler.engine.generate(prompts, asked, use_tqdm=False)
    seconds = time.perf_counter() - started
    return Turn(seconds, [[tuple(output.token_ids) for output in answer.outputs] for answer in answers])


def ours(run: Run, problems: Sequence[Problem], step: int) -> Turn:
    run.sampler.forget()
    started = time.perf_counter()
    groups = run.sample(problems, step)
    run.reward(groups, step)
    seconds = time.perf_counter() - started
    return Turn(seconds, [[completion.token_ids for completion in group.completions] for group in groups])


def in_turns(run: Run, prompts: int, pairs: int) -> dict[str, Any]:
    """Tokens a second of either side by pairs; one pair before them is not counted."""
    sides = {"alone": alone, "ours": ours}
    rates: dict[str, list[float]] = {"alone": [], "ours": []}
    waits, counts = [], []
    for step in range(pairs + 1):
        places = range(step * prompts, (step + 1) * prompts)
        problems = [run.data.train[place % len(run.data.train)] for place in places]
        before = run.seconds["grade"]
        turns = {side: sides[side](run, problems, step) for side in (list(sides) if step % 2 else list(sides)[::-1])}
        if turns["alone"].tokens != turns["ours"].tokens:
            sys.exit(f"not the same work: the two sides have sampled different tokens in pair {step}")
        tokens = sum(len(ids) for completions in turns["ours"].tokens for ids in completions)
        if step == 0:
            continue
        counts.append(tokens)
        waits.append(run.seconds["grade"] - before)
        for side, turn in turns.items():
            rates[side].append(tokens / turn.seconds)
    return {"tokens_per_s": rates, "tokens": counts, "waiting_for_grades_s": waits}


def where_time_goes(run: Run, prompts: int, turns: int) -> dict[str, float]:
    """Share of `Run.sample` that each stage of vLLM's step takes, inner ones included in outer ones."""
    engine = run.sampler.engine.llm_engine
    core = engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    stages = {
        "scheduling": (core.scheduler, "schedule"),
        "the model": (runner, "execute_model"),
        "of which its layers": (runner, "_model_forward"),
        "sampling tokens": (runner, "sample_tokens"),
        "taking the tokens in": (core.scheduler, "update_from_output"),
        "answers": (engine.output_processor, "process_outputs"),
        "all": (run, "sample"),
    }
    seconds: Counter[str] = Counter()
    with ExitStack() as stack:
        for stage, (owner, name) in stages.items():
            stack.enter_context(patch.object(owner, name, clocked(getattr(owner, name), stage, seconds)))
        for step in range(turns):
            places = range(step * prompts, (step + 1) * prompts)
            ours(run, [run.data.train[place % len(run.data.train)] for place in places], step)
    return {stage: seconds[stage] / seconds["all"] for stage in stages if stage != "all"}


def clocked(function: Callable[..., Any], stage: str, seconds: Counter[str]) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds[stage] += time.perf_counter() - started

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of pspo.train")
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("skipped: vLLM is not installed")
        return
    os.chdir(ROOT)
    subprocess.run([sys.executable, "-m", "pspo.sft"], check=True)

    from pspo.config import TrainConfig, compose
    from pspo.config.compose import bound_spinning

    bound_spinning()  # as every program of this project does
    from pspo.ranks import Ranks
    from pspo.run import Run
    from pspo.rundir import Place

    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"run_dir={folder}/run", "eval.every=0", "eval.at_end=false", "tracking.progress=false"]
        cfg = compose("train", TrainConfig, ["rollout=vllm", *settings, *options.set])
        os.makedirs(f"{folder}/run")
        with Place(Path(folder, "run")) as place, Run(cfg, Ranks(), place) as run:
            for prompts in options.prompts:
                found[prompts] = in_turns(run, prompts, options.pairs)
                found[prompts]["shares"] = where_time_goes(run, prompts, options.pairs)

    size = cfg.rollout.group_size
    rows = []
    for prompts, sides in found.items():
        rates = sides["tokens_per_s"]
        cells = [spread(rates["ours"], 5), spread(rates["alone"], 5)]
        cells.append(spread(ratios(rates["ours"], rates["alone"]), 3))
        waits = spread([1000 * wait for wait in sides["waiting_for_grades_s"]], 2)
        rows.append([f"{prompts} x {size}", spread(sides["tokens"], 6), *cells, waits])
    print(f"median of {options.pairs} pairs (range); {cfg.device}, {cfg.threads} threads")
    head = ["prompts x completions", "tokens", "ours, tokens/s", "vLLM alone, tokens/s", "ours over alone, by pairs"]
    print(table([*head, "waited for grades, ms"], rows))
    shares = {f"{prompts} x {size}": sides["shares"] for prompts, sides in found.items()}
    stages = next(iter(shares.values()))
    print(table(["share of sampling", *shares], [[s, *(f"{of[s]:.0%}" for of in shares.values())] for s in stages]))
    write_results("engine", options=vars(options), sizes=found)


if __name__ == "__main__":
    main()

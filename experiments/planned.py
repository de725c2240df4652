"""python experiments/planned.py: pspo.plan beside what benchmarks/results/ has measured, as in docs/scaling.md.

Prints the table of docs/scaling.md; runs nothing and needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from forecasts import machine
from pspo.config import TrainConfig, compose
from pspo.plan.memory import Lengths, Pack, learning
from pspo.plan.shapes import Shape
from pspo.plan.speed import pass_s, rollout_s, step_of, sync_s
from records import read_json

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
MIB = 1 << 20
QWEN = 151_936
TINY = Shape(128, 4, 4, 2, 256, 369, True)
"""The small world's policy."""
AVERAGE = Lengths(48, 30)
"""Of its prompts and completions, in engine.json and step.json."""


@dataclass(frozen=True)
class Row:
    """Figures of one kind, planned and measured, in the same order; `fitted`: rates that were fitted to them."""

    what: str
    unit: str
    digits: int
    planned: Sequence[float]
    measured: Sequence[float]
    fitted: str

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.planned, self.measured, strict=True)]

    def __str__(self) -> str:
        planned, measured = (f"{several(one, self.digits)} {self.unit}" for one in (self.planned, self.measured))
        return f"| {self.what} | {planned} | {measured} | {several(self.ratios, 2)} | {self.fitted} |"


def main() -> None:
    print("\n".join(table()))


def table() -> list[str]:
    """In Markdown."""
    return [
        "| what | planned | measured | ratio | fitted to it |",
        "| --- | --- | --- | --- | --- |",
        *map(str, rows()),
    ]


def rows() -> list[Row]:
    makers: list[Callable[[], Row]] = [
        lambda: memory_of_an_update("learner-cuda", "bfloat16, H200", kv_heads=7),
        lambda: memory_of_an_update("learner", "fp32, two-core EPYC", kv_heads=2),
        learners_steps,
        sampling,
        new_weights,
        whole_step,
        update_on_a_gpu,
    ]
    return [make() for make in makers]


def several(values: Sequence[float], digits: int) -> str:
    """
    >>> several([1234.5], 0), several([0.5, 2.25], 1), several([3, 1, 2, 4], 0)
    ('1,234', '0.5, 2.2', '1 to 4')
    """
    shown = values if len(values) < 4 else (min(values), max(values))
    return (", " if len(values) < 4 else " to ").join(f"{value:,.{digits}f}" for value in shown)


def memory_of_an_update(name: str, where: str, kv_heads: int) -> Row:
    """benchmarks/learner.py's, whose group count and policy are options on record."""
    found = results(name)
    options = found["options"]
    cfg = compose("train", TrainConfig, [])
    if options["device"] == "cuda":
        cfg = replace(cfg, device="cuda", model=replace(cfg.model, dtype="bfloat16"))
    width, layers = options["hidden"], options["layers"]
    shape = Shape(width, layers, width // 64, kv_heads, 4 * width, QWEN, True)
    return Row(
        what=f"peak memory of an update, width {width}, {layers} layers, Qwen's vocabulary, {where}",
        unit="MiB",
        digits=0,
        planned=[learning(cfg, shape, 1, 1, pack_of(found)).peak / MIB],
        measured=[found["peak_memory_mib"]["ours"]],
        fitted="no",
    )


def learners_steps() -> Row:
    """benchmarks/growth.py's, one process with one thread: from groups of 2 to groups of 16, and a policy 13 times as
    large. A prompt's tokens count once for its group, as they go through the model."""
    lines = [line for line in results("growth")["lines"] if (line["ranks"], line["threads"]) == (1, 1)]
    tokens = [line["tokens_with_shared_prompts"] for line in lines]
    kinds = {(line["problems"], line["group_size"], line["policy"]) for line in lines}
    work = f"{len(kinds)} kinds of work of {min(tokens):,} to {max(tokens):,} tokens, two policies"
    return Row(
        what=f"a learner's step, {work}, EPYC",
        unit="s",
        digits=2,
        planned=[learners_step_s(line) for line in lines],
        measured=[median(line["seconds"]) for line in lines],
        fitted="three rates to these lines",
    )


def learners_step_s(line: dict[str, Any]) -> float:
    """Of a line of growth.json."""
    width, layers = {"0.6 M": (128, 4), "8 M": (384, 6)}[line["policy"]]
    shape = replace(TINY, hidden_size=width, layers=layers, heads=width // 32, kv_heads=width // 64, mlp_size=2 * width)
    size, rows = line["group_size"], line["tokens_with_shared_prompts"]
    prompts = (line["tokens"] - rows - line["problems"] * size) / (size - 1)
    completions = line["tokens"] - size * prompts
    count = max(4, -(-rows // 2048))  # minibatches, or as many packs as the token budget makes
    pack = Pack(rows / count, completions / count, (completions + prompts * (size + 1)) / count, visible=39)
    return count * pass_s(compose("train", TrainConfig, []), shape, machine("cpu"), 1, pack)


def sampling() -> Row:
    """benchmarks/engine.py's."""
    cfg, sizes = compose("train", TrainConfig, []), results("engine")["sizes"]
    seconds = [rollout_s(cfg, TINY, machine("cpu"), int(prompts), 8, AVERAGE) for prompts in sizes]
    return Row(
        what=f"the engine, {' and '.join(sizes)} prompts by 8, EPYC",
        unit="tokens/s",
        digits=0,
        planned=[8 * int(prompts) * AVERAGE.completion / s for prompts, s in zip(sizes, seconds, strict=True)],
        measured=[median(found["tokens_per_s"]["ours"]) for found in sizes.values()],
        fitted="two rates to these",
    )


def new_weights() -> Row:
    """benchmarks/sync.py's, without the policy whose output head is untied and large."""
    found = [results("sync")["sizes"][policy]["1"]["vllm"] for policy in ("tiny", "20M", "200M")]
    parameters = [one["bytes"] // 4 for one in found]
    shapes = [Shape(1, 0, 1, 1, 1, count, True) for count in parameters]  # as many parameters, all in one matrix
    return Row(
        what=f"new weights to the engine, {several([count / 1e6 for count in parameters], 1)} million parameters, EPYC",
        unit="ms",
        digits=0,
        planned=[1e3 * sync_s(shape, machine("cpu"), 1) for shape in shapes],
        measured=[1e3 * median(one["seconds"]) for one in found],
        fitted="two rates to these",
    )


def whole_step() -> Row:
    """benchmarks/step.py's, and its sampling."""
    found = results("step")["runs"]["vllm"]
    step = step_of(compose("train", TrainConfig, []), TINY, machine("cpu"), 1, AVERAGE)
    return Row(
        what="the whole step of the small world, and of it the sampling, EPYC",
        unit="s",
        digits=2,
        planned=[step.total, step.rollout],
        measured=[median(one[phase] for one in found) for phase in ("step", "rollout")],
        fitted="no",
    )


def update_on_a_gpu() -> Row:
    """benchmarks/learner.py's, without the optimiser."""
    found = results("learner-cuda")
    cfg = compose("train", TrainConfig, ["scale=paper"])
    shape = Shape(896, 12, 14, 7, 3584, QWEN, True)
    return Row(
        what="seconds of the first line's update, H200",
        unit="s",
        digits=3,
        planned=[pass_s(cfg, shape, machine("h200"), 1, pack_of(found))],
        measured=[found["tokens"]["all"] / median(found["tokens_per_s"]["8"]["ours"])],
        fitted="the host's time",
    )


def pack_of(found: dict[str, Any]) -> Pack:
    """All that benchmarks/learner.py learns from in an update, as one pack."""
    size, completions = found["options"]["group_size"], found["tokens"]["completions"]
    samples = lengths_of_the_benchmark(found["options"]["groups"], size)
    prompts = sum(prompt for prompt, _ in samples[::size])
    return Pack(prompts + completions - len(samples), completions, completions + prompts * (size + 1), visible=100)


def lengths_of_the_benchmark(groups: int, group_size: int) -> list[tuple[int, int]]:
    """Prompt and completion of each sample of benchmarks/learner.py, whose draws these are, in its order."""
    draw, found = random.Random(0), []
    for _ in range(groups):
        prompt = len([draw.randrange(2, QWEN) for _ in range(draw.randint(60, 160))])
        for _ in range(group_size):
            length = min(256, max(20, round(draw.lognormvariate(4.499809670330265, 0.6))))
            for _ in range(length):
                draw.randrange(2, QWEN)
            for _ in range(length):
                draw.gauss(0, 0.3)
            draw.gauss(0, 1)
            found.append((prompt, length))
    return found


def results(name: str) -> dict[str, Any]:
    return read_json(RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()

"""How the learner's step grows: with its tokens, with the size of a group at equal completions, and over ranks.

    .venv/bin/python benchmarks/growth.py [--rounds 5] [--placements 1x1 1x2 2x1]

A step is what the loop does between advantages and new weights: the samples as one batch, dealt into minibatches and
packs, and an update with each minibatch. Random tokens with lengths like those of the small world: prompts of 27 to 70,
completions of 17 to 44.

    tokens      16 problems by 8 completions, and 2, 4 and 8 times as many problems; one rank, one thread
    group size  128 completions in groups of 2, 4, 8 and 16: a prompt goes through the model once for its group
    ranks       the same step by 1 rank with 1 thread, 1 rank with 2 threads, and 2 ranks (torchrun, FSDP2 over gloo)
                with 1 thread each; for the small world's policy and a wider one

A placement is a program that stays, and all of them take turns, step by step, in rounds; the first round is not
counted. Prints one table, medians over the rounds with their range, and the same over the first line of its kind, by
rounds. Writes benchmarks/results/growth.json and the figure docs/figures/growth.svg and .png; --redraw draws the figure
from that file alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from _common import ROOT, architecture, ratios, spread, table, write_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pspo.learner import Learner
    from pspo.ranks import Ranks
    from pspo.types import Sample

VOCABULARY = 369
POLICIES = {"0.6 M": (128, 4), "8 M": (384, 6)}  # millions of parameters: width, layers
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


class Work(NamedTuple):
    """A step."""

    problems: int
    group_size: int
    policy: str = "0.6 M"


class Placement(NamedTuple):
    """Processes of a learner, and threads of each."""

    ranks: int = 1
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.ranks}x{self.threads}"

    @property
    def described(self) -> str:
        return " x ".join(f"{n} {what}{'s' if n > 1 else ''}" for n, what in zip(self, ("rank", "thread"), strict=True))


class Measured(NamedTuple):
    """One line of the table."""

    kind: str
    work: Work
    placement: Placement = Placement()


SERIES = [
    *(Measured("tokens", Work(16 * times, 8)) for times in (1, 2, 4, 8)),
    *(Measured("group size", Work(128 // size, size)) for size in (2, 4, 8, 16)),
]
SHARED_WORK = [Work(16, 8), Work(8, 8, "8 M")]  # what the placements are compared by


# --- one placement: a program that makes a step whenever it is asked --------------------------------------------------


def samples_of(work: Work) -> list[Sample]:
    """Groups that share a prompt, of random tokens; the same completions for any group size."""
    from pspo.types import Sample

    draw = random.Random(0)

    def ids(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCABULARY) for _ in range(draw.randint(shortest, longest)))

    count = work.problems * work.group_size
    completions = [ids(17, 44) for _ in range(count)]
    prompts = [ids(27, 70) for _ in range(work.problems)]
    return [
        Sample(prompts[k // work.group_size], ids_, (-5.0,) * len(ids_), draw.choice([-1.0, 1.0]))
        for k, ids_ in enumerate(completions)
    ]


def make_learner(policy: str, ranks: Ranks) -> Learner:
    from pspo.config import TrainConfig, compose
    from pspo.learner import Learner
    from pspo.models import build
    from pspo.surrogates import from_config

    cfg = compose("train", TrainConfig, [])
    model = build(architecture(*POLICIES[policy]), VOCABULARY, eos_id=1, pad_id=0, seed=0, attention="sdpa").train()
    sampling = {"temperature": 1.0, "max_tokens": 64, "planned_updates": 1_000_000}
    return Learner(model, from_config(cfg.surrogate), cfg.learner, **sampling, ranks=ranks)


def one_step(learner: Learner, samples: list[Sample], ranks: Ranks) -> float:
    """Seconds, from the moment at which all ranks are there."""
    from pspo.batching import Batch, minibatches

    ranks.barrier("the next step")
    started = time.perf_counter()
    batch = Batch.of(samples)
    for number, part in enumerate(minibatches(batch, learner.cfg.minibatches, seed=0)):
        learner.update(batch, part, number)
    return time.perf_counter() - started


def serve(threads: int) -> None:
    """Answers lines of standard input, each a `Work`, with the seconds of its step, until there are no more."""
    from pspo.config.compose import bound_spinning

    bound_spinning()  # as every program of this project does
    import torch

    from pspo.ranks import joined

    torch.set_num_threads(threads)
    learners: dict[str, Learner] = {}
    with joined("cpu", timeout=600) as ranks:
        while line := ranks.from_first(sys.stdin.readline, "what to do next"):
            work = Work(*json.loads(line))
            if work.policy not in learners:
                learners[work.policy] = make_learner(work.policy, ranks)
            seconds = one_step(learners[work.policy], samples_of(work), ranks)
            if ranks.first:
                print(seconds, flush=True)


class Server:
    """A placement, started. A context manager; ends with it."""

    def __init__(self, placement: Placement) -> None:
        launch = [*LAUNCH, str(placement.ranks)] if placement.ranks > 1 else []
        self.process = subprocess.Popen(
            [sys.executable, *launch, __file__, "--serve", str(placement.threads)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(placement.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Callable[[Work], float]:
        return self.ask

    def __exit__(self, *error: Any) -> None:
        self.process.communicate()

    def ask(self, work: Work) -> float:
        """Seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("a learner has ended; what it said stands above")
        return float(answer)


# --- all of them ------------------------------------------------------------------------------------------------------


def measure(series: list[Measured], rounds: int) -> list[list[float]]:
    """Seconds of each of the series, by rounds; one round before them is not counted."""
    seconds: list[list[float]] = [[] for _ in series]
    with ExitStack() as stack:
        servers = {placement: stack.enter_context(Server(placement)) for placement in {m.placement for m in series}}
        for number in range(rounds + 1):
            for place, measured in enumerate(series):
                found = servers[measured.placement](measured.work)
                if number:
                    seconds[place].append(found)
    return seconds


def lines_of(series: list[Measured], seconds: list[list[float]]) -> list[dict[str, Any]]:
    """What is written and drawn: each of the series with its tokens."""
    found = []
    for measured, of_it in zip(series, seconds, strict=True):
        samples = samples_of(measured.work)
        prompts = {sample.prompt_ids for sample in samples}
        completions = sum(len(sample.completion_ids) for sample in samples)
        line = {"kind": measured.kind, **measured.work._asdict(), **measured.placement._asdict()}
        line |= {"tokens": sum(map(len, samples)), "tokens_with_shared_prompts": sum(map(len, prompts)) + completions}
        found.append(line | {"seconds": of_it})
    return found


def show(lines: list[dict[str, Any]]) -> str:
    rows, first = [], {}
    for line in lines:
        base = first.setdefault((line["kind"], line["policy"]), line)
        rows.append(
            [
                line["kind"],
                line["policy"],
                f"{line['problems']} x {line['group_size']}",
                Placement(line["ranks"], line["threads"]).described,
                f"{line['tokens']:,}",
                f"{line['tokens_with_shared_prompts']:,}",
                spread(line["seconds"], 3),
                spread([line["tokens"] / s for s in line["seconds"]], 5),
                spread(ratios(line["seconds"], base["seconds"]), 3),
            ]
        )
    head = ["what grows", "parameters", "problems x group", "ranks x threads", "tokens", "prompts once"]
    return table([*head, "step, s", "tokens/s", "time over the first's"], rows)


# --- the figure -------------------------------------------------------------------------------------------------------

# Okabe and Ito (2008): told apart with any kind of colour vision; in print by marker, dashes and hatching.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"


def draw(lines: list[dict[str, Any]], folder: Path) -> list[Path]:
    """growth.svg and growth.png: points are medians, bars go from the least to the most."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fixed = {"svg.fonttype": "none", "svg.hashsalt": "pspo", "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(fixed):
        figure, panels = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
        draw_tokens(panels[0], [line for line in lines if line["kind"] == "tokens"])
        draw_group_size(panels[1], [line for line in lines if line["kind"] == "group size"])
        draw_ranks(panels[2], [line for line in lines if line["kind"] == "ranks"])
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"growth.{ending}" for ending in ("svg", "png")]
        for path in paths:
            figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return paths


def medians(lines: list[dict[str, Any]], of: Callable[[dict[str, Any]], list[float]]) -> tuple[list[float], Any]:
    """Medians, and how far the range goes below and above each, as `errorbar` takes it."""
    values = [of(line) for line in lines]
    middle = [median(v) for v in values]
    below = [m - min(v) for m, v in zip(middle, values, strict=True)]
    above = [max(v) - m for m, v in zip(middle, values, strict=True)]
    return middle, [below, above]


def draw_tokens(panel: Axes, lines: list[dict[str, Any]]) -> None:
    thousands = [line["tokens"] / 1000 for line in lines]
    middle, reach = medians(lines, lambda line: line["seconds"])
    panel.errorbar(thousands, middle, reach, color=BLUE, marker="o", capsize=3, label="measured")
    straight = [middle[0] * x / thousands[0] for x in thousands]
    panel.plot(thousands, straight, color="black", linestyle=":", label="in proportion to the first")
    panel.set(title="tokens", xlabel="tokens of a step (thousands)", ylabel="time of a step (s)", xlim=0, ylim=0)
    panel.legend(frameon=False, fontsize="small")


def draw_group_size(panel: Axes, lines: list[dict[str, Any]]) -> None:
    sizes = [line["group_size"] for line in lines]
    middle, reach = medians(lines, lambda line: [s / line["seconds"][k] for k, s in enumerate(lines[0]["seconds"])])
    panel.errorbar(sizes, middle, reach, color=BLUE, marker="o", capsize=3, label="measured")
    fewer = [lines[0]["tokens_with_shared_prompts"] / line["tokens_with_shared_prompts"] for line in lines]
    panel.plot(sizes, fewer, color="black", linestyle=":", label="in proportion to tokens with each prompt once")
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    total = lines[0]["problems"] * lines[0]["group_size"]
    panel.set(title=f"group size, {total} completions", xlabel="completions of a prompt")
    panel.set(ylabel=f"speed over groups of {sizes[0]}", ylim=(0, 1.35 * max(*middle, *fewer)))
    panel.legend(frameon=False, fontsize="small")


def draw_ranks(panel: Axes, lines: list[dict[str, Any]]) -> None:
    """Bars: a policy beside the other within each placement."""
    policies = list(dict.fromkeys(line["policy"] for line in lines))
    styles = zip((BLUE, ORANGE, GREEN), ("", "//", ".."), policies, strict=False)
    for number, (colour, hatch, policy) in enumerate(styles):
        own = [line for line in lines if line["policy"] == policy]
        first = own[0]["seconds"]
        middle, reach = medians(own, lambda line, first=first: ratios(first, line["seconds"]))
        width = 0.8 / len(policies)
        at = [place + (number - (len(policies) - 1) / 2) * width for place in range(len(own))]
        panel.bar(at, middle, width, yerr=reach, capsize=3, color=colour, hatch=hatch, edgecolor="black", label=policy)
        names = [f"{line['ranks']} x {line['threads']}" for line in own]
        panel.set_xticks(range(len(own)), names)
    panel.axhline(1, color="black", linestyle=":", linewidth=1)
    panel.set(title="ranks and threads", xlabel="ranks x threads of each", ylabel="speed over 1 x 1")
    panel.set_ylim(0, 1.3 * panel.get_ylim()[1])
    panel.legend(frameon=False, fontsize="small", title="parameters", title_fontsize="small", ncols=2)


# ----------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--placements", nargs="+", default=["1x1", "1x2", "2x1"], metavar="RANKSxTHREADS")
    parser.add_argument("--redraw", action="store_true", help="the figure alone, from growth.json")
    parser.add_argument("--serve", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    figures = ROOT / "docs" / "figures"
    if options.redraw:
        lines = json.loads((ROOT / "benchmarks" / "results" / "growth.json").read_text())["lines"]
    else:
        placements = [Placement(*map(int, text.split("x"))) for text in options.placements]
        series = SERIES + [Measured("ranks", work, placement) for work in SHARED_WORK for placement in placements]
        lines = lines_of(series, measure(series, options.rounds))
        print(f"median of {options.rounds} rounds (range)")
        print(show(lines))
        write_results("growth", options={"rounds": options.rounds, "placements": options.placements}, lines=lines)
    for path in draw(lines, figures):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

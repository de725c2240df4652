"""Sampling one step ahead (rollout.ahead) against sampling and learning in turns: seconds of a step of the small world.

    .venv/bin/python benchmarks/ahead.py [--steps 12] [--pairs 5] [--set threads=1 ...]

Both are whole programs from the warm start (made first where it is missing), run in turn, in the regime stress, whose
two passes make learning about as long as sampling. Prints their table and writes benchmarks/results/ahead.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from _common import ROOT, ratios, spread, table, write_results
from step import medians

SIDES = {
    "in turns": [],
    "ahead": ["rollout.ahead=true"],
}
PHASES = {"step": "step, s", "learn": "learn, s", "rollout": "waiting for completions, s", "sync": "new weights, s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="further settings of pspo.train")
    options = parser.parse_args()
    subprocess.run([sys.executable, "-m", "pspo.sft"], cwd=ROOT, check=True)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for pair in range(options.pairs):
        for side in sorted(SIDES, reverse=pair % 2 == 1):
            settings = ["experiment=stress", *SIDES[side], *options.set]
            runs[side].append(medians(settings, options.steps))

    rows = [[text, *(spread([run[phase] for run in runs[side]]) for side in SIDES)] for phase, text in PHASES.items()]
    seconds = {side: [run["step"] for run in runs[side]] for side in SIDES}
    rows.append(["in turns over ahead, of a step", "", spread(ratios(seconds["in turns"], seconds["ahead"]), 3)])
    print(table([f"median of {options.pairs} runs (range)", *SIDES], rows))
    write_results("ahead", options=vars(options), runs=runs)


if __name__ == "__main__":
    main()

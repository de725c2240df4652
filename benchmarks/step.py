"""Where a step of the small world spends its time, by phase, with vLLM and with plain transformers as the sampler.

    .venv/bin/python benchmarks/step.py [--steps 12] [--pairs 3]

The two are run alternately, as programs of their own, each from the warm start (made first where it is missing).
Prints one table, medians over the steps with the range of the runs' medians, and writes benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import ROOT, spread, table, write_results

PHASES = ("rollout", "grade", "learn", "sync", "other", "step")


def medians(settings: list[str], steps: int) -> dict[str, float]:
    """Median seconds of each phase over the steps of one run; the first two, with the start-up checks, left out."""
    with tempfile.TemporaryDirectory() as folder:
        short = [f"run_dir={folder}/run", f"steps={steps}", "eval.every=0", "eval.at_end=false"]
        command = [sys.executable, "-m", "pspo.train", *settings, *short, "tracking.progress=false"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    counted = [line for line in lines if line["step"] > 2]
    found = {phase: statistics.median(line.get(f"time/{phase}_s", 0.0) for line in counted) for phase in PHASES}
    for name in ("rollout", "learn"):
        found[f"{name} tokens/s"] = statistics.median(line[f"speed/{name}_tokens_per_s"] for line in counted)
    found["grading and bookkeeping, share"] = (found["grade"] + found["other"]) / found["step"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    subprocess.run([sys.executable, "-m", "pspo.sft"], cwd=ROOT, check=True)
    engines = ["vllm", "hf"] if importlib.util.find_spec("vllm") else ["hf"]
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    for _ in range(options.pairs):
        for engine in engines:
            runs[engine].append(medians([f"rollout={engine}"], options.steps))

    rows = [
        [name, *(spread([run[name] for run in runs[engine]]) for engine in engines)] for name in runs[engines[0]][0]
    ]
    print(table([f"median of {options.pairs} runs (range)", *engines], rows))
    write_results("step", options=vars(options), runs=runs)


if __name__ == "__main__":
    main()

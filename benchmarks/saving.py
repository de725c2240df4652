"""What it costs that nothing is lost: time of checkpoints in runs of the small world, and until a killed run goes on.

    .venv/bin/python benchmarks/saving.py [--pairs 5] [--steps 20]

A run is `python -m pspo.train` with vLLM, as in `make reproduce`: from start-up to the last evaluation. Runs that save
after every step, the default, alternate with runs that save only the best and the last step. Then runs are killed
(SIGKILL), each in the middle of another step, and started again; the time from that start until the run goes on stands
beside that of a fresh run until it evaluates for the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import ROOT, ratios, spread, table, write_results

SETTINGS = ["tracking.progress=false", "threads=1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(run_dir: Path, steps: int, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "pspo.train", *SETTINGS, f"run_dir={run_dir}", f"steps={steps}", *overrides]


def whole_run(run_dir: Path, steps: int, *overrides: str) -> dict[str, float]:
    """Seconds of a run by the clock on the wall, of its checkpoints, and from its start to its first evaluation."""
    started, first = time.perf_counter(), 0.0
    with open(run_dir.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            command(run_dir, steps, *overrides), cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log
        )
        while process.poll() is None:
            if not first and lines_of(run_dir):
                first = time.perf_counter() - started - lines_of(run_dir)[0]["time/eval_s"]
            time.sleep(0.02)
    if process.returncode:
        sys.exit(run_dir.with_suffix(".log").read_text()[-2000:])
    wall = time.perf_counter() - started
    save = json.loads((run_dir / "summary.json").read_text())["seconds"]["save"]
    return {"wall": wall, "save": save, "until": first, "checkpoints": checkpoints(run_dir)}


def lines_of(run_dir: Path) -> list[dict[str, float]]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def checkpoints(run_dir: Path) -> int:
    """Lines that tell the time of the checkpoint before, and the last one."""
    return sum("time/save_s" in line for line in lines_of(run_dir)) + 1


def killed_in(run_dir: Path, steps: int, step: int, half: float) -> dict[str, float]:
    """Kills the run `half` seconds into `step` and starts it again: seconds until it goes on, and steps repeated."""
    begin(run_dir, steps, lambda: len(lines_of(run_dir / "run")) >= step, half)
    begun = len(lines_of(run_dir / "run"))  # with a line for step 0, that of the step that was under way
    until = begin(run_dir, steps, lambda: "goes on after step" in (run_dir / "log").read_text(), 0.0)
    found = (run_dir / "log").read_text()
    after = int(found.rpartition("goes on after step ")[2].split()[0].rstrip(","))
    return {"until": until, "repeated": begun - after}


def begin(run_dir: Path, steps: int, reached, more: float) -> float:
    """Starts the run, waits until `reached`, kills it `more` seconds later; seconds from the start until then."""
    run_dir.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with open(run_dir / "log", "w") as log:
        process = subprocess.Popen(
            command(run_dir / "run", steps), cwd=ROOT, env=ENVIRONMENT, stderr=log, stdout=log, process_group=0
        )
    while not reached():
        if process.poll() is not None:
            sys.exit((run_dir / "log").read_text()[-2000:])
        time.sleep(0.002)
    took = time.perf_counter() - started
    time.sleep(more)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    often, seldom, again = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(options.pairs):
            here = Path(folder, str(pair))
            here.mkdir()
            often.append(whole_run(here / "often", options.steps))
            seldom.append(whole_run(here / "seldom", options.steps, "saving.every=1000000"))
        step_s = statistics.median(
            json.loads(line)["time/step_s"] for line in (here / "often" / "metrics.jsonl").read_text().splitlines()[1:]
        )
        for pair in range(options.pairs):
            again.append(killed_in(Path(folder, f"killed-{pair}"), options.steps, 2 + pair, step_s / 2))
    share = [100 * run["save"] / run["wall"] for run in often]
    each = [1000 * run["save"] / run["checkpoints"] for run in often]
    walls = ratios([run["wall"] for run in often], [run["wall"] for run in seldom])
    rows = [
        ["a run's seconds, saving after every step", spread([run["wall"] for run in often])],
        ["of them spent saving, %", spread(share)],
        ["a checkpoint, ms", spread(each)],
        ["seconds with, over seconds without, pair by pair", spread(walls)],
        ["from the start of a fresh run until it evaluates, s", spread([run["until"] for run in often])],
        ["from the start of a killed run until it goes on, s", spread([run["until"] for run in again])],
        ["steps begun that were done again", spread([run["repeated"] for run in again])],
    ]
    print(table(["", "median (range)"], rows))
    write_results("saving", options=vars(options), often=often, seldom=seldom, again=again, step_s=step_s)


if __name__ == "__main__":
    main()

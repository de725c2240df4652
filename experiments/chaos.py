"""python experiments/chaos.py 100 --seed 0 [--jobs 2] [setting=value ...]: kills a small run at random moments.

A reference run is left alone. Runs of the same settings are then killed (SIGKILL to all of their processes) and
started again until they are complete, and each is compared with the reference: weights, metrics, evaluations, and
whatever else is in its directory (samebits.py). Beside the kills some are told to stop, by SIGTERM, SIGUSR1 or SIGINT,
and some lose a bit of what they have saved (chaoschain.py). One line a stop; status 1 at the first difference, with all
files kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from types import FrameType
from typing import Any

import chaosrun
from chaoschain import Chain, Difference, Pace, Quota, Stop
from chaospolicy import SETTINGS, make_policy
from chaosrun import Ended, Moment
from pspo.config import TrainConfig, compose
from pspo.errors import PspoError

REFERENCE_LIMIT_S = 1200.0


class Lab:
    """Where the runs are, how they are started, and what has been seen."""

    def __init__(self, place: Path, overrides: Sequence[str]) -> None:
        self.place, self.overrides = place, [*SETTINGS, *overrides]
        self.steps = compose("train", TrainConfig, self.overrides).steps
        self.limit = REFERENCE_LIMIT_S
        self.ending = threading.Event()
        self.stops: list[Stop] = []
        self._starts = Counter[str]()
        self._lock = threading.Lock()

    def start(self, run: str, moment: Moment | None, number: signal.Signals) -> Ended:
        self._starts[run] += 1  # of a run one at a time
        log = self.place / f"{run}.{self._starts[run]}.log"
        command = [sys.executable, "-m", "pspo.train", *self.overrides, f"run_dir={self.place / run}"]
        return chaosrun.start(command, self.place / run, log, moment, number, self.limit, self.ending.is_set)

    def reference(self) -> Pace:
        """Makes the policy and the run that is left alone. Raises PspoError where that is of no use."""
        self.overrides.append(f"model.path={make_policy(self.place / 'policy', self.overrides)}")
        ended, run_dir = self.start("reference", None, signal.SIGKILL), self.place / "reference"
        if ended.status or not (run_dir / "DONE").exists():
            raise PspoError(f"the undisturbed run has failed with status {ended.status}:\n{ended.said[-3000:]}")
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][1:]
        if idle := [line["step"] for line in lines if not line["optim/groups"] or not line["optim/grad_norm"]]:
            raise PspoError(f"steps {idle} of the undisturbed run have no gradient: nobody could see that one was lost")
        rewards = " ".join(f"{line['reward/mean']:.2f}" for line in lines)
        best = json.loads((run_dir / "summary.json").read_text())["best_step"]
        pace = Pace(self.steps, ended.set_up, ended.seconds - ended.set_up)
        print(
            f"reference: {self.steps} steps, the best {best}; {pace.set_up:.0f} s to set up and {pace.rest:.1f} s;"
            f" rewards {rewards}",
            flush=True,
        )
        self.limit = 120 + 5 * ended.seconds
        return pace

    def tell(self, stop: Stop) -> None:
        with self._lock:
            self.stops.append(stop)
            kills = sum(stop.signal == "SIGKILL" for stop in self.stops)
            print(f"{kills if stop.signal == 'SIGKILL' else '-':>4}  {stop}", flush=True)


def chaos(lab: Lab, kills: int, seed: int, jobs: int) -> dict[str, Any]:
    """Makes the kills, `jobs` runs beside each other; the record of it, whose "difference" is None or the first one."""
    started, pace, quota = time.monotonic(), lab.reference(), Quota(kills)
    chains = [Chain("abcdefgh"[k], lab.place, seed, pace, lab.start, quota) for k in range(jobs)]
    difference = None
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(chain.go, lab.tell) for chain in chains]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            failed = [error for task in done if (error := task.exception()) is not None]
        finally:
            lab.ending.set()  # the others, where one has failed
    for error in failed:
        if not isinstance(error, Difference):
            raise error
        difference = str(error)
    killed = [stop for stop in lab.stops if stop.signal == "SIGKILL"]
    return {
        "kills": len(killed),
        "runs": sum(chain.runs for chain in chains),
        "starts": quota.starts,
        "seed": seed,
        "settings": lab.overrides,
        "kills_by_place": dict(Counter(stop.place for stop in killed).most_common()),
        "told_to_stop": dict(Counter(stop.signal for stop in lab.stops if stop.signal != "SIGKILL").most_common()),
        "damaged": sum(bool(stop.damage) for stop in lab.stops),
        "difference": difference,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "stops": [asdict(stop) for stop in lab.stops],
    }


def in_words(record: dict[str, Any]) -> str:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    return (
        f"{record['kills']} kills in {record['runs']} runs: {listed(record['kills_by_place'])}\n"
        f"beside them told to stop: {listed(record['told_to_stop'])}; damaged afterwards: {record['damaged']}\n"
        f"{'A DIFFERENCE' if record['difference'] else '0 differences'}, {record['minutes']} minutes"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--jobs", type=int, default=1, choices=range(1, 9), help="runs beside each other (default 1)")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="a folder is made in it (default runs)")
    parser.add_argument("--json", type=Path, help="a file for the record")
    parser.add_argument("overrides", nargs="*", help="settings of python -m pspo.train, such as rollout=hf")
    options = parser.parse_intermixed_args()
    engine = [] if importlib.util.find_spec("vllm") else ["rollout=hf"]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    options.place.mkdir(parents=True, exist_ok=True)
    lab = Lab(Path(mkdtemp(prefix="chaos-", dir=options.place)).resolve(), [*engine, *options.overrides])
    try:
        record = chaos(lab, options.kills, options.seed, options.jobs)
    except PspoError as error:
        print(f"chaos: {error}\nchaos: what there is, is in {lab.place}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"chaos: interrupted; what there is, is in {lab.place}", file=sys.stderr)
        return 130
    print(in_words(record))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if record["difference"]:
        print(f"chaos: {record['difference']}\nchaos: everything is kept in {lab.place}", file=sys.stderr)
        return 1
    shutil.rmtree(lab.place)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what is to be ended, ends within a second
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

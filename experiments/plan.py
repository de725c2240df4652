"""python experiments/plan.py scale=paper gpus=8 gpu=h100: hours of every study, from a forecast of each of its runs.

`python -m pspo.plan` has one run in all its parts. Other settings are added to every run, as `overrides` of
reproduce.py are. Runs nothing and needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from forecasts import device_hours, forecast_of
from pspo.config import PlanConfig, StudyConfig, compose, program
from pspo.plan.forecast import GIB
from studies import STUDIES, cells_of, load_study

OWN = ("scale", "gpu", "gpus", "prompt_tokens", "completion_tokens")
"""What is not a setting of the runs."""


@dataclass(frozen=True)
class Line:
    """A study: its runs, how many of them fit on one device, and hours of all and of the longest."""

    study: str
    runs: int
    fit: int
    device_hours: float
    longest: float
    most_gib: float

    def wall(self, devices: int) -> float:
        """Hours with so many devices and a run on each: no less than the longest takes."""
        return max(self.longest, self.device_hours / devices)


@program("plan", PlanConfig, cells_are="never")
def main(cfg: PlanConfig) -> None:
    wall = f"hours on {cfg.gpus}"
    print(f"{'study':<12}{'runs':>6}{'device-hours':>14}{wall:>14}{'GiB at most':>14}   {cfg.gpu.name}, a run on each")
    more = [text for text in sys.argv[1:] if text.partition("=")[0].partition(".")[0].lstrip("+~") not in OWN]
    for name in sorted(path.stem for path in STUDIES.glob("*.yaml")):
        if cfg.scale in load_study(name).scales:
            one = line_of(name, cfg, more)
            figures = f"{one.device_hours:>14,.1f}{one.wall(cfg.gpus):>14,.1f}{one.most_gib:>14.1f}"
            left = f"   {one.runs - one.fit} runs do not fit on one: changed, or left out" if one.fit < one.runs else ""
            print(f"{name:<12}{one.runs:>6}{figures}{left}", flush=True)
    print("Evaluations and benchmarks included. A run that two studies share counts in both.")


def line_of(name: str, cfg: PlanConfig, overrides: Sequence[str]) -> Line:
    study = load_study(name)
    asked = replace(compose("study", StudyConfig, [f"study={name}", f"scale={cfg.scale}"]), overrides=tuple(overrides))
    cells = cells_of(study, asked)
    first = [cell for cell in cells if cell.seed == study.seeds[0]]  # seeds take the same
    plans = [forecast_of(cell, cfg.gpu, cfg.prompt_tokens, cfg.completion_tokens) for cell in first]
    each = [device_hours(cell, study, asked, plan) or 0.0 for cell, plan in zip(first, plans, strict=True)]
    return Line(
        study=name,
        runs=len(cells),
        fit=len(study.seeds) * sum(plan.fits for plan in plans),
        device_hours=len(study.seeds) * sum(each),
        longest=max(each),
        most_gib=max(plan.needed for plan in plans) / GIB,
    )


if __name__ == "__main__":
    main()

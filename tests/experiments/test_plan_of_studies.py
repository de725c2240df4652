"""Hours of every study at a scale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pspo.config import PlanConfig, compose


def test_settings_are_those_of_every_run(root: Path) -> None:
    from plan import line_of

    cfg = compose("plan", PlanConfig, ["scale=paper", "gpus=4"])
    as_it_is, halved = line_of("alpha", cfg, []), line_of("alpha", cfg, ["steps=656"])
    assert as_it_is.runs == 30 and as_it_is.fit == 30 and as_it_is.longest < as_it_is.device_hours / 29
    assert halved.device_hours < 0.7 * as_it_is.device_hours
    assert as_it_is.wall(4) == as_it_is.device_hours / 4 and as_it_is.wall(100) == as_it_is.longest


def test_a_wrong_setting_is_one_line(root: Path) -> None:
    command = [sys.executable, "experiments/plan.py", "scale=paper", "seed=3"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "overrides=seed=3" in done.stderr and "Traceback" not in done.stderr

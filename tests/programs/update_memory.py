"""Memory of a learner's second update: measured by tests/programs/peak_of_update.py, and by the plan's formula."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pspo.config import TrainConfig, compose
from pspo.plan.memory import Pack, learning
from pspo.plan.shapes import Shape

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


def measured_over_planned(root: Path, width: int, layers: int, vocabulary: int, groups: int, *overrides: str) -> float:
    """Of a policy of these sizes and so many groups of 8 completions of 40 tokens, which share a prompt of 59."""
    settings = ["surrogate=clip", *overrides]
    done = subprocess.run(
        [sys.executable, "tests/programs/peak_of_update.py", repr((width, layers, vocabulary, groups, settings))],
        cwd=root,
        env={**os.environ, **GIVEN_BACK, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    cfg = compose("train", TrainConfig, settings)
    tokens, targets = groups * (59 + 8 * 39), groups * 8 * 40
    packs = -(-tokens // cfg.learner.token_budget)
    pack = Pack(tokens / packs, targets / packs, (targets + groups * 9 * 59) / packs, 79)
    shape = Shape(width, layers, width // 64, width // 128, 4 * width, vocabulary, True)
    return float(done.stdout) / (learning(cfg, shape, 1, packs, pack).peak / 2**20)

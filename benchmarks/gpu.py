"""What one NVIDIA card does of this project's work: rates, memory, and the plan's figures beside them.

    .venv/bin/python benchmarks/gpu.py [--only learner sync] [--minutes 9.5] [--set model.attention=padded ...]
    .venv/bin/python benchmarks/gpu.py --device cpu --small        # the same code at toy sizes, to see that it runs

Random weights in the shapes of Qwen2-1.5B and, for whole steps, Qwen2-0.5B; nothing is fetched. Parts, each a process
of its own, in this order:

    products  bf16 matrix products of the policy's sizes: the rate that the card reaches
    learner   updates of 64 completions in 16 groups with lengths like GSM8K's: tokens/s, model-flops utilisation against
              that rate and the data sheet's, peak memory beside the plan's; as it is, with layers computed twice, with
              layers compiled, and with moments in the host's memory
    trl       TRL's GRPOTrainer with the same batch, from the same weights; losses and gradient norms are compared
    sampling  completion tokens/s of the engine, at two numbers of sequences
    sync      new weights to the engine, which is awake or has slept
    loop      a run of pspo.train: seconds of its phases, and the plan's

What is not installed, fails, or no longer fits into --minutes is left out and says so. At the end each rate of conf/gpu/
that was measured stands beside what the file has. Writes benchmarks/results/gpu-<card>.json. Without a card it says so
and ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _common import GIVEN_BACK, RESULTS, ROOT, Seen, gap, make_checkpoint, ratios, spread, table, write_results
from _gpu_common import DATA_SHEET, Work, machine_of
from _gpu_engine import PHASES, measure_steps, measure_sampling, measure_sync
from _gpu_learner import VARIANTS, measure_learner, measure_products, measure_trl
from _gpu_rates import measured_rates

SECTIONS = ("products", "learner", "trl", "sampling", "sync", "loop")
PARTS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "products": measure_products,
    **{name: partial(_variant, name) for name in ()},
}

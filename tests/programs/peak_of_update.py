"""peak_of_update.py "(width, layers, vocabulary, groups, overrides)": MiB that a learner takes in its second update.

On the device that the overrides name, beside what the process had before. Groups of 8 completions of 40 tokens share a
prompt of 59.
"""

from __future__ import annotations

import ast
import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from _common import Peak

from pspo.batching import Batch
from pspo.config import TrainConfig, compose
from pspo.config.schema import Architecture
from pspo.learner import Learner
from pspo.models import build
from pspo.surrogates import from_config
from pspo.types import Sample

PROMPT, COMPLETION = tuple(range(100, 158)), tuple(range(2, 42))


def update_twice(
    width: int, layers: int, vocabulary: int, samples: list[Sample], cfg: TrainConfig, peak: Peak | None = None
) -> None:
    """`peak` counts from the beginning of the second update."""
    arch = Architecture(width, layers, width // 64, width // 128, 4 * width, 256, 1e4, True)
    model = build(arch, vocabulary, eos_id=1, pad_id=0, seed=0).to(cfg.device)
    learner = Learner(
        model,
        from_config(cfg.surrogate),
        cfg.learner,
        compute_dtype=cfg.model.dtype,
        temperature=1.0,
        max_tokens=64,
        planned_updates=9,
    )
    for number in range(2):
        if number and peak is not None:
            peak.reset()
        learner.update(Batch.of(samples, cfg.device), range(len(samples)), number)


width, layers, vocabulary, groups, overrides = ast.literal_eval(sys.argv[1])
cfg = compose("train", TrainConfig, overrides)
samples = [Sample((k // 8 + 2, *PROMPT), COMPLETION, (-5.0,) * 40, float(k % 2)) for k in range(8 * groups)]
update_twice(128, 1, 512, samples[:2], cfg)  # what is set up once
gc.collect()
peak = Peak(cfg.device)
update_twice(width, layers, vocabulary, samples, cfg, peak)
print(peak.read())

"""What the benchmarks share: spreads and tables, results on the disk, time, memory, policies, samples, TRL as peer."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pspo.provenance import provenance
from pspo.types import Sample

if TYPE_CHECKING:
    from pspo.config.schema import Architecture, DType

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Told to glibc's malloc: nothing is mapped anew for a tensor; or all above 64 KiB is, and goes back when it is freed.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
GIVEN_BACK = {"MALLOC_MMAP_MAX_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
GIVEN_BACK |= {"MALLOC_TOP_PAD_": "0"}
PEERS = ("trl", "accelerate", "datasets", "peft")
QWEN = 151_936
"""Entries of Qwen2's vocabulary."""
MIB = 1 << 20


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Median and range."""
    shown = (f"{value:,.{digits}g}" for value in (statistics.median(values), min(values), max(values)))
    return "{} ({} to {})".format(*shown)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, pair by pair."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_results(name: str, directory: Path = RESULTS, **results: Any) -> None:
    """<directory>/<name>.json, with what the numbers were made with."""
    made_with = provenance(apart_from=("benchmarks/results", "docs/figures"))
    if "with changes" in made_with["commit"]:
        print(f"warning: files differ from the commit: the results are of {made_with['commit']}", file=sys.stderr)
    there = [peer for peer in PEERS if peer not in find_missing()]
    peers = ", ".join(f"{peer} {metadata.version(peer)}" for peer in there)
    path = directory / f"{name}.json"
    directory.mkdir(parents=True, exist_ok=True)
    found = {"provenance": made_with | {"peers": peers}, **results}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False, default=str) + "\n")
    print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def architecture(width: int, layers: int) -> Architecture:
    """Of a policy shaped like the small world's: 9 width^2 parameters a layer."""
    from pspo.config.schema import Architecture

    return Architecture(width, layers, width // 32, width // 64, 2 * width, 256, 1e4, True)


def make_checkpoint(arch: Architecture, vocabulary: int, directory: Path, dtype: DType = "float32") -> None:
    """A policy with random weights and the small world's tokenizer; at least as many entries as that has."""
    from pspo.config import TrainConfig, compose
    from pspo.data import eos_ids
    from pspo.data.tokenizer import build_tokenizer
    from pspo.models import DTYPES, build, save_policy
    from pspo.startup import prepare

    prepare("cpu", threads=None)
    tokenizer = build_tokenizer(compose("train", TrainConfig, []).data)
    entries = max(vocabulary, len(tokenizer))
    model = build(arch, entries, eos_ids(tokenizer)[0], tokenizer.pad_token_id, seed=0)
    save_policy(model.to(DTYPES[dtype]), tokenizer, directory)


def batch_of(groups: int, group_size: int, vocabulary: int = QWEN, seed: int = 0) -> list[Sample]:
    """Groups with one prompt of 60 to 160 tokens and completions of 20 to 256, most of them near 90: GSM8K's."""
    draw = random.Random(seed)
    samples = []
    for _ in range(groups):
        prompt = tuple(draw.randrange(2, vocabulary) for _ in range(draw.randint(60, 160)))
        for _ in range(group_size):
            length = min(256, max(20, round(draw.lognormvariate(math.log(90), 0.6))))
            completion = tuple(draw.randrange(2, vocabulary) for _ in range(length))
            # Random weights give every token about 1/V: these are ratios on both sides of the clipping range.
            sampled = tuple(-math.log(vocabulary) + draw.gauss(0, 0.3) for _ in range(length))
            samples.append(Sample(prompt, completion, sampled, draw.gauss(0, 1)))
    return samples


class Seen(NamedTuple):
    """One update."""

    seconds: float
    loss: float
    grad_norm: float


def gap(ours: Seen, theirs: Seen) -> tuple[float, float]:
    """Of the losses, and of the gradient norms relative to theirs."""
    return abs(ours.loss - theirs.loss), abs(ours.grad_norm - theirs.grad_norm) / theirs.grad_norm


def clock(device: str) -> float:
    """Seconds, when the device has done what it was told."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


class Peak:
    """Peak memory in MiB above that at construction: on CUDA by torch's count, on a CPU of the process."""

    def __init__(self, device: str) -> None:
        self.device, self.base = device, 0.0
        self.base = self._now("VmRSS", "memory_allocated")

    def reset(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            start_peak()

    def read(self) -> float:
        return self._now("VmHWM", "max_memory_allocated") - self.base

    def _now(self, field: Literal["VmRSS", "VmHWM"], count: str) -> float:
        if self.device == "cuda":
            import torch

            return float(getattr(torch.cuda, count)()) / MIB
        return resident(field)


def resident(field: Literal["VmRSS", "VmHWM"]) -> float:
    """MiB that this process has now, or had at its peak; Linux only."""
    status = Path("/proc/self/status")
    if not status.is_file():
        sys.exit("there is no /proc/self/status: memory on a CPU is measured on Linux only")
    return float(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(field))) / 1024


def start_peak() -> None:
    """VmHWM counts from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def quiet() -> None:
    """Before TRL is imported: none of its and its libraries' notices between the rows of a table."""
    if find_missing():
        sys.exit(f"not installed: {', '.join(find_missing())}. `make bench` installs what is measured against")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def find_missing() -> list[str]:
    missing = []
    for peer in PEERS:
        try:
            metadata.version(peer)
        except metadata.PackageNotFoundError:
            missing.append(peer)
    return missing


def trl_settings(folder: str, device: str, **settings: Any) -> dict[str, Any]:
    """What every GRPOConfig here has: nothing but the training itself, in the same arithmetic as ours.

    `gradient_checkpointing` is on in TRL's defaults and off here, as in ours: it trades speed for memory, on both sides
    alike. `bf16` is autocast over fp32 weights, as in ours.
    """
    return {
        "output_dir": folder,
        "use_cpu": device == "cpu",
        "bf16": device == "cuda",
        "gradient_checkpointing": False,
        "beta": 0.0,
        "num_iterations": 1,
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "scale_rewards": "group",
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "temperature": 1.0,
        "optim": "adamw_torch_fused",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "shuffle_dataset": False,
        **settings,
    }

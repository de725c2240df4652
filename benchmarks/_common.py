"""What the benchmarks share: spreads and tables, results on the disk, memory, and TRL set up as a peer."""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pspo.provenance import provenance

if TYPE_CHECKING:
    from pspo.config.schema import Architecture

ROOT = Path(__file__).resolve().parents[1]
# Told to glibc's malloc: nothing is mapped anew for a tensor; or all above 64 KiB is, and goes back when it is freed.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
GIVEN_BACK = {"MALLOC_MMAP_MAX_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
GIVEN_BACK |= {"MALLOC_TOP_PAD_": "0"}
PEERS = ("trl", "accelerate", "datasets", "peft")


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


def write_results(name: str, **results: Any) -> None:
    """benchmarks/results/<name>.json, with what the numbers were made with."""
    made_with = provenance(apart_from=("benchmarks/results", "docs/figures"))
    if "with changes" in made_with["commit"]:
        print(f"warning: files differ from the commit: the results are of {made_with['commit']}", file=sys.stderr)
    there = [peer for peer in PEERS if peer not in find_missing()]
    peers = ", ".join(f"{peer} {metadata.version(peer)}" for peer in there)
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    found = {"provenance": made_with | {"peers": peers}, **results}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False, default=str) + "\n")
    print(path.relative_to(ROOT))


def architecture(width: int, layers: int) -> Architecture:
    """Of a policy shaped like the small world's: 9 width^2 parameters a layer."""
    from pspo.config.schema import Architecture

    return Architecture(width, layers, width // 32, width // 64, 2 * width, 256, 1e4, True)


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

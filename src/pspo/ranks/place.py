"""Where this process stands among those of its run, and the key-value store at which they meet."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from pspo.errors import PspoError


class Place(NamedTuple):
    """What a launcher told this process."""

    rank: int
    size: int
    local_rank: int
    host: str
    port: int
    name: str  # of the run, so that two runs at one address do not mix
    launcher: str
    hosts: bool  # does this process hold the store at host:port? torchrun's agent may


def find_place(env: Mapping[str, str]) -> Place | None:
    """From the environment; None for one process alone. Raises PspoError naming a variable that cannot be."""
    if "RANK" in env:
        launcher, names = "torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        run = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    elif "MASTER_ADDR" in env and "SLURM_PROCID" in env:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"  # a step may be smaller
        launcher, names = "srun", ("SLURM_PROCID", tasks, "SLURM_LOCALID")
        run = ("SLURM_JOB_ID", "SLURM_STEP_ID")
    else:
        return None
    rank, size, local_rank = (_whole(env, name) for name in names)
    if size == 1 and rank == 0:
        return None
    if not rank < size:
        raise PspoError(f"{names[0]}={rank}: must be below {names[1]}={size}")
    host, port = env.get("MASTER_ADDR", ""), _whole(env, "MASTER_PORT", default="29500")
    if not host:
        raise PspoError("MASTER_ADDR is not set: it has to name the machine of rank 0 (torchrun sets it)")
    name = "/".join(("pspo", *(env.get(variable, "") for variable in run)))
    hosts = rank == 0 and not (launcher == "torchrun" and env.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    return Place(rank, size, local_rank, host, port, name, launcher, hosts)


def _whole(env: Mapping[str, str], name: str, default: str = "") -> int:
    text = env.get(name, default)
    if not text.isdecimal():
        raise PspoError(f"{name}={text or None}: the launcher has to set it to a whole number")
    return int(text)


def take_device(place: Place) -> int:
    """Makes the local rank's CUDA device this process's own; returns its index."""
    import torch

    seen, index = torch.cuda.device_count(), place.local_rank
    if place.launcher == "srun" and seen == 1:
        index = 0  # --gpus-per-task shows each task its own device alone
    if index >= seen:
        raise PspoError(f"local rank {index}: torch sees {seen} CUDA devices here; start at most one process a device")
    torch.cuda.set_device(index)
    return index


def open_store(place: Place, timeout: float) -> tuple[Any, Any]:
    """The key-value store at MASTER_ADDR:MASTER_PORT: itself, where this process holds it, and a connection to it."""
    from torch.distributed import TCPStore

    at, limit, server = f"MASTER_ADDR={place.host} MASTER_PORT={place.port}", timedelta(seconds=30), None
    try:
        if place.hosts:
            server = TCPStore("127.0.0.1", place.port, None, True, timeout=limit, wait_for_workers=False)
        if not _answers(place, timeout):  # torch waits too, but Ctrl-C does not end that
            raise PspoError(f"rank {place.rank}: no answer at {at} within {timeout:g} s: is rank 0 there?")
        return server, TCPStore(place.host, place.port, None, False, timeout=limit, wait_for_workers=False)
    except RuntimeError as error:  # torch's
        raise PspoError(f"rank {place.rank}: {at} cannot be used, choose another port: {error}") from error


def _answers(place: Place, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            socket.create_connection((place.host, place.port), timeout=5).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False

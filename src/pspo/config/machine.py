"""What a plan knows of a device: its memory, and how fast it does what a step is made of (`conf/gpu/`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, Strict

from pspo.config.schema import FORBID, Device, NonNegative, Positive, Text


@dataclass(frozen=True)
class Machine:
    """One device, its links to others, and rates that were measured or are assumed; each says which in `conf/gpu/`."""

    __pydantic_config__ = FORBID
    name: Text
    kind: Device
    memory_gib: Positive
    matmul_tflops: Positive
    """What matrix products of a step's sizes reach, in the dtype of the policy's computation."""
    bandwidth_gbs: Positive
    """Of the device's memory, GB/s."""
    activation_gbs: Positive
    """Element-wise work of a step: GB/s of what the backward pass keeps, gone through forward and backward."""
    logit_bytes: NonNegative
    """Memory traffic for a logit of the tiled head beside its products, in bytes, each time it is computed."""
    launch_ms: NonNegative
    """Of a layer, forward and backward, of one pack, whatever its size: the time to launch its kernels. A GPU computes
    meanwhile; a CPU does not."""
    engine_step_ms: NonNegative
    """Of a step of the sampling engine beside what it computes."""
    engine_sequence_ms: NonNegative
    """The same, for each sequence in it."""
    start_s: NonNegative
    """Of a run before its first step."""
    link_gbs: Positive
    """Between devices of a node, GB/s in one direction."""
    network_gbs: Positive
    """Between nodes, GB/s for each device."""
    per_node: Annotated[int, Strict(), Field(ge=1)]
    utilisation: Annotated[float, Strict(), Field(gt=0, le=1)]
    """Share of the memory that may be planned with."""

"""What a plan knows of a device: its memory, and how fast it does what a step is made of (`conf/gpu/`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, Strict

from pspo.config.schema import FORBID, Count, Device, Text

Positive = Annotated[float, Strict(), Field(gt=1e-6, lt=1e6)]
NonNegative = Annotated[float, Strict(), Field(ge=0, lt=1e6)]


@dataclass(frozen=True)
class Machine:
    """One device and its links to others. Where each rate comes from stands beside it in `conf/gpu/`."""

    __pydantic_config__ = FORBID
    name: Text
    kind: Device
    memory_gib: Positive
    utilisation: Annotated[float, Strict(), Field(gt=0, le=1)]
    """Share of the memory that may be planned with."""
    bf16_tflops: Positive
    """What matrix products of a step's sizes reach."""
    fp32_tflops: Positive
    bandwidth_gbs: Positive
    """Of the device's memory, GB/s."""
    activation_gbs: Positive
    """Element-wise work of a step: GB/s of what the backward pass keeps, gone through forward and backward."""
    head_bytes: NonNegative
    """Memory traffic of the tiled head beside its products, bytes for a logit each time it is computed."""
    layer_host_ms: NonNegative
    """What the host takes for a layer of one pack, forward and backward, whatever its size. A GPU computes meanwhile; a
    CPU does not."""
    engine_step_ms: NonNegative
    """Of a step of the sampling engine beside what it computes."""
    engine_sequence_ms: NonNegative
    """The same, for each sequence in it."""
    sync_ms: NonNegative
    """Of new weights to the engine, whatever their size."""
    sync_gbs: Positive
    """How fast the engine takes them in."""
    start_s: NonNegative
    """Of a process before it samples or learns."""
    host_gbs: Positive
    """Between the device and its host's memory, GB/s in one direction."""
    link_gbs: Positive
    """Between devices of a node, GB/s in one direction."""
    network_gbs: Positive
    """Between nodes, GB/s for each device."""
    per_node: Count

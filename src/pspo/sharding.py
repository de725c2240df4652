"""A policy spread over the ranks by FSDP2, and what ranks know put together. Imports: torch, the rooms of
layers and ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from pspo.layers import layers_of
from pspo.ranks import Ranks


def shard(
    policy: nn.Module, model: PreTrainedModel, ranks: Ranks, device: torch.device, compute_dtype: torch.dtype | None
) -> None:
    """Spreads the parameters of `policy`, in place, whose forward computes with the layers of `model`.

    From the host's memory they move to `device` a layer at a time, of which it keeps its shard; embedding and head, the
    last, together.

    A layer is whole on a rank only while it computes, in `compute_dtype` (None: its own), as is its gradient from one
    pack; parameters, and the gradients' sums over ranks and packs, stay in the dtype of what is learned. The rest
    of the model, embedding and head, is whole for the forward and backward pass of a pack. Gradients are summed, not
    averaged: a rank's loss is its share.
    """
    mesh = init_device_mesh(device.type, (ranks.size,))
    learned = [parameter.dtype for parameter in model.parameters() if parameter.requires_grad]
    stored = learned[0] if learned else None
    dtypes = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=stored, cast_forward_inputs=False)
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=dtypes)
    fully_shard(policy, mesh=mesh, mp_policy=dtypes)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # what gloo knows, and NCCL has zero-copy kernels for


def reshard(policy: nn.Module) -> None:
    """Lets go of what a forward pass without backward leaves whole, in the compute dtype: embedding and head."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def merged_known(values: Tensor, ranks: Ranks, what: str) -> Tensor:
    """[K] on every rank, NaN where that rank does not know -> [K] with what any of them knows. Ranks that know the same
    value know the same bits of it."""
    if ranks.size == 1 or not len(values):
        return values
    found = torch.where(values.isnan(), -torch.inf, values)
    with ranks.expecting(what):
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return torch.where(found.isneginf(), torch.nan, found)

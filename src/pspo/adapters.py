"""Low-rank adapters (LoRA, arXiv 2106.09685) on a policy, and how its weights leave the learner.

    W' = W + (alpha / rank) B A       A [rank, in], B [out, rank] learned, W [out, in] frozen

B starts at zero, so that the policy is the starting policy until the first update. Samplers and checkpoints see W'
under the names of the plain checkpoint: nothing outside the learner knows of adapters. Imports: torch, safetensors,
transformers for the model's type; peft where adapters are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pspo.config import schema
from pspo.errors import ConfigError
from pspo.seeds import derive

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"  # the name peft knows it by; a part of its parameters' names


def add_lora(model: PreTrainedModel, cfg: schema.Lora, seed: int) -> PreTrainedModel:
    """Puts adapters into `model` in place, freezes everything else, and returns it. To be called before sharding.

    The modules keep their places: `model.base_model`, the embeddings and the head are as before. Adapters are float32
    whatever the dtype of the frozen weights, which may be bfloat16: an update of an adapter is as small as one of a
    weight. A's values follow from `seed` and the layer's name alone, on every device. The global random state is as
    before afterwards. Raises ConfigError for targets that are no linear layers of the model, or its head.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if _layers(model):
        raise ValueError("the model has adapters already")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=0.0,
        target_modules=_target_names(model, cfg.targets),
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):  # peft draws, too
        inject_adapter_in_model(config, model, ADAPTER)
    model.requires_grad_(False)
    for name, layer in _layers(model).items():
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        down.float().requires_grad_(True)  # peft made them in the dtype of the layer
        up.float().requires_grad_(True)
        # as peft does it: uniform in +-1 / sqrt(in)
        drawn = torch.empty(down.weight.shape)
        generator = torch.Generator().manual_seed(derive(seed, "lora", name))
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            down.weight.copy_(drawn)
            up.weight.zero_()
    return model


def has_adapters(model: PreTrainedModel) -> bool:
    return bool(_layers(model))


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights under the names of the plain checkpoint, one by one; tied ones once.

    An adapted layer's is W', computed in float32 (float64 for such a W) and rounded to the dtype of W once; everything
    else is the parameter itself, detached, not copied. The model is left as it is. Of a sharded model every rank must
    go through all of them: each parameter is gathered as its turn comes, so that at most one exists whole at a time.
    In bfloat16 a change below 2**-9 of a weight is rounded away here, as it would be in the sampler.
    """
    layers = _layers(model)
    for name, parameter in model.named_parameters():
        layer, _, rest = name.partition(".base_layer.")
        if name.partition(".lora_")[0] in layers:
            continue
        if layer in layers and rest == "weight":
            yield f"{layer}.weight", _merged(layers[layer], parameter)
        else:
            yield f"{layer}.{rest}" if layer in layers else name, _whole(parameter)


def state_dict_to_save(model: PreTrainedModel, keep: bool = True) -> dict[str, Tensor]:
    """What `model.save_pretrained(directory, state_dict=...)` is to write: `merged_weights`, and buffers, on the CPU.

    Of a sharded model all ranks call it, and those that do not write pass keep=False: they help to gather and get {}.
    Tensors on the CPU share the model's memory: write them before the next update.
    """
    found = {}
    for name, weight in merged_weights(model):
        if keep:
            found[name] = weight.cpu()
    if keep:
        persistent = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name in persistent:
                found[name.replace(".base_layer.", ".")] = buffer.cpu()
    return found


@contextmanager
def reference(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within the block the adapters are off, and `model` is the policy that training started from.

    For forward passes without gradient: with gradient checkpointing a backward pass would compute with whatever is on
    by then. Afterwards everything is as it was, also after an error. Raises ValueError where there are no adapters.
    """
    layers = list(_layers(model).values())
    if not layers:
        raise ValueError("the model has no adapters: the policy that it started from is not in it")
    were_off = [layer.disable_adapters for layer in layers]
    _switch(layers, [True] * len(layers))
    try:
        yield model
    finally:
        _switch(layers, were_off)


def _switch(layers: Sequence[LoraLayer], off: Sequence[bool]) -> None:
    """Adapters off or on. peft changes requires_grad with it; here it stays, so that whoever picks the learned
    parameters by it finds the same ones at any time."""
    for layer, is_off in zip(layers, off, strict=True):
        learned = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        layer.enable_adapters(not is_off)
        for parameter, requires_grad in learned:
            parameter.requires_grad_(requires_grad)


def _merged(layer: LoraLayer, weight: Tensor) -> Tensor:
    """W' of a layer, whose W is `weight`, in the dtype of W."""
    base = _whole(weight)
    dtype = torch.promote_types(base.dtype, torch.float32)
    up, down = (_whole(part[ADAPTER].weight).to(dtype) for part in (layer.lora_B, layer.lora_A))
    with torch.autocast(base.device.type, enabled=False):
        return (up * layer.scaling[ADAPTER]).matmul(down).add_(base).to(base.dtype)


def _whole(parameter: Tensor) -> Tensor:
    """The parameter, gathered from all ranks where it is sharded."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def _layers(model: PreTrainedModel) -> dict[str, LoraLayer]:
    """The adapted layers by name."""
    if not hasattr(model, "peft_config"):
        return {}  # without importing peft
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _target_names(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers that `targets` stand for; raises ConfigError for one that stands for none."""
    fixed = [model.get_input_embeddings(), model.get_output_embeddings()]
    modules = dict(model.named_modules())
    linear = [name for name, m in modules.items() if isinstance(m, nn.Linear) and not any(m is f for f in fixed)]
    if tuple(targets) == ("all-linear",):
        return linear
    chosen = set()
    for target in targets:
        meant = {name for name in modules if name == target or name.endswith(f".{target}")}
        if any(modules[name] is f for name in meant for f in fixed):
            allowed = "embedding and output head take no adapter: leave it out"
            raise ConfigError("model.lora.targets", target, allowed)
        if not meant & set(linear):
            there = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError("model.lora.targets", target, f"must be all-linear or of {', '.join(there)}")
        chosen |= meant & set(linear)
    return [name for name in linear if name in chosen]

"""What training holds beside its weights, as named tensors and back: the state of optimisers, and of every generator.

    optimizer.<key>.<parameter>   such as optimizer.exp_avg.model.embed_tokens.weight
    generator.<which>.<rank>      of Python, NumPy, torch, and the rank's CUDA device

Seeds are derived (`pspo.seeds`) and nothing of ours draws from the generators; they are seeded and kept so that this
need not be taken on trust of every library. Imports: torch, numpy.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

OPTIMIZER, GENERATOR = "optimizer.", "generator."
Named = Iterable[tuple[str, nn.Parameter]]


def optimizer_tensors(parameters: Named, *optimizers: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors themselves, sharded as their parameters are. Rates and the like are settings, and not among them."""
    found = {}
    for name, parameter in parameters:
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"{OPTIMIZER}{key}.{name}"] = value
    return found


def on_device(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the parameter's shape where the parameter is, not filled; sharded as it is."""
    return torch.empty_like(parameter, dtype=dtype, requires_grad=False)


def blank(
    parameters: Mapping[str, nn.Parameter],
    name: str,
    shape: torch.Size,
    dtype: torch.dtype,
    like: Callable[[Tensor, torch.dtype], Tensor] = on_device,
) -> Tensor | None:
    """What a tensor of that name is to be read into; None where it belongs to none of `parameters`. `like` makes those
    that have the shape of their parameter."""
    parameter = parameters.get(name.removeprefix(OPTIMIZER).partition(".")[2])
    if parameter is None or not name.startswith(OPTIMIZER):
        return None
    if shape == parameter.shape:
        return like(parameter, dtype)
    return torch.empty(shape, dtype=dtype, device=parameter.device)


def set_optimizers(
    parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], *optimizers: torch.optim.Optimizer
) -> None:
    """Gives optimisers that have made no step yet the state that `optimizer_tensors` found."""
    owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            key, _, whose = name.removeprefix(OPTIMIZER).partition(".")
            parameter = parameters[whose]
            owner[id(parameter)].state[parameter][key] = tensor


def seed_generators(seed: int, device: torch.device) -> None:
    """Each to a state that follows from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def generator_tensors(rank: int, device: torch.device) -> dict[str, Tensor]:
    """The state of this process's generators, as bytes."""
    version, words, gauss = random.getstate()
    numpy_name, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "python": _as_bytes([version, words, gauss]),
        "numpy": _as_bytes([numpy_name, np.asarray(keys).tolist(), *rest]),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {f"{GENERATOR}{which}.{rank}": state for which, state in states.items()}


def set_generators(rank: int, device: torch.device, tensors: Mapping[str, Tensor]) -> None:
    """Back to what `generator_tensors` found, those of them that were saved on this rank."""
    states = {
        name.removeprefix(GENERATOR).rpartition(".")[0]: tensor
        for name, tensor in tensors.items()
        if name.startswith(GENERATOR) and name.endswith(f".{rank}")
    }
    if "python" in states:
        version, words, gauss = _from_bytes(states["python"])
        random.setstate((version, tuple(words), gauss))
    if "numpy" in states:
        name, keys, *rest = _from_bytes(states["numpy"])
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _as_bytes(state: list) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> list:
    return json.loads(bytes(tensor.tolist()))

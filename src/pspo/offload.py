"""AdamW whose moments live in the host's memory: `learner.offload_optimizer`.

Adam goes by the element, so a parameter can be updated in pieces: those of its moments come to the parameter's device,
torch's own fused kernel updates all four there, and the moments go back. On CUDA they come and go on streams of their
own, from and to page-locked memory, while the pieces beside them are computed. On a CPU nothing has to move. The bits
are those of torch.optim.AdamW(fused=True). Imports: torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

PIECE = 1 << 24
"""Elements of a piece: 64 MiB in fp32. A whole number of the kernel's vectors, so that where a piece ends changes no
bit, and long enough for the link to the host to be at its full rate."""
UNDER_WAY = 2
"""Pieces whose moments are on the device at a time: while those of one go, the next ones come."""


class HostAdamW(torch.optim.Optimizer):
    """torch.optim.AdamW without amsgrad, with its settings, and its state under its names.

    state[parameter]: `step` [], fp32, on the parameter's device; `exp_avg` and `exp_avg_sq`, in its shape and dtype, in
    the host's memory, sharded as it is. On CUDA a step takes two moments of UNDER_WAY pieces there: 256 MiB in fp32.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Takes no closure."""
        parameters = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        pieces = (piece for parameter, group in parameters for piece in self._pieces(parameter, group))
        if parameters and parameters[0][0].is_cuda:
            _update_on(parameters[0][0].device, pieces)
        else:
            for piece in pieces:
                piece.update(*piece.moments)

    def _pieces(self, parameter: nn.Parameter, group: dict[str, Any]) -> Iterator[_Piece]:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = (host_like(parameter, parameter.dtype).zero_() for _ in range(2))
        state["step"] += 1
        whole = (_local(tensor) for tensor in (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]))
        for values, gradient, *moments in zip(*(tensor.view(-1).split(PIECE) for tensor in whole), strict=True):
            yield _Piece(values, gradient, (moments[0], moments[1]), state["step"], group)


@dataclass(frozen=True)
class _Piece:
    """So many elements of a parameter and its gradient, on its device, and of its moments in the host's memory."""

    values: Tensor
    gradient: Tensor
    moments: tuple[Tensor, Tensor]
    step: Tensor
    group: dict[str, Any]

    def update(self, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """In place, with the moments where the values are."""
        beta1, beta2 = self.group["betas"]
        torch._fused_adamw_(
            [self.values],
            [self.gradient],
            [exp_avg],
            [exp_avg_sq],
            [],
            [self.step],
            lr=self.group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=self.group["weight_decay"],
            eps=self.group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _update_on(device: torch.device, pieces: Iterable[_Piece]) -> None:
    """Moments to a CUDA device and back. Ends when the last have come back, so that the host may read them."""
    compute = torch.cuda.current_stream(device)
    coming, going = torch.cuda.Stream(device), torch.cuda.Stream(device)
    under_way: deque[tuple[list[Tensor], torch.cuda.Event]] = deque()
    for piece in pieces:
        if len(under_way) == UNDER_WAY:
            under_way[0][1].synchronize()  # only then may their memory be given out again
            under_way.popleft()
        with torch.cuda.stream(coming):  # whose memory is given out again only when the event above has come
            moments = [kept.to(device, non_blocking=True) for kept in piece.moments]
        compute.wait_stream(coming)
        piece.update(*moments)
        going.wait_stream(compute)
        with torch.cuda.stream(going):
            for moment, kept in zip(moments, piece.moments, strict=True):
                kept.copy_(moment, non_blocking=True)
        under_way.append((moments, going.record_event()))
    going.synchronize()


def host_like(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the parameter's shape in the host's memory, not filled; sharded as the parameter is, and page-locked
    where that is on CUDA (which torch gives out in powers of two bytes)."""
    local = _local(parameter.detach())
    room = torch.empty_like(local, dtype=dtype, device="cpu", pin_memory=local.is_cuda)
    if not isinstance(parameter, DTensor):
        return room
    mesh = parameter.device_mesh
    if mesh.device_type != "cpu":  # a DTensor is where its mesh is
        mesh = _host_mesh(tuple(mesh.shape))
    return DTensor.from_local(room, mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride())


@cache
def _host_mesh(shape: tuple[int, ...]) -> DeviceMesh:
    """Of all ranks, as the device's: over the gloo half of their one group (pspo.ranks)."""
    return init_device_mesh("cpu", shape)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

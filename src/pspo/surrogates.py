"""The four per-token objectives the paper compares, as pure functions of the log-ratio and the advantage.

    r = pi(token) / pi_old(token) = exp(log_ratio)          A = advantage          all are to be maximised

    no_clip    r A
    clip       min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)        PPO, arXiv 1707.06347, eq. 7
    sigmoid    (4 / tau) sigmoid(tau (r - 1)) A,  tau by the sign of A       SAPO, arXiv 2511.20347
    pspo       ((1 - alpha) r + alpha) A                                     the paper, arXiv 2509.21282

Shapes broadcast; any float dtype; gradients flow through `log_ratio` only. How values are averaged over tokens is a
separate choice (`pspo.objective`), so that comparing two surrogates compares nothing else. Imports: torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

# Beyond exp(20), about 5e8, a ratio says only that something broke; clamping keeps one token from making the loss
# infinite. A clamped token has no gradient and is counted (metric ratio/clamped_share).
MAX_LOG_RATIO = 20.0

Surrogate = Callable[[Tensor, Tensor], Tensor]


def no_clip(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """r A: the importance-weighted policy gradient, with no trust region."""
    return ratio(log_ratio) * advantage.detach()


def clip(
    log_ratio: Tensor,
    advantage: Tensor,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    dual: float | None = None,
) -> Tensor:
    """min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A): no slope once r has moved past the bound A points to.

    Clip-higher (DAPO, arXiv 2503.14476) is an epsilon_high above epsilon_low. `dual` is dual-clip's bound (arXiv
    1912.09729, eq. 5): where A < 0 no value falls below dual * A, so that one token's large ratio cannot rule.
    """
    r, a = ratio(log_ratio), advantage.detach()
    value = torch.minimum(r * a, r.clamp(1 - epsilon_low, 1 + epsilon_high) * a)
    return value if dual is None else torch.where(a < 0, torch.maximum(value, dual * a), value)


def sigmoid(log_ratio: Tensor, advantage: Tensor, tau_pos: float = 1.0, tau_neg: float = 1.05) -> Tensor:
    """(4 / tau) sigmoid(tau (r - 1)) A, tau = tau_pos where A > 0, else tau_neg: slope A at r = 1, fading around it."""
    r, a = ratio(log_ratio), advantage.detach()
    tau = torch.where(a > 0, tau_pos, tau_neg).to(r.dtype)
    return 4 / tau * torch.sigmoid(tau * (r - 1)) * a


def pspo(log_ratio: Tensor, advantage: Tensor, alpha: float = 0.1) -> Tensor:
    """((1 - alpha) r + alpha) A: r of the smoothed policy (1 - alpha) pi + alpha pi_old; slope (1 - alpha) A."""
    return ((1 - alpha) * ratio(log_ratio) + alpha) * advantage.detach()


def ratio(log_ratio: Tensor) -> Tensor:
    """exp of the log-ratio, clamped to +-MAX_LOG_RATIO (in float16 to what it can hold)."""
    limit = log_ratio_limit(log_ratio.dtype)
    return log_ratio.clamp(-limit, limit).exp()


def log_ratio_limit(dtype: torch.dtype) -> float:
    """Largest |log_ratio| that `ratio` takes as it is."""
    return min(MAX_LOG_RATIO, math.log(torch.finfo(dtype).max) - 1)


def relative_slope(surrogate: Surrogate, log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """(d surrogate / d r) / A by autograd: 1 for no_clip, 1 - alpha for pspo, 0 where clip or the clamp of r binds.

    Defined where A is not 0; where it is 0 the result is 0 too.
    """
    x = log_ratio.detach().requires_grad_()
    with torch.enable_grad():
        (d_log_ratio,) = torch.autograd.grad(surrogate(x, advantage).sum(), x)
    scale = ratio(log_ratio.detach()) * advantage.detach()  # d r / d log_ratio = r
    return torch.where(scale == 0, 0.0, d_log_ratio / scale)


class Settings(Protocol):
    """A config of one method: its name, and its parameters under the names of the function's arguments."""

    @property
    def name(self) -> str: ...


def from_config(settings: Settings) -> Surrogate:
    """The surrogate that a config names, with its parameters filled in."""
    parameters = {key: value for key, value in vars(settings).items() if key != "name"}
    return partial({"no_clip": no_clip, "clip": clip, "sigmoid": sigmoid, "pspo": pspo}[settings.name], **parameters)

"""Rewards of a step to advantages, relative to the group: [P, G] -> [P, G]. Imports: torch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def group_advantages(rewards: Tensor, scale: Literal["std", "none"] = "std", eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + eps) (GRPO, arXiv 2402.03300), or r - mean for scale="none" (Dr. GRPO, 2503.20783).

    rewards [P, G] -> [P, G], G >= 2; the standard deviation is the unbiased one. A group whose rewards are all equal
    has advantages of exactly zero. Raises ValueError for another shape or scale.

    >>> import torch
    >>> group_advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), scale="none")
    tensor([[ 0.5000, -0.5000],
            [ 0.0000,  0.0000]])
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [P, G] with G >= 2, not {list(rewards.shape)}")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # The mean of equal rewards may be off by a rounding error, which 1 / eps would blow up into a signal.
    centred = centred.masked_fill(~has_signal(rewards)[:, None], 0.0)
    if scale == "none":
        return centred
    if scale == "std":
        scaled = centred / (rewards.std(dim=1, keepdim=True) + eps)
        return scaled.masked_fill(centred == 0, 0.0)  # with eps = 0 too
    raise ValueError(f'scale must be "std" or "none", not {scale!r}')


def has_signal(rewards: Tensor) -> Tensor:
    """[P, G] -> bool [P]: the groups whose rewards are not all equal; only they move the policy."""
    return (rewards != rewards[:, :1]).any(dim=1)

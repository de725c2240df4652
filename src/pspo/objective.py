"""From per-token values to a loss, and what one update tells about itself. Imports: torch, surrogates, metrics.

    loss = - sum over tokens of  w * (c * surrogate(r, A) - kl_coef * KL(pi || reference) + entropy_bonus * H)

The weights w depend on counts of the whole minibatch alone, so a minibatch may be split into packs, or over ranks, in
any way: the gradient is the same sum. c corrects for a sampler that is not the learner's old policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor

from pspo.metrics import RATIO_EDGES
from pspo.surrogates import Surrogate, log_ratio_limit, ratio, relative_slope

Normalise = Literal["token", "sequence", "constant"]
Level = Literal["token", "sequence"]
KlEstimator = Literal["k1", "k2", "k3"]

# A token counts as having nearly no slope where the surrogate passes on less than a tenth of the advantage.
SMALL_SLOPE = 0.1


def sequence_weights(lengths: Tensor, how: Normalise, length: int | None, tokens: int, sequences: int) -> Tensor:
    """Weight of each token of a sequence, [N] -> [N], given the counts of the whole minibatch.

    token      1 / tokens                 every token counts the same (DAPO, arXiv 2503.14476)
    sequence   1 / (sequences * len_i)    every sequence counts the same (GRPO, arXiv 2402.03300)
    constant   1 / (sequences * length)   neither is rewarded (Dr. GRPO, arXiv 2503.20783)
    """
    ones = torch.ones(lengths.shape, dtype=torch.float64, device=lengths.device)
    if how == "token":
        return ones / max(tokens, 1)
    if how == "sequence":
        return ones / (sequences * lengths.clamp(min=1))
    if how == "constant":
        if not length:
            raise ValueError('how="constant" needs length, the number of tokens to divide by')
        return ones / (sequences * length)
    raise ValueError(f'how must be "token", "sequence" or "constant", not {how!r}')


def aggregate(values: Tensor, mask: Tensor, how: Normalise = "token", length: int | None = None) -> Tensor:
    """Per-token values [N, T] under a mask [N, T] to a scalar; see `sequence_weights` for `how`.

    Values outside the mask do not count, whatever they are (NaN included).

    >>> float(aggregate(torch.ones(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]]), how="constant", length=3))
    0.5
    """
    inside = mask.bool()
    lengths = inside.sum(dim=1)
    weights = sequence_weights(lengths, how, length, tokens=int(lengths.sum()), sequences=len(lengths))
    return (values.masked_fill(~inside, 0.0) * weights[:, None].to(values.dtype)).sum()


def sequence_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Each token's value replaced by the mean over its sequence: [M], lengths [N] with sum M -> [M].

    Of log-ratios this is the log of GSPO's ratio (arXiv 2507.18071, eq. 7); the gradient flows to every token.

    >>> sequence_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2, 1])).tolist()
    [2.0, 2.0, 5.0]
    """
    means = torch.segment_reduce(values, "mean", lengths=lengths, unsafe=True)  # lengths are counts
    return means.repeat_interleave(lengths, output_size=len(values))


def kl_estimate(log_ratio: Tensor, how: KlEstimator) -> Tensor:
    """Per-token estimates of KL(pi || ref) on samples of pi, from log_ratio = log pi - log ref, any shape.

        k1    log_ratio               unbiased; its gradient as a loss has mean zero and pulls nowhere
        k2    log_ratio^2 / 2         biased; its gradient is that of the KL
        k3    exp(-log_ratio) - 1 + log_ratio    unbiased, never negative; GRPO's

    Source: Schulman, "Approximating KL divergence" (2020). The exponent of k3 is clamped as a ratio's is.
    """
    if how == "k1":
        return log_ratio
    if how == "k2":
        return log_ratio.square() / 2
    if how == "k3":
        return ratio(-log_ratio) - 1 + log_ratio
    raise ValueError(f'how must be "k1", "k2" or "k3", not {how!r}')


def truncated_weights(log_gap: Tensor, lengths: Tensor, level: Level, cap: float) -> Tensor:
    """Importance weights min(pi_old / sampler, cap) of tokens, or of whole sequences, truncated at `cap`; no gradient.

    log_gap [M] = log pi_old - log sampler, lengths [N] -> [M]. Source: truncated importance sampling, Ionides (2008);
    for the gap between an inference engine and a trainer: Yao et al. (2025), "Your efficient RL framework secretly
    brings you off-policy RL training".
    """
    log_gap = log_gap.detach()
    if level == "sequence":
        sums = torch.segment_reduce(log_gap, "sum", lengths=lengths, unsafe=True)
        log_gap = sums.repeat_interleave(lengths, output_size=len(log_gap))
    return ratio(log_gap).clamp(max=cap)


@dataclass
class UpdateStats:
    """What one update, or several added together, saw; sums over completion tokens unless said otherwise."""

    tokens: float = 0.0
    abs_dev: float = 0.0
    """|r - 1|"""
    max_ratio: float = 0.0
    """largest ratio; the maximum, not a sum"""
    clamped: float = 0.0
    """tokens whose log-ratio was clamped"""
    below: tuple[float, ...] = (0.0,) * len(RATIO_EDGES)
    """tokens with a ratio below each of RATIO_EDGES"""
    signal: float = 0.0
    """tokens with an advantage other than zero: those that have a slope to lose"""
    zero_slope: float = 0.0
    small_slope: float = 0.0
    k1: float = 0.0
    """-log r of tokens: KL(old || new), unbiased (Schulman, "Approximating KL divergence", 2020)"""
    k3: float = 0.0
    """r - 1 - log r: the same, never negative"""
    entropy: float = 0.0
    """nats"""
    reference_kl: float = 0.0
    """the KL term's estimate, before its coefficient"""
    correction: float = 0.0
    """importance weights"""
    capped: float = 0.0
    """tokens whose importance weight was cut at the cap"""
    loss: float = 0.0
    """sum over updates"""
    grad_norm: float = 0.0
    """sum over updates, before clipping"""
    updates: float = 0.0

    def __add__(self, other: UpdateStats) -> UpdateStats:
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in NUMBERS}
        added = {name: max(a, b) if name.startswith("max_") else a + b for name, (a, b) in pairs.items()}
        return UpdateStats(**added, below=tuple(a + b for a, b in zip(self.below, other.below, strict=True)))

    @staticmethod
    def total(parts: Iterable[UpdateStats]) -> UpdateStats:
        return sum(parts, start=UpdateStats())

    @staticmethod
    def of(packs: Sequence[Tensor]) -> UpdateStats:
        """From `token_stats` of an update's packs; one transfer from the device for all of them."""
        rows = torch.stack(list(packs)).tolist() if packs else []
        count = len(MEASURED)
        return UpdateStats.total(
            UpdateStats(**dict(zip(MEASURED, row[:count], strict=True)), below=tuple(row[count:])) for row in rows
        )


NUMBERS = tuple(f.name for f in fields(UpdateStats) if f.name != "below")
MEASURED = tuple(name for name in NUMBERS if name not in ("grad_norm", "updates"))
"""The statistics that come from tokens, beside `below`."""


@dataclass(frozen=True)
class Tokens:
    """The M completion tokens of a pack, sequence by sequence; every tensor is [M] but `lengths`.

    log_probs, entropy    under the policy being learned; the gradient flows through these
    old                   log-probs under the policy in the denominator of the ratios
    sampler               log-probs under the policy that sampled
    reference             log-probs under the reference policy, or None
    advantage, weight     of each token; the weight comes from counts of the whole minibatch
    lengths  [N]          tokens of each sequence
    """

    log_probs: Tensor
    entropy: Tensor
    old: Tensor
    sampler: Tensor
    reference: Tensor | None
    advantage: Tensor
    weight: Tensor
    lengths: Tensor


class Settings(Protocol):
    """What a config says about the loss (`pspo.config.schema.Learner`)."""

    @property
    def ratio_level(self) -> Level: ...
    @property
    def kl_coef(self) -> float: ...
    @property
    def kl_estimator(self) -> KlEstimator: ...
    @property
    def entropy_bonus(self) -> float: ...
    @property
    def correction(self) -> Literal["none", "token", "sequence"]: ...
    @property
    def correction_cap(self) -> float: ...


def loss_of(surrogate: Surrogate, tokens: Tokens, cfg: Settings) -> Tensor:
    """The loss above: a scalar, to be minimised, that adds up over packs.

    With cfg.ratio_level "sequence" the ratio of a token is that of its sequence, exp of the mean log-ratio, for every
    surrogate; with normalise "sequence" and clip this is GSPO (arXiv 2507.18071).
    """
    objective = surrogate(_log_ratio(tokens, cfg), tokens.advantage)
    if cfg.correction != "none":
        objective = objective * _correction(tokens, cfg)
    if cfg.kl_coef:
        assert tokens.reference is not None, "a KL term needs the reference policy's log-probs"
        objective = objective - cfg.kl_coef * kl_estimate(tokens.log_probs - tokens.reference, cfg.kl_estimator)
    if cfg.entropy_bonus:
        objective = objective + cfg.entropy_bonus * tokens.entropy
    return -(tokens.weight * objective).sum()


def _log_ratio(tokens: Tokens, cfg: Settings) -> Tensor:
    log_ratio = tokens.log_probs - tokens.old
    return sequence_mean(log_ratio, tokens.lengths) if cfg.ratio_level == "sequence" else log_ratio


def _correction(tokens: Tokens, cfg: Settings) -> Tensor:
    level: Level = "sequence" if cfg.correction == "sequence" else "token"
    return truncated_weights(tokens.old - tokens.sampler, tokens.lengths, level, cfg.correction_cap)


@torch.no_grad()
def token_stats(surrogate: Surrogate, tokens: Tokens, loss: Tensor, cfg: Settings) -> Tensor:
    """What a pack says of an update, as numbers in the order of MEASURED and then `below`, on the device: nothing waits
    for it."""
    log_ratio, advantage = _log_ratio(tokens, cfg).detach().double(), tokens.advantage.double()
    of_tokens = (tokens.log_probs - tokens.old).detach().double()
    r = ratio(log_ratio)
    slope = relative_slope(surrogate, log_ratio, advantage).abs()
    signal = advantage != 0
    kl = correction = capped = log_ratio.new_zeros(())
    if cfg.kl_coef and tokens.reference is not None:
        kl = kl_estimate((tokens.log_probs - tokens.reference).double(), cfg.kl_estimator).sum()
    if cfg.correction != "none":
        weights = _correction(tokens, cfg)
        correction, capped = weights.sum(), (weights >= cfg.correction_cap).sum()
    found = {
        "tokens": torch.ones_like(log_ratio).sum(),
        "abs_dev": (r - 1).abs().sum(),
        "max_ratio": r.max(),
        "clamped": (log_ratio.abs() > log_ratio_limit(log_ratio.dtype)).sum(),
        "signal": signal.sum(),
        "zero_slope": (signal & (slope == 0)).sum(),
        "small_slope": (signal & (slope < SMALL_SLOPE)).sum(),
        "k1": -of_tokens.sum(),
        "k3": kl_estimate(-of_tokens, "k3").sum(),
        "entropy": tokens.entropy.double().sum(),
        "reference_kl": kl,
        "correction": correction,
        "capped": capped,
        "loss": loss.detach(),
    }
    below = (r[:, None] < r.new_tensor(RATIO_EDGES)).sum(dim=0)
    return torch.cat([torch.stack([found[name].double() for name in MEASURED]), below.double()])

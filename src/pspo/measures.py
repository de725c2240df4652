"""What a step saw, as metrics (their meaning: pspo.metrics). Pure functions. Imports: torch, grading, objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from pspo.config import schema
from pspo.grading import STATUSES, Grade
from pspo.metrics import RATIO_EDGES
from pspo.objective import UpdateStats
from pspo.surrogates import ratio
from pspo.types import Group


def rollout_metrics(groups: Sequence[Group], grades: Sequence[Grade]) -> dict[str, float]:
    """Of all groups that were sampled in a step, with the grades of their completions in order."""
    right = counted((grade.correct for grade in grades), groups)
    lenient = counted((grade.lenient for grade in grades), groups)
    return {
        **length_metrics(groups),
        "accuracy/train": sum(right) / len(right),
        "accuracy/train_lenient": sum(lenient) / len(lenient),
        **{f"grade/{status}_share": share(grades, status) for status in STATUSES},
    }


def length_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Of the groups' completions, or of the solutions in their place."""
    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.token_ids) for completion in completions]
    return {
        "length/mean": sum(lengths) / len(lengths),
        "length/max": max(lengths),
        "length/truncated_share": sum(not completion.finished for completion in completions) / len(lengths),
    }


def counted(flags: Iterable[bool], groups: Iterable[Group]) -> list[bool]:
    """Of each completion the flag, where it ended by itself: a cut one might have gone on with a longer limit."""
    ended = [completion.finished for group in groups for completion in group.completions]
    return [flag and end for flag, end in zip(flags, ended, strict=True)]


def share(grades: Sequence[Grade], *statuses: str) -> float:
    """Share of the grades that have one of the statuses."""
    return sum(grade.status in statuses for grade in grades) / len(grades)


def gap_metrics(differences: Tensor) -> dict[str, float]:
    """How far the learner's log-probs are from the sampler's: log pi_learner - log pi_sampler of tokens, NaN where it
    is not known. Empty where none is.

    The effective sample size is that of importance weights w from sampler to learner: (sum w)^2 / sum w^2 of n tokens.
    """
    d = differences[~differences.isnan()].double()
    if not len(d):
        return {}
    weights = ratio(d)
    return {
        "gap/abs_dev_mean": float((weights - 1).abs().mean()),
        "gap/log_prob_max": float(d.abs().max()),
        "gap/kl": float((weights - 1 - d).mean()),
        "gap/effective_share": float(weights.sum().square() / weights.square().sum() / len(d)),
    }


def update_metrics(stats: UpdateStats, cfg: schema.Learner) -> dict[str, float]:
    """The step's updates: means over tokens, over tokens with an advantage, or over updates."""
    if not stats.updates:  # no group gave a signal: there is nothing to take a mean of
        return {"optim/updates": 0.0}
    tokens, signal, updates = stats.tokens, max(stats.signal, 1), stats.updates
    found = {
        "ratio/abs_dev_mean": stats.abs_dev / tokens,
        "ratio/max": stats.max_ratio,
        "ratio/clamped_share": stats.clamped / tokens,
        **{f"ratio/below_{edge:g}_share": n / tokens for edge, n in zip(RATIO_EDGES, stats.below, strict=True)},
        "slope/zero_share": stats.zero_slope / signal,
        "slope/small_share": stats.small_slope / signal,
        "kl/k1": stats.k1 / tokens,
        "kl/k3": stats.k3 / tokens,
        "policy/entropy": stats.entropy / tokens,
        "optim/loss": stats.loss / updates,
        "optim/grad_norm": stats.grad_norm / updates,
        "optim/updates": updates,
    }
    if cfg.kl_coef:
        found["kl/reference"] = stats.reference_kl / tokens
    if cfg.correction != "none":
        found |= {"correction/mean": stats.correction / tokens, "correction/capped_share": stats.capped / tokens}
    return found

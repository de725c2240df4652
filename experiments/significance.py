"""Is one arm better than another? Tests on the same seeds and problems, and what they could have found.

Axes as in pspo.intervals: S seeds, N problems; right (1) or not (0) [S, N] of two arms, rows and columns alike. There
are two questions, and no test answers both:

    these policies   McNemar's exact test seed by seed: of the problems on which the two policies differ, does each fall
                     either way with probability 1/2? Seeds are asked the same problems, so they are combined problem by
                     problem: the differences of all seeds add up, and it is the sign of that sum that falls either way
                     (an exact sign-flip test; for one seed McNemar's). Sharp with many problems, and the luck of a seed
                     counts as the method's.
    these methods    Student's t on the S differences: would other seeds say the same?

numpy, scipy and statsmodels only; never torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Discordant:
    """Problems on which two policies of one seed differ: right in ours alone, in theirs alone; McNemar's exact p."""

    ours: int
    theirs: int
    p: float


@dataclass(frozen=True)
class Tests:
    """p-values are two-sided.

    of_policies   of all seeds together
    of_methods    of the differences per seed; None for one seed, or where all seeds say the same to the last problem
    spread        standard deviation of the differences per seed, a share; None where of_methods is
    """

    by_seed: tuple[Discordant, ...]
    of_policies: float
    of_methods: float | None
    spread: float | None


def paired(ours: ArrayLike, theirs: ArrayLike) -> Tests:
    """Both [S, N] of 0 and 1. Raises ValueError where they are not alike in shape."""
    x_SN, y_SN = np.asarray(ours, dtype=bool), np.asarray(theirs, dtype=bool)
    if x_SN.ndim != 2 or not x_SN.size or x_SN.shape != y_SN.shape:
        raise ValueError(f"expected two arrays [S, N] alike, got shapes {x_SN.shape} and {y_SN.shape}")
    ours_S, theirs_S = (x_SN & ~y_SN).sum(axis=1), (~x_SN & y_SN).sum(axis=1)
    difference_S = ours_S - theirs_S  # problems: whole numbers, so that no spread is none at all
    spread = float(difference_S.std(ddof=1)) / x_SN.shape[1] if len(difference_S) > 1 and np.ptp(difference_S) else None
    return Tests(
        by_seed=tuple(Discordant(int(a), int(b), fair(int(a), int(b))) for a, b in zip(ours_S, theirs_S, strict=True)),
        of_policies=sign_flip((x_SN.astype(int) - y_SN).sum(axis=0)),
        of_methods=None if spread is None else float(stats.ttest_1samp(difference_S, 0.0).pvalue),
        spread=spread,
    )


def fair(ours: int, theirs: int) -> float:
    """Two-sided exact p of so many on either side, where each is as likely; 1 where there is none."""
    return float(stats.binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0


def sign_flip(sums: ArrayLike) -> float:
    """Two-sided exact p of a total as far from 0 as that of the whole numbers `sums`, where either sign of each is as
    likely; 1 where all are 0."""
    sizes = np.abs(np.asarray(sums))
    chances: NDArray[np.float64] = np.ones(1)  # of totals -m, ..., m
    for size, count in zip(*np.unique(sizes[sizes > 0], return_counts=True), strict=True):
        ways = np.zeros(2 * size * count + 1)
        ways[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.asarray(np.convolve(chances, ways), dtype=np.float64)
    totals = np.abs(np.arange(len(chances)) - len(chances) // 2)
    return float(min(1.0, chances[totals >= abs(int(np.sum(sums)))].sum()))


def detectable(spread: float | None, seeds: int, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest true difference that the test of methods finds with probability `power` at `level`, for seeds that
    spread so. None where the spread is not known. Below it "no difference" means too few seeds."""
    if spread is None:
        return None
    critical = stats.t.isf(level / 2, seeds - 1)

    def missing(size: float) -> float:  # of the power at a true difference of so many spreads
        return power - power_of(size * np.sqrt(seeds), seeds - 1, critical)

    return spread * float(optimize.brentq(missing, 0.0, 20 * critical, xtol=1e-9))


def power_of(shift: float, degrees: int, critical: float) -> float:
    """Chance that a noncentral t lies beyond +-critical: of a normal around `shift`, given the spread that is drawn.

    Integrated over quantiles of the spread (chi-square); statsmodels' solver stops short at levels as strict as ours.
    """
    quantiles = (np.arange(4000) + 0.5) / 4000
    limit_Q = critical * np.sqrt(stats.chi2.ppf(quantiles, degrees) / degrees)
    return float(np.mean(stats.norm.sf(limit_Q - shift) + stats.norm.cdf(-limit_Q - shift)))


def corrected(p_values: Sequence[float | None], planned: int) -> list[float | None]:
    """Holm's correction for `planned` comparisons, of which those without a p-value count as if theirs were 1: what is
    still to come changes no p-value that is there, and None stays None."""
    known = [p for p in p_values if p is not None]
    every = [*known, *[1.0] * (planned - len(known))]
    adjusted = iter(multipletests(every, method="holm")[1]) if known else iter(())
    return [None if p is None else float(next(adjusted)) for p in p_values]


def interquartile_mean(values: ArrayLike) -> float | None:
    """Of one value per seed: the mean without a quarter of them, rounded down, at either end (Agarwal et al. 2021).
    None for fewer than four, of which no quarter is a seed."""
    x_S = np.asarray(values, dtype=np.float64)
    return float(stats.trim_mean(x_S, 0.25)) if len(x_S) > 3 else None

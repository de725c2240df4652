"""Is one arm better than another? Tests on the same seeds and problems, and what they could have found.

Axes as in pspo.intervals: S seeds, N problems; right (1) or not (0) [S, N] of two arms, rows and columns alike. There
are two questions, and no test answers both:

    these policies   McNemar's exact test: of the problems on which the two policies of a seed differ, does each fall
                     either way with probability 1/2? Seeds are its strata: their discordant problems add up to one
                     binomial (the exact Mantel-Haenszel test). Sharp with many problems, and the luck of a seed counts
                     as the method's.
    these methods    Student's t on the S differences: would other seeds say the same?

numpy, scipy and statsmodels only; never torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

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

    of_policies   of all seeds' discordant problems together
    of_methods    of the differences per seed; None for one seed, or where all seeds say the same to the last problem
    detectable    the smallest true difference that the test of methods finds with probability POWER, taking the spread
                  over seeds for what these seeds show; None for one seed. Below it "no difference" means too few seeds
    """

    by_seed: tuple[Discordant, ...]
    of_policies: float
    of_methods: float | None
    detectable: float | None


def paired(ours: ArrayLike, theirs: ArrayLike) -> Tests:
    """Both [S, N] of 0 and 1. Raises ValueError where they are not alike in shape."""
    x_SN, y_SN = np.asarray(ours, dtype=bool), np.asarray(theirs, dtype=bool)
    if x_SN.ndim != 2 or not x_SN.size or x_SN.shape != y_SN.shape:
        raise ValueError(f"expected two arrays [S, N] alike, got shapes {x_SN.shape} and {y_SN.shape}")
    ours_S, theirs_S = (x_SN & ~y_SN).sum(axis=1), (~x_SN & y_SN).sum(axis=1)
    difference_S = (ours_S - theirs_S) / x_SN.shape[1]
    return Tests(
        by_seed=tuple(Discordant(int(a), int(b), fair(int(a), int(b))) for a, b in zip(ours_S, theirs_S, strict=True)),
        of_policies=fair(int(ours_S.sum()), int(theirs_S.sum())),
        of_methods=of_mean(difference_S),
        detectable=detectable(difference_S),
    )


def fair(ours: int, theirs: int) -> float:
    """Two-sided exact p of so many on either side, where each is as likely; 1 where there is none."""
    return float(stats.binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0


def of_mean(difference_S: NDArray[np.float64]) -> float | None:
    """Student's t: p of a mean of 0. None where there is no spread to hold it against."""
    if len(difference_S) < 2 or not difference_S.std():
        return None
    return float(stats.ttest_1samp(difference_S, 0.0).pvalue)


def detectable(difference_S: NDArray[np.float64], level: float = LEVEL, power: float = POWER) -> float | None:
    if len(difference_S) < 2:
        return None
    effect = TTestPower().solve_power(nobs=len(difference_S), alpha=level, power=power, alternative="two-sided")
    return float(effect * difference_S.std(ddof=1))


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for as many comparisons as there are p-values; None stays None, and is not counted."""
    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1]) if known else iter(())
    return [None if p is None else float(next(adjusted)) for p in p_values]


def interquartile_mean(values: ArrayLike) -> float:
    """Of one value per seed: the mean without a quarter of them, rounded down, at either end (Agarwal et al. 2021)."""
    return float(stats.trim_mean(np.asarray(values, dtype=np.float64), 0.25))

"""Estimates with their uncertainty, from right or wrong per problem and seed. numpy and scipy only; never torch.

Axes: S seeds (training runs), N problems of the test part, the same for every seed. Accuracies are shares in [0, 1].

Two intervals stand beside each other, because they answer different questions and neither is right alone:

    over seeds              Student's t over the S per-seed values: "another seed, the same problems". With three seeds
                            it rests on three numbers, and is honest about it by being wide.
    over seeds and problems percentiles of a bootstrap that draws seeds and, independently, problems with replacement
                            (the pigeonhole bootstrap of Owen 2007, for data crossed like this): "another seed, other
                            problems of this kind". With few seeds it understates what seeds do.

A difference is paired: it is taken per seed and problem first, so what both arms share cancels.

scipy.stats takes a second to load and is imported where it is used: most of what imports this module only draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
DRAWS = 10_000
BLOCK = 500
KEPT = 64
"""Blocks of weights that are kept: a byte for each draw and problem, so 160 MB for the 5,000 problems of MATH."""

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems with its 95% bounds; `over_seeds` is None where seeds have no spread."""

    value: float
    over_seeds: Bounds | None
    over_both: Bounds
    seeds: int
    problems: int


def estimate(values: ArrayLike, seed: int = 0) -> Estimate:
    """The mean of values [S, N], with both intervals. Values are 0 or 1, or differences in {-1, 0, 1}."""
    x_SN = np.asarray(values, dtype=np.float64)
    if x_SN.ndim != 2 or not x_SN.size:
        raise ValueError(f"expected values [S, N] with at least one of each, got shape {x_SN.shape}")
    return Estimate(
        value=float(x_SN.mean()),
        over_seeds=student_t(x_SN.mean(axis=1)),
        over_both=bootstrap(x_SN, seed=seed),
        seeds=x_SN.shape[0],
        problems=x_SN.shape[1],
    )


def student_t(values: ArrayLike, level: float = LEVEL) -> Bounds | None:
    """mean +- t(S - 1) s / sqrt(S) of one value per seed.

    None where there is no spread to go by: fewer than two, or all alike, which with few seeds is chance, not certainty.
    """
    from scipy import stats

    x_S = np.asarray(values, dtype=np.float64)
    if len(x_S) < 2 or np.ptp(x_S) < 1e-12:
        return None
    half = float(stats.t.ppf((1 + level) / 2, len(x_S) - 1) * x_S.std(ddof=1) / np.sqrt(len(x_S)))
    return float(x_S.mean()) - half, float(x_S.mean()) + half


def bootstrap(values: ArrayLike, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Bounds:
    """Percentile bounds of the mean of values [S, N] when seeds and problems are both drawn anew.

    A draw is a weight for each seed and each problem (how often it was drawn); its mean is w_S x_SN w_N / (S N).
    """
    x_SN = np.asarray(values, dtype=np.float64)
    s, n = x_SN.shape
    means = []
    for start in range(0, draws, BLOCK):
        w_BS, w_BN = _weights(s, n, start, min(BLOCK, draws - start), seed)
        of_seeds_BS = np.einsum("bn,sn->bs", w_BN, x_SN)  # as a matrix product, threads would cost more than they save
        means.append((of_seeds_BS * w_BS).sum(axis=1) / (s * n))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weights(s: int, n: int, start: int, size: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each seed [size, S] and each problem [size, N] is drawn, in draws `start` and following."""
    w_BS, w_BN = (_counts(count, start, size, seed, axis) for axis, count in enumerate((s, n)))
    return w_BS.astype(np.float64), w_BN.astype(np.float64)


@lru_cache(maxsize=KEPT)
def _counts(count: int, start: int, size: int, seed: int, axis: int) -> NDArray[np.uint8]:
    """[size, count], each row `count` draws with replacement. Kept, since a table has many estimates of one shape."""
    drawn = np.random.default_rng([seed, axis, start]).integers(count, size=(size, count))
    drawn += count * np.arange(size)[:, None]
    found = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
    return np.minimum(found, 255).astype(np.uint8)  # more than 255 of a problem: less likely than 1e-500


def wilson(right: int, problems: int, level: float = LEVEL) -> Bounds:
    """Wilson's score interval of a single checkpoint's accuracy, over problems."""
    from scipy import stats

    found = stats.binomtest(right, problems).proportion_ci(confidence_level=level, method="wilson")
    return float(found.low), float(found.high)

from __future__ import annotations

import numpy as np
import pytest

from pspo.intervals import bootstrap, estimate, student_t, wilson


def test_student_t_by_hand() -> None:
    # mean .8, s = .1, t(.975, 2) = 4.302653: half width 4.302653 * .1 / sqrt(3) = .248414
    assert student_t([0.7, 0.8, 0.9]) == pytest.approx((0.551586, 1.048414), abs=1e-6)
    assert student_t([0.7]) is None


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.959964: centre (.8 + z^2/20) / (1 + z^2/10) = .716740, half width .226578
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 10)[0] == 0


def test_bootstrap_over_problems_alone_is_the_normal_interval() -> None:
    # One seed: only problems vary. p = .5, N = 400: 1.96 sqrt(.25 / 400) = .049
    low, high = bootstrap(np.tile([0.0, 1.0], 200)[None])
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.004)


def test_bootstrap_over_seeds_alone_reaches_the_worst_and_the_best_seed() -> None:
    # Two seeds that differ and problems that do not: the mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap([[0.0] * 50, [1.0] * 50]) == (0.0, 1.0)


def test_bootstrap_draws_both_axes() -> None:
    # Variance of a mean of random effects, a for seeds and b for problems: (var a) / S + (var b) / N.
    rng = np.random.default_rng(1)
    a_S, b_N = rng.normal(size=40), rng.normal(size=60)
    low, high = bootstrap(a_S[:, None] + b_N[None, :], draws=20_000)
    expected = 2 * 1.96 * np.sqrt(a_S.var() / 40 + b_N.var() / 60)
    assert high - low == pytest.approx(expected, rel=0.03)


def test_bootstrap_is_the_same_every_time() -> None:
    values = np.random.default_rng(0).random((3, 20))
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)


def test_seeds_that_are_all_alike_have_no_interval() -> None:
    found = estimate(np.ones((3, 5)))
    assert (found.value, found.over_seeds, found.over_both) == (1.0, None, (1.0, 1.0))
    assert student_t([0.1 + 0.2, 0.3, 0.3]) is None  # up to rounding
    assert (found.seeds, found.problems) == (3, 5)


def test_no_values_are_no_estimate() -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        estimate(np.zeros((0, 5)))

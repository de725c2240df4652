from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from significance import corrected, detectable, fair, interquartile_mean, of_mean, paired


def test_discordant_problems_by_hand() -> None:
    ours = [[1, 1, 1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0]]
    theirs = [[0, 0, 0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0]]
    found = paired(ours, theirs)
    first, second = found.by_seed
    # Four against one: 2 (C(5, 0) + C(5, 1)) / 2^5 = 12 / 32. Two against none: 2 / 2^2.
    assert (first.ours, first.theirs, first.p) == (4, 1, pytest.approx(0.375))
    assert (second.ours, second.theirs, second.p) == (2, 0, pytest.approx(0.5))
    # Together six against one: 2 (1 + 7) / 2^7 = 1 / 8.
    assert found.of_policies == pytest.approx(0.125)
    # Differences 3/8 and 2/8: t = .3125 / (.088388 / sqrt 2) = 5 with one degree of freedom: 1 - 2 atan(5) / pi.
    assert found.of_methods == pytest.approx(0.125666, abs=1e-6)


def test_it_is_mcnemars_test() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 1, 300)) < [[[0.6]], [[0.5]]]
    table = [[(a & b).sum() for b in (y, ~y)] for a in (x, ~x)]
    assert paired(x, y).of_policies == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_arms_that_are_the_same_are_not_told_apart() -> None:
    same = np.eye(3, 8)
    found = paired(same, same)
    assert (found.of_policies, found.of_methods, found.detectable) == (1.0, None, 0.0)
    assert {one.p for one in found.by_seed} == {1.0}


def test_one_seed_says_nothing_of_methods() -> None:
    found = paired([[1, 1, 1]], [[0, 0, 0]])
    assert found.of_policies == fair(3, 0) == pytest.approx(0.25)
    assert found.of_methods is None and found.detectable is None


def test_a_true_difference_of_the_detectable_size_is_found_as_often_as_promised() -> None:
    rng = np.random.default_rng(3)
    spread, seeds = 0.05, 5
    unit = rng.normal(size=seeds)
    unit = (unit - unit.mean()) / unit.std(ddof=1)
    size = detectable(spread * unit)
    assert size is not None
    draws = rng.normal(size, spread, size=(4000, seeds))
    found = np.mean([(p := of_mean(draw)) is not None and p < 0.05 for draw in draws])
    assert found == pytest.approx(0.8, abs=0.02)


def test_under_no_difference_few_are_told_apart() -> None:
    """Policies that are right by the same chances: the exact test finds at most 5% of them different."""
    rng = np.random.default_rng(1)
    chance_N = rng.random(200)
    p = [paired(rng.random((3, 200)) < chance_N, rng.random((3, 200)) < chance_N).of_policies for _ in range(600)]
    assert np.mean(np.array(p) < 0.05) < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 600)


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .04 times 3, 2, 1, and no smaller than the one before.
    assert corrected([0.02, None, 0.01, 0.04]) == [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    assert corrected([None]) == [None] and corrected([]) == []


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    assert interquartile_mean([0.0, 0.5, 0.7, 1.0]) == pytest.approx(0.6)
    assert interquartile_mean([0.1, 0.5, 0.9]) == pytest.approx(0.5)  # of three a quarter is none
    assert interquartile_mean([-9.0, 0.2, 0.3, 0.4, 9.0]) == pytest.approx(0.3)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((3,), (3,)), ((0, 3), (0, 3))])
def test_arrays_that_are_not_alike_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected two arrays \[S, N\] alike"):
        paired(*(np.zeros(shape) for shape in shapes))

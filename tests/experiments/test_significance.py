from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from significance import corrected, detectable, fair, interquartile_mean, paired, sign_flip


def test_discordant_problems_by_hand() -> None:
    ours = [[1, 1, 1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0]]
    theirs = [[0, 0, 0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0]]
    found = paired(ours, theirs)
    first, second = found.by_seed
    # Four against one: 2 (C(5, 0) + C(5, 1)) / 2^5 = 12 / 32. Two against none: 2 / 2^2.
    assert (first.ours, first.theirs, first.p) == (4, 1, pytest.approx(0.375))
    assert (second.ours, second.theirs, second.p) == (2, 0, pytest.approx(0.5))
    # Problem by problem 2, 2, 1, 1, 0, -1, 0, 0: a total of 5. Over all signs they come to 7 in one way of 2^5,
    # to 5 in three (one of the ones turned), and to -7 and -5 in as many.
    assert found.of_policies == pytest.approx(2 * (1 + 3) / 2**5)
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
    assert (found.of_policies, found.of_methods, found.spread) == (1.0, None, None)
    assert {one.p for one in found.by_seed} == {1.0}


def test_one_seed_says_nothing_of_methods() -> None:
    found = paired([[1, 1, 1]], [[0, 0, 0]])
    assert found.of_policies == fair(3, 0) == pytest.approx(0.25)
    assert found.of_methods is None and found.spread is None


def test_seeds_that_all_differ_alike_have_no_spread() -> None:
    """Though the mean of three times 0.1 is not 0.1 in floating point."""
    ours = np.zeros((3, 100))
    ours[:, :10] = 1
    found = paired(ours, np.zeros((3, 100)))
    assert (found.of_methods, found.spread, detectable(found.spread, 3)) == (None, None, None)


def test_the_same_pair_of_policies_again_tells_nothing_new() -> None:
    ours, theirs = np.eye(1, 12) + np.eye(1, 12, 1) + np.eye(1, 12, 2), np.eye(1, 12, 5)
    alone = paired(ours, theirs).of_policies
    assert alone == fair(3, 1)
    assert paired(np.repeat(ours, 5, axis=0), np.repeat(theirs, 5, axis=0)).of_policies == pytest.approx(alone)


def test_the_sign_flip_test_is_exact() -> None:
    sums = [3, -2, 1, 1, 0, 2]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    totals = np.abs(signs.T @ np.abs(sums))
    assert sign_flip(sums) == pytest.approx(np.mean(totals >= 5))
    assert sign_flip([0, 0]) == 1 and sign_flip([-4]) == 1


def test_a_true_difference_of_the_detectable_size_is_found_as_often_as_promised() -> None:
    rng = np.random.default_rng(3)
    for seeds in (2, 3, 5, 10):
        for comparisons in (1, 12, 100):
            level = 0.05 / comparisons
            size = detectable(0.05, seeds, level)
            assert size is not None
            draws = rng.normal(size, 0.05, size=(4000, seeds))
            found = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < level)
            assert found == pytest.approx(0.8, abs=0.025), (seeds, comparisons)


def test_under_no_difference_few_are_told_apart() -> None:
    """The exact test finds at most 5% of them different: policies that are right by the same chances, and such whose
    seeds resemble each other, each arm's in its own way."""
    rng = np.random.default_rng(1)
    chance_N = rng.random(200)
    most = 0.05 + 2 * np.sqrt(0.05 * 0.95 / 600)
    p = [paired(rng.random((3, 200)) < chance_N, rng.random((3, 200)) < chance_N).of_policies for _ in range(600)]
    assert np.mean(np.array(p) < 0.05) < most

    def arm() -> np.ndarray:
        of_arm = rng.normal(size=200)
        return np.sqrt(0.8) * of_arm + np.sqrt(0.2) * rng.normal(size=(3, 200)) > 0

    p = [paired(arm(), arm()).of_policies for _ in range(600)]
    assert np.mean(np.array(p) < 0.05) < most


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .04 times 3, 2, 1, and no smaller than the one before.
    three = [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    assert corrected([0.02, None, 0.01, 0.04], 3) == three
    assert corrected([0.01], 3) == [pytest.approx(0.03)]  # two are still to come
    assert corrected([None], 1) == [None] and corrected([], 0) == []


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    assert interquartile_mean([0.0, 0.5, 0.7, 1.0]) == pytest.approx(0.6)
    assert interquartile_mean([0.1, 0.5, 0.9]) is None  # of three a quarter is none
    assert interquartile_mean([-9.0, 0.2, 0.3, 0.4, 9.0]) == pytest.approx(0.3)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((3,), (3,)), ((0, 3), (0, 3))])
def test_arrays_that_are_not_alike_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected two arrays \[S, N\] alike"):
        paired(*(np.zeros(shape) for shape in shapes))

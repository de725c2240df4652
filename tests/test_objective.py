import math
from functools import partial

import pytest
import torch

from pspo.objective import UpdateStats, aggregate, sequence_weights, token_stats
from pspo.surrogates import clip, sigmoid

VALUES = torch.tensor([[1.0, 2.0, 3.0], [10.0, math.nan, math.inf]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


# token: 16 / 4;  sequence: (2 + 10) / 2;  constant: 16 / (2 * 5)
@pytest.mark.parametrize("how, expected", [("token", 4.0), ("sequence", 6.0), ("constant", 1.6)])
def test_aggregate_by_hand(how, expected):
    assert aggregate(VALUES, MASK, how, length=5).item() == pytest.approx(expected)


def test_gradient_of_aggregate_is_the_weight():
    values = torch.ones(2, 3, requires_grad=True)
    aggregate(values, MASK, "sequence").backward()
    assert values.grad.tolist() == [[pytest.approx(1 / 6)] * 3, [0.5, 0.0, 0.0]]


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_weights_of_parts_are_those_of_the_whole(how):
    """Global counts: the same weight for a sequence whichever micro-batch it is in."""
    lengths = torch.tensor([3, 1, 4])
    whole = sequence_weights(lengths, how, length=5, tokens=8, sequences=3)
    parts = [sequence_weights(lengths[i : i + 1], how, length=5, tokens=8, sequences=3) for i in range(3)]
    assert torch.equal(whole, torch.cat(parts))


def test_constant_needs_a_length():
    with pytest.raises(ValueError, match="length"):
        aggregate(VALUES, MASK, "constant")


def test_token_stats_by_hand():
    log_ratio = torch.tensor([0.0, math.log(1.5), math.log(0.5), 30.0])
    advantage = torch.tensor([1.0, 1.0, 0.0, -1.0])
    stats = token_stats(clip, log_ratio, advantage, entropy=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    top = math.exp(20)
    assert stats.tokens == 4 and stats.signal == 3 and stats.clamped == 1
    assert stats.max_ratio == pytest.approx(top) and stats.max_abs_log_ratio == pytest.approx(30)
    assert stats.abs_dev == pytest.approx(0 + 0.5 + 0.5 + top - 1)
    assert stats.zero_slope == 2  # past clip's bound, and clamped; the token without advantage does not count
    assert stats.k1 == pytest.approx(-math.log(1.5) - math.log(0.5) - 30, rel=1e-6)
    assert stats.k3 == pytest.approx((0.5 - math.log(1.5)) + (-0.5 - math.log(0.5)) + (top - 1 - 30), rel=1e-6)
    assert stats.entropy == 10


def test_small_slope_sees_the_tails_of_the_sigmoid():
    # tau (r - 1) = 4: slope 4 * sigmoid(4) * sigmoid(-4) = 0.07: not zero, but below a tenth
    stats = token_stats(partial(sigmoid, tau_pos=1.0), torch.tensor([math.log(5.0)]), torch.ones(1), torch.zeros(1))
    assert (stats.zero_slope, stats.small_slope) == (0, 1)


def test_stats_add_up_but_maxima_do_not():
    total = UpdateStats.total(
        [UpdateStats(tokens=2, max_ratio=3.0, k1=1.0), UpdateStats(tokens=3, max_ratio=2.0, k1=-0.5)]
    )
    assert (total.tokens, total.max_ratio, total.k1) == (5, 3.0, 0.5)

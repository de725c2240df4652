import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from pspo.config import TrainConfig, compose
from pspo.objective import (
    Tokens,
    UpdateStats,
    aggregate,
    kl_estimate,
    loss_of,
    sequence_weights,
    token_stats,
    truncated_weights,
)
from pspo.surrogates import clip, no_clip, pspo, sigmoid

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


SETTINGS = compose("train", TrainConfig).learner


def stats_of(surrogate, tokens, cfg=SETTINGS):
    return UpdateStats.of([token_stats(surrogate, tokens, loss_of(surrogate, tokens, cfg), cfg)])


def tokens_of(log_ratio, advantage, lengths=None, **others):
    """Tokens whose ratio to the old policy is given; the old log-probs are -1, and the entropies 1, 2, ..."""
    n = len(log_ratio)
    values = {
        "log_probs": log_ratio - 1,
        "entropy": torch.arange(1.0, n + 1),
        "old": torch.full((n,), -1.0),
        "sampler": torch.full((n,), -1.0),
        "reference": None,
        "advantage": advantage,
        "weight": torch.full((n,), 1 / n),
        "lengths": torch.tensor(lengths or [n]),
    }
    return Tokens(**{**values, **others})


def test_token_stats_by_hand():
    log_ratio = torch.tensor([0.0, math.log(1.5), math.log(0.5), 30.0])
    stats = stats_of(clip, tokens_of(log_ratio, torch.tensor([1.0, 1.0, 0.0, -1.0])))
    top = math.exp(20)
    assert stats.tokens == 4 and stats.signal == 3 and stats.clamped == 1
    assert stats.max_ratio == pytest.approx(top)
    assert stats.abs_dev == pytest.approx(0 + 0.5 + 0.5 + top - 1)
    assert stats.below[1:] == (1, 1, 1, 2, 2, 2, 3)  # of ratios 0.5 (itself: rounding), 1, 1.5, e^20
    assert stats.zero_slope == 2  # past clip's bound, and clamped; the token without advantage does not count
    assert stats.k1 == pytest.approx(-math.log(1.5) - math.log(0.5) - 30, rel=1e-6)
    assert stats.k3 == pytest.approx((0.5 - math.log(1.5)) + (-0.5 - math.log(0.5)) + (top - 1 - 30), rel=1e-6)
    assert stats.entropy == 10
    assert (stats.reference_kl, stats.correction, stats.capped) == (0, 0, 0)


def test_small_slope_sees_the_tails_of_the_sigmoid():
    # tau (r - 1) = 4: slope 4 * sigmoid(4) * sigmoid(-4) = 0.07: not zero, but below a tenth
    tokens = tokens_of(torch.tensor([math.log(5.0)]), torch.ones(1))
    stats = stats_of(partial(sigmoid, tau_pos=1.0), tokens)
    assert (stats.zero_slope, stats.small_slope) == (0, 1)


def test_loss_by_hand():
    tokens = tokens_of(torch.tensor([math.log(1.5), math.log(0.5)]), torch.tensor([2.0, -1.0]))
    assert float(loss_of(no_clip, tokens, SETTINGS)) == pytest.approx(-(1.5 * 2 - 0.5) / 2)
    bonus = replace(SETTINGS, entropy_bonus=0.1)
    assert float(loss_of(no_clip, tokens, bonus)) == pytest.approx(-(1.5 * 2 - 0.5 + 0.1 * (1 + 2)) / 2)


def test_sequence_level_ratios_by_hand():
    """Two sequences, of two tokens and of one: the ratio of the first is the geometric mean sqrt(1.5 * 0.5)."""
    log_ratio = torch.tensor([math.log(1.5), math.log(0.5), math.log(2.0)], requires_grad=True)
    tokens = tokens_of(log_ratio, torch.tensor([1.0, 1.0, -1.0]), lengths=[2, 1])
    sequence = replace(SETTINGS, ratio_level="sequence")
    loss = loss_of(no_clip, tokens, sequence)
    mean = math.sqrt(0.75)
    assert loss.item() == pytest.approx(-(2 * mean - 2.0) / 3)
    loss.backward()
    assert log_ratio.grad.tolist() == pytest.approx([-mean / 3, -mean / 3, 2 / 3])
    stats = stats_of(no_clip, tokens, sequence)
    assert stats.max_ratio == pytest.approx(2.0) and stats.abs_dev == pytest.approx(2 * (1 - mean) + 1)


@pytest.mark.parametrize("surrogate", [no_clip, clip, sigmoid, pspo])
def test_at_one_token_a_sequence_the_levels_agree(surrogate):
    log_ratio, advantage = torch.tensor([0.3, -0.2, 0.9]), torch.tensor([1.0, -2.0, 0.5])
    tokens = tokens_of(log_ratio, advantage, lengths=[1, 1, 1])
    levels = [loss_of(surrogate, tokens, replace(SETTINGS, ratio_level=level)) for level in ("token", "sequence")]
    assert torch.equal(*levels)


@pytest.mark.parametrize(
    "how, value, slope", [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", math.exp(-0.5) - 0.5, None)]
)
def test_kl_estimates_by_hand(how, value, slope):
    x = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    estimate = kl_estimate(x, how)
    assert estimate.item() == pytest.approx(value)
    estimate.backward()
    assert float(x.grad) == pytest.approx(1 - math.exp(-0.5) if slope is None else slope)


def test_kl_estimates_over_a_whole_distribution():
    """k1 and k3 are unbiased; the score-weighted gradient of k2 is that of the KL, and k1's as a loss is zero."""
    generator = torch.Generator().manual_seed(0)
    logits, ref = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    log_p, log_ref = logits.log_softmax(0), ref.log_softmax(0)
    kl = (log_p.exp() * (log_p - log_ref)).sum()
    p = log_p.exp().detach()  # the sampling distribution
    for how in ("k1", "k3"):
        assert float((p * kl_estimate(log_p - log_ref, how)).sum()) == pytest.approx(kl.item())
    (exact,) = torch.autograd.grad(kl, logits, retain_graph=True)
    slopes = {
        how: torch.autograd.grad((p * kl_estimate(log_p - log_ref, how)).sum(), logits, retain_graph=True)[0]
        for how in ("k1", "k2")
    }
    torch.testing.assert_close(slopes["k2"], exact)
    torch.testing.assert_close(slopes["k1"], torch.zeros_like(exact), rtol=0, atol=1e-12)


def test_truncated_weights_by_hand():
    gap, lengths = torch.tensor([math.log(3.0), math.log(0.5), math.log(0.25)]), torch.tensor([2, 1])
    assert truncated_weights(gap, lengths, "token", 2.0).tolist() == pytest.approx([2.0, 0.5, 0.25])
    assert truncated_weights(gap, lengths, "sequence", 2.0).tolist() == pytest.approx([1.5, 1.5, 0.25])


def test_a_correction_weighs_the_surrogate_and_nothing_else():
    # the sampler had half the old policy's probability for the first token: weight 2, capped at 1.8
    sampler = torch.tensor([-1.0 - math.log(2.0), -1.0])
    tokens = tokens_of(torch.zeros(2), torch.tensor([1.0, 3.0]), sampler=sampler)
    cfg = replace(SETTINGS, old_log_probs="learner", correction="token", correction_cap=1.8, entropy_bonus=0.1)
    assert float(loss_of(no_clip, tokens, cfg)) == pytest.approx(-(1.8 + 3.0 + 0.1 * 3) / 2)
    stats = stats_of(no_clip, tokens, cfg)
    assert (stats.correction, stats.capped) == (pytest.approx(2.8), 1)


def test_an_unbiased_correction_gives_the_gradient_of_the_old_policy():
    """E_sampler[w grad log pi] = E_old[grad log pi], over a whole distribution, with a cap that nothing reaches."""
    generator = torch.Generator().manual_seed(1)
    logits, sampler = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    advantage = torch.randn(30, generator=generator, dtype=torch.float64)

    def gradient(drawn_from, cfg):
        x = logits.clone().requires_grad_()
        log_p, log_s = x.log_softmax(0), drawn_from.log_softmax(0)
        one = torch.ones(30, dtype=torch.long)
        tokens = Tokens(log_p, -log_p, log_p.detach(), log_s, None, advantage, log_s.exp(), one)
        loss_of(no_clip, tokens, cfg).backward()
        return x.grad

    cfg = replace(SETTINGS, old_log_probs="learner", correction="token", correction_cap=1e9)
    torch.testing.assert_close(gradient(sampler, cfg), gradient(logits, SETTINGS))


def test_stats_add_up_but_maxima_do_not():
    total = UpdateStats.total(
        [
            UpdateStats(tokens=2, max_ratio=3.0, k1=1.0, below=(0, 0, 0, 1, 1, 1, 1, 1)),
            UpdateStats(tokens=3, max_ratio=2.0, k1=-0.5, below=(0, 0, 0, 0, 1, 2, 2, 3)),
        ]
    )
    assert (total.tokens, total.max_ratio, total.k1) == (5, 3.0, 0.5)
    assert total.below == (0, 0, 0, 1, 2, 3, 3, 4)

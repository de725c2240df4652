"""The four formulas against values and slopes worked out by hand."""

import math
from functools import partial

import pytest
import torch

from pspo import surrogates
from pspo.config import TrainConfig, compose
from pspo.surrogates import MAX_LOG_RATIO, clip, no_clip, pspo, relative_slope, sigmoid

R = [0.5, 0.9, 1.0, 1.1, 2.0]


def value_and_slope(surrogate, r: float, a: float) -> tuple[float, float]:
    """The surrogate and its derivative with respect to r (not log r) at one point, in fp64."""
    log_ratio = torch.tensor(math.log(r), dtype=torch.float64, requires_grad=True)
    value = surrogate(log_ratio, torch.tensor(a, dtype=torch.float64))
    value.backward()
    return value.item(), log_ratio.grad.item() / r


@pytest.mark.parametrize("a", [1.0, -2.0])
@pytest.mark.parametrize("r", R)
def test_no_clip_is_r_a(r, a):
    assert value_and_slope(no_clip, r, a) == pytest.approx((r * a, a))


# (r, A, value, slope) for epsilon_low = 0.2, epsilon_high = 0.3: the bounds are 0.8 and 1.3
@pytest.mark.parametrize(
    "r, a, value, slope",
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.2, 2.0, 2.4, 2.0),  # inside
        (1.5, 2.0, 2.6, 0.0),  # past the upper bound A > 0 points to: 1.3 * 2
        (0.5, 2.0, 1.0, 2.0),  # far below, but A > 0 pulls it back: slope stays
        (0.5, -2.0, -1.6, 0.0),  # past the lower bound A < 0 points to: 0.8 * -2
        (1.5, -2.0, -3.0, -2.0),  # far above, but A < 0 pulls it back
    ],
)
def test_clip_by_hand(r, a, value, slope):
    assert value_and_slope(partial(clip, epsilon_low=0.2, epsilon_high=0.3), r, a) == pytest.approx((value, slope))


def test_clip_defaults_are_the_papers():
    assert value_and_slope(clip, 1.5, 1.0) == pytest.approx((1.2, 0.0))
    assert value_and_slope(clip, 0.5, -1.0) == pytest.approx((-0.8, 0.0))


# At r = 1 the value is 4 / tau * 1/2 * A and the slope A; at r = 2, tau = 1: sigmoid(1) = 0.7310585786, slope
# 4 * 0.7310585786 * 0.2689414214 = 0.7864477329; A < 0 takes tau = 2: sigmoid(2) = 0.8807970780, slope 4 * 0.1049935854
@pytest.mark.parametrize(
    "r, a, value, slope",
    [
        (1.0, 3.0, 6.0, 3.0),
        (1.0, -3.0, -3.0, -3.0),
        (2.0, 1.0, 2.9242343145, 0.7864477329),
        (2.0, -1.0, -1.7615941560, -0.4199743416),
    ],
)
def test_sigmoid_by_hand(r, a, value, slope):
    assert value_and_slope(partial(sigmoid, tau_pos=1.0, tau_neg=2.0), r, a) == pytest.approx((value, slope))


@pytest.mark.parametrize("a", [1.0, -2.0])
@pytest.mark.parametrize("r", R)
def test_pspo_by_hand(r, a):
    # alpha = 0.25: r = 2, A = 1 gives 0.75 * 2 + 0.25 = 1.75, slope 0.75
    assert value_and_slope(partial(pspo, alpha=0.25), r, a) == pytest.approx(((0.75 * r + 0.25) * a, 0.75 * a))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_gradient_of_pspo_is_one_minus_alpha_times_that_of_no_clip(alpha):
    """Proposition 2.5 of the paper, token by token."""
    x = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    a = torch.linspace(-2, 2, 61, dtype=torch.float64)
    (smoothed,) = torch.autograd.grad(pspo(x, a, alpha=alpha).sum(), x)
    (plain,) = torch.autograd.grad(no_clip(x, a).sum(), x)
    torch.testing.assert_close(smoothed, (1 - alpha) * plain, rtol=1e-14, atol=0)


@pytest.mark.parametrize("surrogate", [no_clip, clip, sigmoid, pspo])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_wild_token_cannot_make_the_loss_infinite(surrogate, dtype):
    log_ratio = torch.tensor([1e4, -1e4, 0.0], dtype=dtype, requires_grad=True)
    for sign in (1.0, -1.0):
        value = surrogate(log_ratio, torch.tensor(sign, dtype=dtype))
        value.sum().backward()
        assert value.dtype == dtype
        assert value.isfinite().all() and log_ratio.grad.isfinite().all()
        assert log_ratio.grad[0] == 0 and log_ratio.grad[1] == 0  # a clamped token has no gradient
        assert log_ratio.grad[2].abs() > 0
        log_ratio.grad = None


def test_gradient_flows_through_the_log_ratio_only_and_shapes_broadcast():
    log_ratio = torch.zeros(4, 3, requires_grad=True)
    advantage = torch.ones(4, 1, requires_grad=True)
    for surrogate in (no_clip, clip, sigmoid, pspo):
        value = surrogate(log_ratio, advantage)
        assert value.shape == (4, 3)
        value.sum().backward()
    assert advantage.grad is None and log_ratio.grad is not None


def test_relative_slope():
    log_ratio = torch.tensor([0.0, math.log(1.5), math.log(1.5), MAX_LOG_RATIO + 1, 0.0], dtype=torch.float64)
    advantage = torch.tensor([2.0, 2.0, -2.0, 1.0, 0.0], dtype=torch.float64)
    assert relative_slope(clip, log_ratio, advantage).tolist() == pytest.approx([1, 0, 1, 0, 0])
    assert relative_slope(no_clip, log_ratio, advantage).tolist() == pytest.approx([1, 1, 1, 0, 0])
    assert relative_slope(partial(pspo, alpha=0.4), log_ratio, advantage).tolist() == pytest.approx([0.6] * 3 + [0, 0])


@pytest.mark.parametrize("name, expected", [("no_clip", 1.5), ("clip", 1.1), ("sigmoid", None), ("pspo", 1.35)])
def test_from_config_fills_in_the_parameters(name, expected):
    settings = {"clip": ["surrogate.epsilon_high=0.1"], "pspo": ["surrogate.alpha=0.3"]}.get(name, [])
    surrogate = surrogates.from_config(compose("train", TrainConfig, [f"surrogate={name}", *settings]).surrogate)
    log_ratio, one = torch.tensor(math.log(1.5)), torch.tensor(1.0)
    expected = expected if expected is not None else 4 / (1 + math.exp(-0.5))
    assert surrogate(log_ratio, one).item() == pytest.approx(expected)


def test_dual_clip_by_hand():
    """Where A < 0 no value falls below dual * A, and no slope is left there; where A > 0 nothing changes."""
    log_ratio = torch.tensor([1.0, 2.0, 5.0, 5.0]).log().requires_grad_()
    values = clip(log_ratio, torch.tensor([-1.0, -1.0, -1.0, 1.0]), dual=3.0)
    assert values.tolist() == pytest.approx([-1.0, -2.0, -3.0, 1.2])
    values.sum().backward()
    assert log_ratio.grad.tolist() == pytest.approx([-1.0, -2.0, 0.0, 0.0])


def test_clip_higher_widens_one_side():
    r = torch.tensor([1.25, 0.7]).log()
    assert clip(r, torch.tensor([1.0, -1.0]), 0.2, 0.28).tolist() == pytest.approx([1.25, -0.8])

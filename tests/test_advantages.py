import pytest
import torch

from pspo.advantages import group_advantages, has_signal


def test_by_hand():
    # mean 0.25, unbiased std of (1, 0, 0, 0) = 0.5; eps = 0
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert group_advantages(rewards, eps=0.0).tolist() == [[1.5, -0.5, -0.5, -0.5]]
    assert group_advantages(rewards, scale="none").tolist() == [[0.75, -0.25, -0.25, -0.25]]
    # eps is added to the standard deviation: 0.75 / (0.5 + 0.25)
    assert group_advantages(rewards, eps=0.25)[0, 0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_equal_rewards_give_exactly_zero(scale):
    # The fp32 mean of six times 0.1 is not 0.1: without care 1 / eps makes a signal of the rounding error.
    rewards = torch.full((3, 6), 0.1)
    for eps in (1e-12, 0.0):
        assert (group_advantages(rewards, scale, eps) == 0).all()


def test_groups_do_not_mix():
    rewards = torch.tensor([[1.0, 0.0], [7.0, 5.0]])
    together = group_advantages(rewards)
    assert torch.equal(together[1:], group_advantages(rewards[1:]))
    assert together.sum(dim=1).abs().max() < 1e-6


def test_has_signal():
    assert has_signal(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])).tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("rewards", [torch.zeros(4), torch.zeros(4, 1)])
def test_a_group_needs_two(rewards):
    with pytest.raises(ValueError, match="G >= 2"):
        group_advantages(rewards)


def test_unknown_scale():
    with pytest.raises(ValueError, match="'mad'"):
        group_advantages(torch.zeros(1, 2), scale="mad")

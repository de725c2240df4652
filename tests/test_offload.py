"""Moments in the host's memory: the bits of torch's fused AdamW, and its state. Sharded: test_sharding.py."""

from dataclasses import replace

import pytest
import torch

from pspo import offload
from pspo.batching import Batch
from pspo.config import TrainConfig, compose
from pspo.errors import ConfigError
from pspo.learner import Learner
from pspo.offload import HostAdamW
from pspo.surrogates import clip

VOCAB = 31
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(), (0,), (7,), (64,), (65,), (33, 37), (128, 3)]  # none, one and several pieces of 64, whole and broken ones


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(offload, "PIECE", 64)


def both(dtype, device="cpu"):
    """The same parameters for torch's optimiser and for ours."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]
    pairs = [[torch.nn.Parameter(value.clone()) for value in values] for _ in range(2)]
    return (*pairs, torch.optim.AdamW(pairs[0], **SETTINGS, fused=True), HostAdamW(pairs[1], **SETTINGS))


def step(number, theirs, ours, *optimizers):
    """One of both, at a rate of its own, with the same gradients for two parameters of three."""
    generator = torch.Generator().manual_seed(number + 1)
    for index, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        gradient = torch.randn(a.shape, generator=generator).to(a)
        a.grad, b.grad = (None, None) if (index + number) % 3 == 0 else (gradient, gradient.clone())
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 1e-2 / (number + 1)
        optimizer.step()


def assert_the_same(theirs, ours, expected, found):
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a, b)
        assert expected.state[a].keys() == found.state[b].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in expected.state[a].items():
            mine = found.state[b][name]
            assert torch.equal(value.cpu(), mine.cpu()) and value.dtype == mine.dtype and value.shape == mine.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_bit_is_that_of_torchs_fused_adamw(small_pieces, dtype):
    made = both(dtype)
    for number in range(6):
        step(number, *made)
    assert_the_same(*made)
    assert not torch.equal(made[1][-1], both(dtype)[1][-1])


def test_a_parameter_that_never_has_a_gradient_stays_and_has_no_moments():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = HostAdamW([parameter], **SETTINGS)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(3)) and not optimizer.state[parameter]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_moments_are_page_locked_and_the_bits_the_same(small_pieces, dtype):
    made = both(dtype, "cuda")
    for number in range(6):
        step(number, *made)
    assert_the_same(*made)
    moments = [made[3].state[parameter]["exp_avg"] for parameter in made[1]]
    assert all(moment.device.type == "cpu" and (moment.is_pinned() or not moment.numel()) for moment in moments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_a_step_takes_no_more_than_the_pieces_under_way():
    parameter = torch.nn.Parameter(torch.zeros(1 << 27, device="cuda"))
    parameter.grad = torch.ones_like(parameter)
    optimizer = HostAdamW([parameter], **SETTINGS)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        room = 2 * offload.UNDER_WAY * offload.PIECE * parameter.element_size()
        assert 0 < torch.cuda.max_memory_allocated() - before <= room + 4096
    assert torch.cuda.memory_allocated() - before <= 4096


def learner_of(model, cfg):
    return Learner(model, clip, cfg, temperature=0.8, max_tokens=12, planned_updates=10)


@pytest.mark.parametrize("saved, resumed", [(True, True), (True, False), (False, True)])
def test_a_learner_goes_on_from_its_state_with_or_without(make_model, make_samples, small_pieces, saved, resumed):
    """Two updates, its state given to another learner, two more: the bits of four updates without any of it."""
    cfg = compose("train", TrainConfig, ["learner.weight_decay=0.1", "learner.warmup_updates=0"]).learner
    cfg, batch = replace(cfg, lr=1e-2), Batch.of(make_samples(8, VOCAB, group=4))
    undisturbed = learner_of(make_model(), cfg)
    for number in range(4):
        undisturbed.update(batch, range(8), number)
    before = learner_of(make_model(), replace(cfg, offload_optimizer=saved))
    after = learner_of(make_model(), replace(cfg, offload_optimizer=resumed))
    batch = Batch.of(make_samples(8, VOCAB, group=4))
    for number in range(2):
        before.update(batch, range(8), number)
    after.model.load_state_dict(before.model.state_dict())
    state = before.training_state()
    read = {name: after.blank(name, value.shape, value.dtype).copy_(value) for name, value in state.items()}
    after.load_training_state(read)
    for number in range(2, 4):
        after.update(batch, range(8), number)
    for learner, kind in ((undisturbed, torch.optim.AdamW), (after, HostAdamW if resumed else torch.optim.AdamW)):
        assert type(learner.optimizer) is kind
    weights, found = dict(undisturbed.weights()), dict(after.weights())
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    moments, others = undisturbed.training_state(), after.training_state()
    assert moments.keys() == others.keys() and all(torch.equal(moments[name], others[name]) for name in moments)


def test_sgd_has_nothing_to_keep_there():
    with pytest.raises(ConfigError, match=r"learner.offload_optimizer=True: needs learner.optimizer=adamw"):
        compose("train", TrainConfig, ["learner.offload_optimizer=true", "learner.optimizer=sgd"])

"""One update: against autograd on full logits, independent of how it is split, and stopped when it is not finite."""

import math
from dataclasses import replace

import pytest
import torch

from pspo.batching import Batch
from pspo.config import TrainConfig, compose
from pspo.errors import ConfigError, NonFiniteError
from pspo.learner import Learner, learning_rate, make_learner
from pspo.ranks import Ranks
from pspo.surrogates import clip, no_clip, pspo, sigmoid

VOCAB = 31


@pytest.fixture(scope="module")
def settings():
    """The small world's learner, at a rate that moves the weights visibly, without warm-up."""
    return replace(
        compose("train", TrainConfig).learner, lr=1e-2, warmup_updates=0, schedule="constant", old_log_probs="learner"
    )


def learner_of(model, surrogate, cfg, temperature=0.8):
    return Learner(model, surrogate, cfg, temperature=temperature, max_tokens=12, planned_updates=10)


def everything(batch):
    return list(range(len(batch)))


def weights_after(make_model, samples, surrogate, cfg, updates=3):
    """All weights, flat, after some updates against the log-probs of the starting policy."""
    learner = learner_of(make_model(), surrogate, cfg)
    batch = Batch.of(samples)
    if cfg.kl_coef:
        batch.reference = learner_of(make_model(), surrogate, cfg).log_probs(batch, everything(batch)) - 0.1
    for number in range(updates):
        learner.update(batch, everything(batch), number)
    return torch.cat([weight.flatten() for _, weight in learner.weights()])


def gradients_met(learner):
    """A list that holds, after an update, the gradients that its optimiser met."""
    met = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: met.extend(parameter.grad.clone() for parameter in learner.model.parameters())
    )
    return met


def plain_log_probs(model, samples, temperature):
    """Log-probs of completion tokens, sample by sample, from full logits."""
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = model(ids).logits[0] / temperature
        at = torch.arange(len(sample.prompt_ids), ids.shape[1])
        yield logits.log_softmax(dim=1)[at - 1, ids[0, at]]


@pytest.mark.parametrize("tie", [True, False])
def test_log_probs_and_gradient_equal_autograd_on_full_logits(make_model, make_samples, settings, tie):
    samples = make_samples(9, VOCAB, group=3)
    learner = learner_of(make_model(tie=tie), clip, settings)
    batch = Batch.of(samples)
    batch.old = batch.sampler.clone()
    oracle = make_model(tie=tie)
    theirs = list(plain_log_probs(oracle, samples, 0.8))
    torch.testing.assert_close(
        learner.log_probs(batch, everything(batch)), torch.cat(theirs).detach(), rtol=0, atol=1e-7
    )

    tokens = sum(len(sample.completion_ids) for sample in samples)
    loss = (
        -sum(
            clip(log_probs - torch.tensor(s.sampler_log_probs), torch.tensor(s.advantage, dtype=torch.float64)).sum()
            for log_probs, s in zip(theirs, samples, strict=True)
        )
        / tokens
    )
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), settings.max_grad_norm)
    gradients, stats = gradients_met(learner), learner.update(batch, everything(batch), 0)
    assert stats.loss == pytest.approx(loss.item(), rel=1e-6)
    assert stats.grad_norm == pytest.approx(norm.item(), rel=1e-6)
    for mine, other in zip(gradients, oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, other.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
@pytest.mark.parametrize("surrogate", [no_clip, clip, sigmoid, pspo])
def test_the_update_does_not_depend_on_how_the_minibatch_is_split(
    make_model, make_samples, settings, normalise, surrogate
):
    samples = make_samples(16, VOCAB, group=4)
    one, many = (
        weights_after(make_model, samples, surrogate, replace(settings, normalise=normalise, token_budget=budget))
        for budget in (100_000, 24)
    )
    torch.testing.assert_close(one, many, rtol=1e-9, atol=1e-12)


def test_order_of_the_samples_does_not_matter(make_model, make_samples, settings):
    samples = make_samples(8, VOCAB)
    torch.testing.assert_close(
        weights_after(make_model, samples, no_clip, settings),
        weights_after(make_model, samples[::-1], no_clip, settings),
        rtol=1e-9,
        atol=1e-12,
    )


def half(log_ratio, advantage):
    return pspo(log_ratio, advantage, alpha=0.5)


def test_under_adam_without_eps_pspo_takes_the_very_steps_of_no_clip(make_model, make_samples, settings):
    """Adam does not see a constant factor on the gradient; 1 - alpha = 1/2 is exact in binary, so not a bit differs."""
    samples = make_samples(8, VOCAB)
    cfg = replace(settings, adam_eps=0.0, max_grad_norm=None)
    assert torch.equal(weights_after(make_model, samples, no_clip, cfg), weights_after(make_model, samples, half, cfg))


def test_with_clipping_pspo_is_no_clip_with_a_wider_threshold(make_model, make_samples, settings):
    samples = make_samples(8, VOCAB)
    cfg = replace(settings, adam_eps=0.0, max_grad_norm=0.05)
    wider = replace(cfg, max_grad_norm=0.05 / (1 - 0.5))
    torch.testing.assert_close(
        weights_after(make_model, samples, half, cfg),
        weights_after(make_model, samples, no_clip, wider),
        rtol=1e-4,  # torch divides by the norm plus 1e-6
        atol=1e-6,
    )


def test_under_sgd_pspo_is_a_smaller_learning_rate(make_model, make_samples, settings):
    samples = make_samples(8, VOCAB)
    cfg = replace(settings, optimizer="sgd", max_grad_norm=None, lr=0.5)
    torch.testing.assert_close(
        weights_after(make_model, samples, half, cfg),
        weights_after(make_model, samples, no_clip, replace(cfg, lr=0.25)),
        rtol=1e-12,
        atol=1e-14,
    )


def test_ratios_start_at_one_and_leave_it(make_model, make_samples, settings):
    samples = make_samples(8, VOCAB)
    learner, batch = learner_of(make_model(), no_clip, settings), Batch.of(samples)
    known = learner.log_probs(batch, everything(batch))
    first = learner.update(batch, everything(batch), 0)
    torch.testing.assert_close(batch.old, known, rtol=0, atol=1e-12)  # nobody had to compute them before
    second = learner.update(batch, everything(batch), 1)
    torch.testing.assert_close(batch.old, known, rtol=0, atol=1e-12)
    assert torch.equal(batch.before, batch.old)
    assert first.abs_dev / first.tokens < 1e-12 and first.max_ratio == pytest.approx(1)
    assert second.abs_dev / second.tokens > 1e-3
    assert first.tokens == sum(len(sample.completion_ids) for sample in samples)
    assert 0 < first.entropy / first.tokens <= math.log(VOCAB)


def test_steps_of_the_papers_rate_are_not_lost_in_bf16(make_model, make_samples, settings):
    """A step of 5e-7 is far below the spacing of bf16 numbers: weights stay fp32, only the forward pass is bf16."""
    samples = make_samples(8, VOCAB)
    cfg = replace(settings, lr=5e-7)
    learner = Learner(
        make_model(dtype=torch.float32),
        no_clip,
        cfg,
        compute_dtype="bfloat16",
        temperature=0.8,
        max_tokens=12,
        planned_updates=10,
    )
    before = [weight.clone() for _, weight in learner.weights()]
    batch = Batch.of(samples)
    log_probs = learner.log_probs(batch, everything(batch))
    learner.update(batch, everything(batch), 0)
    pairs = [(a, b) for a, (_, b) in zip(before, learner.weights(), strict=True) if a.ndim == 2]
    moved = sum((a != b).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    assert moved > 0.9
    lost = sum((a.bfloat16() == b.bfloat16()).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    assert lost > 0.9  # had the weights been bf16
    exact = learner_of(make_model(dtype=torch.float32), no_clip, cfg).log_probs(batch, everything(batch))
    difference = (log_probs - exact).abs().max()
    assert 1e-6 < difference < 0.1  # the forward pass did run in bf16


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_non_finite_update_is_stopped_before_the_optimiser_moves(make_model, make_samples, settings, bad):
    learner, batch = learner_of(make_model(), no_clip, settings), Batch.of(make_samples(4, VOCAB))
    learner.update(batch, everything(batch), 0)
    before = [weight.clone() for _, weight in learner.weights()]
    moments = [state["exp_avg"].clone() for state in learner.optimizer.state.values()]
    with pytest.raises(NonFiniteError, match="update 1"):
        batch.advantage[0] = bad
        learner.update(batch, everything(batch), 1)
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, learner.weights(), strict=True))
    states = learner.optimizer.state.values()
    assert all(torch.equal(a, state["exp_avg"]) for a, state in zip(moments, states, strict=True))
    assert all(parameter.grad is None for parameter in learner.model.parameters())  # the next one begins with none


def test_an_update_leaves_no_gradient_in_memory(make_model, make_samples, settings):
    learner, batch = learner_of(make_model(), no_clip, settings), Batch.of(make_samples(4, VOCAB))
    gradients = gradients_met(learner)
    learner.update(batch, everything(batch), 0)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert all(parameter.grad is None for parameter in learner.model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_what_torch_keeps_for_later_is_released(make_model, make_samples, settings):
    learner = learner_of(make_model().cuda(), no_clip, settings)
    batch = Batch.of(make_samples(64, VOCAB), "cuda")
    learner.update(batch, everything(batch), 0)
    torch.empty(1 << 28, device="cuda")
    kept = torch.cuda.memory_reserved()
    learner.release()
    assert torch.cuda.memory_reserved() <= kept - (1 << 28)


def test_learning_rate_by_hand(settings):
    cfg = replace(settings, lr=1.0, warmup_updates=4)
    assert [learning_rate(cfg, k, 12) for k in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    linear = replace(cfg, schedule="linear")
    assert [learning_rate(linear, k, 12) for k in (3, 4, 8, 11)] == [1.0, 1.0, 0.5, 0.125]


def test_weights_come_under_checkpoint_names(make_model, settings, tmp_path):
    from safetensors.torch import load_file

    learner = learner_of(make_model(), no_clip, settings)
    learner.model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    mine = dict(learner.weights())
    assert mine.keys() == saved.keys()
    assert all(torch.equal(mine[name], saved[name]) for name in saved)


LOSSES: dict[str, dict] = {
    "token": {},
    "gspo": {"ratio_level": "sequence", "normalise": "sequence"},
    "kl": {"kl_coef": 0.3},
    "entropy": {"entropy_bonus": 0.2},
    "correction": {"correction": "token", "correction_cap": 1.5},
    "correction of sequences": {"correction": "sequence"},
    "all": {
        "ratio_level": "sequence",
        "kl_coef": 0.3,
        "kl_estimator": "k2",
        "entropy_bonus": 0.2,
        "correction": "token",
    },
}


@pytest.mark.parametrize("choice", LOSSES)
@pytest.mark.parametrize("surrogate", [clip, sigmoid])
def test_every_loss_is_the_same_however_it_is_packed(make_model, make_samples, settings, choice, surrogate):
    samples = make_samples(12, VOCAB, group=4)
    cfg = replace(settings, **LOSSES[choice])
    one, many = (weights_after(make_model, samples, surrogate, replace(cfg, token_budget=n)) for n in (10_000, 24))
    torch.testing.assert_close(one, many, rtol=1e-8, atol=1e-10)
    if LOSSES[choice]:
        assert not torch.allclose(one, weights_after(make_model, samples, surrogate, settings), rtol=0, atol=1e-3)


def test_gspo_by_hand(make_model, make_samples, settings):
    """The gradient of (1/S) sum_i min(s_i A_i, clip(s_i) A_i) with s_i the geometric mean of the sequence's ratios."""
    samples = make_samples(6, VOCAB, group=3)
    cfg = replace(settings, ratio_level="sequence", normalise="sequence", max_grad_norm=None, optimizer="sgd", lr=1.0)
    learner, oracle, batch = learner_of(make_model(), clip, cfg), make_model(), Batch.of(samples)
    batch.old = batch.sampler.clone()
    objective = 0.0
    for sample, log_probs in zip(samples, plain_log_probs(oracle, samples, 0.8), strict=True):
        s = (log_probs - torch.tensor(sample.sampler_log_probs)).mean().exp()
        a = torch.tensor(sample.advantage)
        objective = objective + torch.minimum(s * a, s.clamp(0.8, 1.2) * a) / len(samples)
    objective.backward()
    gradients, stats = gradients_met(learner), learner.update(batch, everything(batch), 0)
    assert stats.loss == pytest.approx(-objective.item(), rel=1e-6)
    for mine, other in zip(gradients, oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, -other.grad, rtol=1e-5, atol=1e-7)


def test_gradient_checkpointing_computes_layers_twice_and_changes_no_bit(make_model, make_samples, settings):
    samples, calls, weights = make_samples(8, VOCAB, group=4), [], []
    for checkpointing in (False, True):
        model = make_model().eval()  # as it is loaded
        learner = learner_of(model, no_clip, replace(settings, gradient_checkpointing=checkpointing))
        calls.append(0)

        def count(*ignored):
            calls[-1] += 1

        model.base_model.layers[0].mlp.register_forward_pre_hook(count)
        batch = Batch.of(samples)
        for number in range(3):
            learner.update(batch, everything(batch), number)
        weights.append(torch.cat([weight.flatten() for _, weight in learner.weights()]))
    assert calls[1] == 2 * calls[0] > 0
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "setting", ["logits_scaling", "final_logit_softcapping", "sliding_window", "attention_dropout"]
)
def test_architectures_that_do_more_than_the_packed_pass_are_refused(make_model, settings, setting):
    model = make_model()
    setattr(model.config, setting, 8)
    with pytest.raises(ConfigError, match=f"{setting}=8"):
        learner_of(model, no_clip, settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_of_a_kl_term_is_the_policy_until_the_first_update(random_policy, make_samples, dtype):
    cfg = compose("train", TrainConfig, [f"model.dtype={dtype}", "learner.kl_coef=0.1"])
    learner, batch = make_learner(cfg, str(random_policy()), Ranks()), Batch.of(make_samples(6, VOCAB, group=3))
    start = batch.reference = learner.reference_log_probs(batch)
    assert torch.equal(start, learner.log_probs(batch, everything(batch)))
    learner.update(batch, everything(batch), 100)
    assert torch.equal(start, learner.reference_log_probs(batch))
    assert not torch.equal(start, learner.log_probs(batch, everything(batch)))


def test_log_probs_of_a_part_leave_the_rest_unknown(make_model, make_samples, settings):
    batch = Batch.of(make_samples(5, VOCAB))
    found = learner_of(make_model(), no_clip, settings).log_probs(batch, [1, 3])
    known = torch.cat([torch.arange(batch.starts[i], batch.starts[i + 1]) for i in (1, 3)])
    assert not found[known].isnan().any() and int(found.isnan().sum()) == len(found) - len(known)


def test_an_entropy_bonus_raises_the_entropy(make_model, make_samples, settings):
    samples = [replace(sample, advantage=0.0) for sample in make_samples(8, VOCAB)]
    cfg = replace(settings, entropy_bonus=1.0, lr=1e-3)
    learner, batch = learner_of(make_model(), no_clip, cfg), Batch.of(samples)
    entropies = [learner.update(batch, everything(batch), k) for k in range(4)]
    values = [stats.entropy / stats.tokens for stats in entropies]
    assert values == sorted(values) and values[-1] > values[0] + 1e-4


def test_a_kl_term_holds_the_policy_at_its_reference(make_model, make_samples, settings):
    samples = [replace(sample, advantage=0.0) for sample in make_samples(8, VOCAB)]
    for estimator in ("k2", "k3"):
        cfg = replace(settings, kl_coef=1.0, kl_estimator=estimator)
        learner, batch = learner_of(make_model(), no_clip, cfg), Batch.of(samples)
        batch.reference = learner.log_probs(batch, everything(batch)) + 0.2 * torch.randn(len(batch.tokens)).double()
        first, *_, last = (learner.update(batch, everything(batch), k) for k in range(6))
        assert 0 < last.reference_kl < first.reference_kl

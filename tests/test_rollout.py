"""Both engines on the same model: equal tokens at T=0, equal log-probs, and new weights that really arrive."""

import importlib.util
import math
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from pspo.batching import Batch
from pspo.config import TrainConfig, compose
from pspo.data import eos_ids, load_tokenizer
from pspo.learner import Learner
from pspo.models import load_policy
from pspo.rollout import Decoding, make_sampler, sample
from pspo.rollout.hf import choose, nucleus
from pspo.surrogates import no_clip
from pspo.types import Sample

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has no build for this machine")
PROMPTS = [tuple(range(20, 20 + n)) for n in (5, 17, 9)]
# Largest difference in log-prob seen between the engines in fp32, with room for other machines' kernels.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def cfg():
    return compose("train", TrainConfig)


@pytest.fixture(scope="module")
def checkpoint(random_policy):
    return str(random_policy())


@pytest.fixture(scope="module")
def engines(cfg, checkpoint):
    """The engines this machine has, by name."""
    names = ["hf"] + ["vllm"] * (importlib.util.find_spec("vllm") is not None)
    tokenizer = load_tokenizer(checkpoint)
    made = {
        name: make_sampler(checkpoint, compose("train", TrainConfig, [f"rollout={name}"]).rollout, tokenizer, "cpu", 96)
        for name in names
    }
    yield made
    for engine in made.values():
        engine.close()


def draw(engine, n=1, temperature=1.0, seeds=(1, 2, 3), top_p=1.0, max_new_tokens=24, prompts=PROMPTS):
    return sample(engine, prompts, seeds, Decoding(max_new_tokens, temperature, top_p, n))


def learner_log_probs(cfg, model, groups, temperature):
    samples = [
        Sample(prompt, completion.token_ids, completion.log_probs, 1.0)
        for prompt, row in zip(PROMPTS, groups, strict=True)
        for completion in row
    ]
    learner = Learner(model, no_clip, cfg.learner, temperature=temperature, max_tokens=24, planned_updates=1)
    batch = Batch.of(samples)
    return learner.log_probs(batch, range(len(batch))), batch.sampler


def largest_difference(a, b):
    return max(abs(x - y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


@needs_vllm
def test_vllm_needs_no_compiler_on_a_cpu_and_leaves_torch_able_to_compile(engines):
    torch._dynamo.reset()
    counters.clear()
    draw(engines["vllm"])
    assert counters["stats"]["unique_graphs"] == 1  # its helper, which was captured anew
    assert not counters["inductor"] and not counters["aot_autograd"]  # and compiled by nothing
    assert not torch._dynamo.config.disable


@needs_vllm
def test_engines_agree_at_temperature_zero(engines):
    (hf, vllm) = (draw(engines[name], temperature=0.0) for name in ("hf", "vllm"))
    assert [[c.token_ids for c in row] for row in hf] == [[c.token_ids for c in row] for row in vllm]
    assert [[(c.text, c.finished) for c in row] for row in hf] == [[(c.text, c.finished) for c in row] for row in vllm]
    flat = [[c.log_probs for row in groups for c in row] for groups in (hf, vllm)]
    assert largest_difference(*flat) < TOLERANCE


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=needs_vllm)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_the_learners_at_the_sampling_temperature(cfg, checkpoint, engines, name, temperature):
    groups = draw(engines[name], n=4, temperature=temperature)
    assert [len(row) for row in groups] == [4, 4, 4]
    learned, sampled = learner_log_probs(cfg, load_policy(checkpoint, attention="eager"), groups, temperature)
    assert (learned - sampled).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=needs_vllm)])
def test_same_seeds_same_completions_whatever_else_is_in_the_batch(engines, name):
    first, again = draw(engines[name], n=4), draw(engines[name], n=4)
    assert first == again
    alone = draw(engines[name], n=4, seeds=(2,), prompts=PROMPTS[1:2])
    assert [c.token_ids for c in alone[0]] == [c.token_ids for c in first[1]]
    other = draw(engines[name], n=4, seeds=(4, 5, 6))
    assert [c.token_ids for row in other for c in row] != [c.token_ids for row in first for c in row]
    assert len({c.token_ids for c in first[0]}) > 1  # the members of a group differ


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=needs_vllm)])
def test_the_end_belongs_to_the_completion_and_a_cut_is_marked(engines, checkpoint, name):
    (eos,) = eos_ids(load_tokenizer(checkpoint))
    completions = [c for row in draw(engines[name], n=64, max_new_tokens=24, temperature=2.0) for c in row]
    ended, cut = ([c for c in completions if c.finished is flag] for flag in (True, False))
    assert ended and cut
    for completion in ended:
        assert completion.token_ids[-1] == eos and eos not in completion.token_ids[:-1]
        assert "<|" not in completion.text
    for completion in cut:
        assert len(completion.token_ids) == 24 and eos not in completion.token_ids
    assert all(len(c.token_ids) == len(c.log_probs) for c in completions)


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=needs_vllm)])
def test_groups_are_given_as_soon_as_they_are_finished(engines, name):
    engine, asked = engines[name], (PROMPTS * 30, range(90), Decoding(24, temperature=2.0))
    waited_for = sample(engine, *asked)
    streamed = list(engine.stream(*asked))
    assert sorted(streamed) == list(enumerate(waited_for))
    lasts = [max(len(c.token_ids) for c in completions) for _, completions in streamed]
    assert lasts == sorted(lasts) and len(set(lasts)) > 1  # the shortest group first

    groups = (PROMPTS, (1, 2, 3), Decoding(24, n=4))
    stopped = engine.stream(*groups)  # whoever listens may stop early
    first = next(stopped)
    stopped.close()
    engine.forget()  # refused while something is left running
    assert dict([first]).items() <= dict(enumerate(sample(engine, *groups))).items()
    assert sample(engine, *asked) == waited_for


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=needs_vllm)])
def test_new_weights_really_arrive(cfg, checkpoint, engines, name):
    """After every parameter has moved the engine samples from the new policy, and after zeros uniformly."""
    engine, model = engines[name], load_policy(checkpoint, attention="eager")
    original = [(key, value.clone()) for key, value in model.named_parameters()]
    before = draw(engine, n=2)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    engine.load((key, value.detach()) for key, value in model.named_parameters())
    after = draw(engine, n=2)
    learned, sampled = learner_log_probs(cfg, model, after, 1.0)
    assert (learned - sampled).abs().max() < TOLERANCE
    assert [c.log_probs for c in before[0]] != [c.log_probs for c in after[0]]

    engine.load((key, torch.zeros_like(value)) for key, value in model.named_parameters())
    uniform = -math.log(model.config.vocab_size)
    assert all(p == pytest.approx(uniform, abs=1e-5) for row in draw(engine) for c in row for p in c.log_probs)

    engine.load(iter(original))
    assert draw(engine, n=2) == before


@needs_vllm
def test_top_p_log_probs_are_those_of_the_nucleus(engines):
    """What the sampler reports below top-p 1 is renormalised: it cannot be compared with a learner that is not."""
    (vllm, hf) = (draw(engines[name], temperature=0.0, max_new_tokens=1) for name in ("vllm", "hf"))
    assert vllm[0][0].token_ids == hf[0][0].token_ids
    narrow = draw(engines["vllm"], temperature=1.0, top_p=1e-6, max_new_tokens=4)
    assert all(p == pytest.approx(0.0, abs=1e-6) for row in narrow for c in row for p in c.log_probs)


def test_nucleus_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert nucleus(p.log(), 0.7).exp()[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert nucleus(p.log(), 0.49).exp()[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert nucleus(p.log(), 1e-9).exp()[0].tolist() == pytest.approx([1, 0, 0, 0])


def test_choose_draws_from_the_distribution():
    p = torch.tensor([0.6, 0.3, 0.1])
    rows = 4000
    generators = [torch.Generator().manual_seed(k) for k in range(rows)]
    drawn, log_probs = choose(p.log().expand(rows, 3) * 2, 2.0, 1.0, generators)  # temperature 2 undoes the factor 2
    shares = torch.bincount(drawn, minlength=3) / rows
    assert (shares - p).abs().max() < 4 * math.sqrt(0.25 / rows)
    torch.testing.assert_close(log_probs, p.log()[drawn])


def test_missing_engine_and_checkpoint_are_told(cfg, checkpoint):
    from pspo.errors import PspoError

    with pytest.raises(PspoError, match="no such checkpoint"):
        make_sampler("/no/such/directory", replace(cfg.rollout, engine="hf"), load_tokenizer(checkpoint), "cpu", 96)

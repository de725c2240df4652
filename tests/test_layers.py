"""Compiled layers: the numbers of layers as they are, compiled once for packs of all lengths.

What torch captures is the same for every backend; aot_eager runs it, and its backward, by torch's own operators: these
tests need no compiler. With one: test_resume.py. Sharded: test_sharding.py.
"""

import importlib.util
from dataclasses import replace

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

from pspo.adapters import add_lora
from pspo.batching import Batch
from pspo.config import TrainConfig, compose, schema
from pspo.errors import ConfigError
from pspo.layers import check_compiler
from pspo.learner import Learner
from pspo.surrogates import clip
from pspo.train import train

VOCAB = 31


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Neither by tests before nor for those after."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def learner_of(model, compiler, compute_dtype="float32", reference=None, **settings):
    cfg = compose("train", TrainConfig, ["learner.old_log_probs=learner", "learner.warmup_updates=0"]).learner
    cfg = replace(cfg, lr=1e-3, token_budget=60, **settings)
    return Learner(
        model,
        clip,
        cfg,
        compute_dtype=compute_dtype,
        temperature=0.8,
        max_tokens=12,
        planned_updates=10,
        reference=reference,
        compiler=compiler,
    )


def trained(learner, make_samples, steps=3):
    """Log-probs before each of some steps, gradient norms, and the weights after them. Every step has other lengths."""
    log_probs, norms = [], []
    for number in range(steps):
        batch = Batch.of(make_samples(6 + 2 * number, VOCAB, seed=number, group=2))
        everything = range(len(batch))
        log_probs.append(learner.log_probs(batch, everything))
        if learner.cfg.kl_coef:
            batch.reference = learner.reference_log_probs(batch)
        norms.append(learner.update(batch, everything, number).grad_norm)
    return torch.cat(log_probs), norms, {name: weight.clone() for name, weight in learner.weights()}


CHOICES: dict[str, dict] = {
    "plain": {},
    "bfloat16": {"compute_dtype": "bfloat16", "gradient_checkpointing": True},
    "lora": {"kl_coef": 0.2, "gradient_checkpointing": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_compiled_layers_compute_what_they_compute_as_they_are(make_model, make_samples, choice):
    found, settings = [], CHOICES[choice]
    dtype = torch.float64 if choice == "plain" else torch.float32
    bound = {"plain": 1e-11, "bfloat16": 5e-2, "lora": 1e-5}[choice]
    for compiler in (None, "aot_eager"):
        model = make_model(dtype=dtype)
        if choice == "lora":
            add_lora(model, schema.Lora(4, 8.0, ("all-linear",)), seed=0)
        found.append(trained(learner_of(model, compiler, **settings), make_samples))
        assert (counters["stats"]["unique_graphs"] > 0) == (compiler is not None)
    (log_probs, norms, weights), (same, same_norms, same_weights) = found
    torch.testing.assert_close(log_probs, same, rtol=0, atol=bound)
    torch.testing.assert_close(norms, same_norms, rtol=bound, atol=0)
    assert weights.keys() == same_weights.keys()  # under the names that checkpoints and samplers know
    apart = torch.cat([(weight - same_weights[name]).abs().flatten() for name, weight in weights.items()])
    assert apart.mean() < bound * 3e-3  # the three steps of 1e-3 together


def graphs_of(make_model, make_samples, layers, steps):
    """How many graphs some steps have had compiled, of a policy of so many layers."""
    torch._dynamo.reset()
    counters.clear()
    learner = learner_of(make_model(dtype=torch.float32, layers=layers), "aot_eager")
    trained(learner, make_samples, steps)
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_what_is_compiled_once_serves_every_layer_and_every_length_of_pack(make_model, make_samples):
    first = graphs_of(make_model, make_samples, layers=1, steps=1)
    assert first > 0
    assert graphs_of(make_model, make_samples, layers=3, steps=5) == first


def test_the_kl_starts_at_zero_for_compiled_layers_too(make_model, make_samples):
    learner = learner_of(make_model(), "aot_eager", reference=make_model(), kl_coef=0.1)
    batch = Batch.of(make_samples(6, VOCAB, group=3))
    assert torch.equal(learner.reference_log_probs(batch), learner.log_probs(batch, range(6)))
    assert counters["stats"]["unique_graphs"] > 0


def test_without_a_compiler_a_run_ends_before_it_has_begun(random_policy, tmp_path):
    settings = ["model.compile=true", "rollout=hf", f"model.path={random_policy()}", f"run_dir={tmp_path / 'run'}"]
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}),
        pytest.raises(ConfigError, match=r"model.compile=True: needs a C\+\+ compiler .*model.compile=false"),
    ):
        train(compose("train", TrainConfig, settings))
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_a_gpu_needs_triton():
    with pytest.raises(ConfigError, match=r"model.compile=True: needs Triton"):
        check_compiler("cuda")

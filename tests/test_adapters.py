"""Adapters: they start as nothing, learn alone, and leave the learner merged into plain weights."""

import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from pspo.adapters import add_lora, merged_weights, reference, state_dict_to_save
from pspo.config import TrainConfig, compose, schema
from pspo.data import Ends, eos_ids, load_tokenizer
from pspo.errors import ConfigError
from pspo.models import load_policy, read_weights
from pspo.rollout import Decoding
from pspo.rollout.hf import HfSampler

ALL = schema.Lora(rank=3, alpha=6.0, targets=("all-linear",))
IDS = torch.arange(1, 19).view(2, 9)


def randomised(model):
    """With B away from zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def make_adapted(make_model):
    """A function that makes a policy with adapters that change what it computes."""

    def make(cfg=ALL, **how):
        return randomised(add_lora(make_model(**{"dtype": torch.float32, **how}), cfg, seed=7))

    return make


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def adapters(model):
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def loss_of(model):
    """The way the learner goes: hidden states, then the head's weight."""
    hidden = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    scores = hidden[:, :-1] @ model.get_output_embeddings().weight.T
    return cross_entropy(scores.float().flatten(0, 1), IDS[:, 1:].flatten())


@pytest.mark.parametrize("tie", [True, False])
def test_without_adapters_the_parameters_themselves(make_model, tie):
    model = make_model(tie=tie)
    found = list(merged_weights(model))
    assert [name for name, _ in found] == [name for name, _ in model.named_parameters()]
    assert ("lm_head.weight" in dict(found)) is not tie
    for (_, value), parameter in zip(found, model.parameters(), strict=True):
        assert value.data_ptr() == parameter.data_ptr() and not value.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie", [True, False])
def test_adapters_start_as_nothing_and_leave_the_model_in_place(make_model, dtype, tie):
    model = make_model(dtype=dtype, tie=tie)
    before, plain, parts = logits(model), dict(model.named_parameters()), (model.base_model, model.lm_head)
    adapted = add_lora(model, ALL, seed=0)
    assert adapted is model and (model.base_model, model.get_output_embeddings()) == parts
    assert torch.equal(logits(model), before)
    for name, value in merged_weights(model):
        assert torch.equal(value, plain.pop(name)), name
    assert not plain
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned == adapters(model).keys() and len(learned) == 2 * 7 * 2  # A and B of 7 layers in each of 2 blocks
    assert {parameter.dtype for parameter in adapters(model).values()} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name not in learned} == {dtype}
    with pytest.raises(ValueError, match="already"):
        add_lora(model, ALL, seed=0)


def test_adapters_follow_from_the_seed_alone(make_model):
    def made(seed, cfg=ALL, dtype=torch.float32, state=3):
        model = make_model(dtype=dtype)
        torch.manual_seed(state)
        expected = torch.random.get_rng_state()
        found = adapters(add_lora(model, cfg, seed))
        assert torch.equal(torch.random.get_rng_state(), expected)  # the global state is untouched
        return found

    first, name = made(5), "model.layers.0.mlp.down_proj.lora_A.default.weight"
    fewer = schema.Lora(rank=3, alpha=1.0, targets=("down_proj",))
    for other in (made(5, state=4), made(5, dtype=torch.bfloat16), made(5, cfg=fewer)):
        assert all(torch.equal(first[key], value) for key, value in other.items())
    assert not torch.equal(first[name], made(6)[name])
    assert not torch.equal(first[name], first[name.replace("layers.0", "layers.1")])
    bound = 1 / math.sqrt(32)  # down_proj's input has 32 features
    assert 0.9 * bound < first[name].abs().max() <= bound


@pytest.mark.parametrize("tie", [True, False])
def test_merged_weights_compute_what_the_adapted_policy_does(make_adapted, make_model, tie):
    model = make_adapted(tie=tie)
    plain = make_model(seed=9, dtype=torch.float32, tie=tie)
    start = logits(make_model(dtype=torch.float32, tie=tie))
    named = dict(plain.named_parameters())
    with torch.no_grad():
        for name, value in merged_weights(model):
            named.pop(name).copy_(value)
    assert not named
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-6)
    assert (logits(model) - start).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_rounds_once_and_changes_nothing(make_adapted, dtype):
    model = make_adapted(dtype=dtype)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    merged = dict(merged_weights(model))
    name = "model.layers.1.self_attn.v_proj"
    w, a, b = (before[f"{name}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default"))
    exact = w.double() + 6.0 / 3 * b.double() @ a.double()
    assert merged[f"{name}.weight"].dtype == dtype
    relative = {torch.float32: 2.0**-21, torch.bfloat16: 1.01 * 2.0**-8}[dtype]  # half a unit in bfloat16's last place
    assert ((merged[f"{name}.weight"] - exact).abs() <= relative * exact.abs() + 1e-8).all()
    assert torch.equal(merged[f"{name}.bias"], before[f"{name}.base_layer.bias"])
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("tie", [True, False])
def test_a_sampler_takes_them(random_policy, tie):
    """The log-probs of what is sampled are those of the adapted policy, and not those of the starting one."""
    path = random_policy(f"model.arch.tie_embeddings={tie}")
    tokenizer = load_tokenizer(str(path))
    cfg = compose("train", TrainConfig, ["rollout=hf"]).rollout
    sampler = HfSampler(str(path), cfg, tokenizer, "cpu", Ends(eos_ids(tokenizer), ()))
    model = randomised(add_lora(load_policy(path), ALL, seed=7))
    sampler.load(merged_weights(model))
    prompt = (5, 6, 7)
    ((_, (found,)),) = sampler.stream([prompt], [0], Decoding(8, 1.0))
    rows = torch.tensor([[*prompt, *found.token_ids]])
    with torch.no_grad():
        adapted = model(rows).logits[0].log_softmax(dim=1)
        with reference(model):
            start = model(rows).logits[0].log_softmax(dim=1)
    steps = range(len(prompt) - 1, rows.shape[1] - 1)
    chosen = [(step, token) for step, token in zip(steps, found.token_ids, strict=True)]
    assert found.log_probs == pytest.approx([float(adapted[at]) for at in chosen], abs=1e-4)
    assert max(abs(float(start[at] - adapted[at])) for at in chosen) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_policy_is_a_plain_checkpoint(make_adapted, make_model, tmp_path, tie, dtype):
    model = make_adapted(tie=tie, dtype=dtype)
    model.save_pretrained(tmp_path / "a", state_dict=state_dict_to_save(model))
    make_model(tie=tie, dtype=dtype).save_pretrained(tmp_path / "b")
    config, expected = (json.loads((tmp_path / d / "config.json").read_text()) for d in "ab")
    assert config == expected
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}
    assert dict(read_weights(tmp_path / "a")).keys() == dict(read_weights(tmp_path / "b")).keys()
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "a", dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    merged = dict(merged_weights(model))
    assert all(torch.equal(value, merged[name]) for name, value in again.named_parameters())
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 2e-2}
    torch.testing.assert_close(logits(again), logits(model), **tolerance)


def test_what_is_saved_of_a_plain_policy_is_what_transformers_saves(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "a", state_dict=state_dict_to_save(model))
    model.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert state_dict_to_save(model, keep=False) == {}


def test_reference_is_the_starting_policy_and_only_for_the_block(make_adapted, make_model):
    model, start = make_adapted(), logits(make_model(dtype=torch.float32))
    adapted = logits(model)
    learned = [parameter.requires_grad for parameter in model.parameters()]
    with reference(model) as policy:
        assert torch.equal(logits(policy), start)
        with reference(model):
            assert torch.equal(logits(model), start)
        assert torch.equal(logits(model), start)
        assert [parameter.requires_grad for parameter in model.parameters()] == learned
    assert torch.equal(logits(model), adapted) and not torch.equal(adapted, start)
    with pytest.raises(KeyError), reference(model):
        raise KeyError
    assert torch.equal(logits(model), adapted)
    assert [parameter.requires_grad for parameter in model.parameters()] == learned
    with pytest.raises(ValueError, match="no adapters"), reference(make_model()):
        pass


def test_gradient_checkpointing_gives_the_same_gradients(make_adapted):
    found = []
    for checkpointing in (False, True):
        model = make_adapted().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loss_of(model).backward()
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if ".lora_" not in name)
        found.append({name: parameter.grad for name, parameter in adapters(model).items()})
    without, with_checkpointing = found
    for name, gradient in without.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(with_checkpointing[name], gradient), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_moves_the_adapters_and_not_a_bit_of_the_base(make_model, dtype):
    model = add_lora(make_model(dtype=dtype), ALL, seed=0).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is (".lora_" not in name), name


def test_targets_by_the_end_of_their_names(make_model):
    found = adapters(
        add_lora(make_model(), schema.Lora(2, 2.0, ("q_proj", "mlp.up_proj", "layers.1.self_attn.o_proj")), 0)
    )
    assert {name.partition(".lora_")[0].removeprefix("model.layers.") for name in found} == {
        "0.self_attn.q_proj", "1.self_attn.q_proj", "0.mlp.up_proj", "1.mlp.up_proj", "1.self_attn.o_proj",
    }  # fmt: skip


@pytest.mark.parametrize("target", ["j_proj", "proj", "self_attn", "norm", ""])
def test_a_target_that_is_no_linear_layer_is_refused_with_those_there_are(make_model, target):
    model = make_model()
    with pytest.raises(ConfigError, match=r"model\.lora\.targets=.*: must be all-linear or of down_proj, gate_"):
        add_lora(model, schema.Lora(2, 2.0, ("q_proj", target)), 0)
    assert not adapters(model)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_embedding_and_head_are_refused_before_and_after_the_model_is_there(make_model, target):
    overrides = ["lora=all_linear", f"model.lora.targets=[q_proj,{target}]"]
    with pytest.raises(ConfigError, match=rf"model\.lora\.targets={target}: .*take no adapter"):
        compose("train", TrainConfig, overrides)
    model = make_model()
    cfg = schema.Lora(2, 2.0, ("q_proj",))
    object.__setattr__(cfg, "targets", (target,))  # as a model would have it that names its head otherwise
    with pytest.raises(ConfigError, match="take no adapter"):
        add_lora(model, cfg, 0)


def test_settings():
    assert compose("train", TrainConfig).model.lora is None
    assert compose("train", TrainConfig, ["lora=all_linear"]).model.lora.targets == ("all-linear",)
    for wrong in ("rank=0", "alpha=0", "targets=[]", "targets=[all-linear,q_proj]", "dropout=0.1"):
        with pytest.raises(ConfigError, match=rf"model\.lora\.{wrong.partition('=')[0]}"):
            compose("train", TrainConfig, ["lora=all_linear", f"model.lora.{wrong}"])

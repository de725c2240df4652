"""Policies: made, saved and loaded; nothing half-written, nothing executed."""

import contextlib
import dataclasses
import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pspo.config import SftConfig, compose
from pspo.data.tokenizer import build_tokenizer
from pspo.errors import PspoError
from pspo.models import build, load_policy, local_checkpoint, read_weights, save_policy

CFG = compose("sft", SftConfig, ["model.arch.hidden_size=32", "model.arch.layers=2", "model.arch.mlp_size=48"])


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(CFG.data)


def make(tokenizer, seed: int = 0):
    return build(CFG.model.arch, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, seed)


def test_weights_follow_from_the_seed_alone(tokenizer) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make(tokenizer)
    assert torch.equal(torch.rand(3), expected)  # the global state is untouched
    torch.manual_seed(6)
    same, other = make(tokenizer), make(tokenizer, seed=1)
    for (name, a), b in zip(first.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_the_architecture_is_the_one_asked_for(tokenizer) -> None:
    config = make(tokenizer).config
    arch = CFG.model.arch
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, arch.heads)
    assert (config.num_key_value_heads, config.intermediate_size) == (arch.kv_heads, 48)
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (arch.max_positions, arch.tie_embeddings)
    assert config.rope_parameters["rope_theta"] == arch.rope_theta
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    untied = build(dataclasses.replace(arch, tie_embeddings=False), 20, 1, 0, seed=0)
    assert untied.lm_head.weight.data_ptr() != untied.model.embed_tokens.weight.data_ptr()


def test_a_checkpoint_loads_in_transformers_and_here_to_the_same_bits(tokenizer, tmp_path) -> None:
    model = make(tokenizer)
    path = save_policy(model, tokenizer, tmp_path / "a" / "policy")
    ids = torch.tensor([tokenizer("Grace has 32 books.")["input_ids"]])
    want = model(ids).logits
    for again in (
        AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager"),
        load_policy(path, attention="eager"),
    ):
        assert again.dtype == torch.float32
        assert torch.equal(again(ids).logits, want)
    assert AutoTokenizer.from_pretrained(path)("a 12")["input_ids"] == tokenizer("a 12")["input_ids"]
    assert load_policy(path, dtype="bfloat16").dtype == torch.bfloat16
    assert [p.suffix for p in path.iterdir() if p.suffix not in (".json", ".jinja", ".txt")] == [".safetensors"]

    weights, named = dict(read_weights(path)), dict(model.named_parameters())
    assert weights.keys() == named.keys()
    assert all(torch.equal(weights[name], named[name]) for name in named)


def test_saving_replaces_whole_and_leaves_nothing_beside(tokenizer, tmp_path) -> None:
    target = tmp_path / "policy"
    target.mkdir()
    (target / "stale.txt").touch()
    save_policy(make(tokenizer), tokenizer, target)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"] and not (target / "stale.txt").exists()


@contextlib.contextmanager
def no_file_over(size: int):
    """The file system refuses to let any file of this process grow beyond `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_could_not_be_written_is_absent_and_the_old_one_stays(tokenizer, tmp_path) -> None:
    target = save_policy(make(tokenizer), tokenizer, tmp_path / "policy")
    before = (target / "model.safetensors").read_bytes()
    for place in (target, tmp_path / "new"):
        with pytest.raises(PspoError, match="cannot be written"), no_file_over(len(before) // 2):
            save_policy(make(tokenizer, seed=1), tokenizer, place)
    assert (target / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def test_what_is_not_there_is_told_in_one_line(tokenizer, tmp_path) -> None:
    with pytest.raises(PspoError, match="no such checkpoint directory"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(PspoError, match="no such checkpoint directory"):
        local_checkpoint("./nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PspoError, match="no model could be loaded"):
        load_policy(tmp_path / "empty")
    with pytest.raises(PspoError, match=r"no \*.safetensors"):
        list(read_weights(tmp_path / "empty"))


def test_a_missing_tensor_is_named_not_drawn_at_random(tokenizer, tmp_path) -> None:
    path = save_policy(make(tokenizer), tokenizer, tmp_path / "policy")
    weights = load_file(path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PspoError, match=r"lack 1 parameters of the model, the first model\.norm\.weight"):
        load_policy(path)


@pytest.mark.parametrize("change", [{"intermediate_size": 24}, {"vocab_size": 3}, ["no", "object"]])
def test_a_config_that_does_not_fit_is_told_in_one_line(tokenizer, tmp_path, change) -> None:
    path = save_policy(make(tokenizer), tokenizer, tmp_path / "policy")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change if isinstance(change, dict) else change))
    with pytest.raises(PspoError, match="no model could be loaded"):
        load_policy(path)


def test_pickled_weights_are_refused(tokenizer, tmp_path) -> None:
    path = save_policy(make(tokenizer), tokenizer, tmp_path / "policy")
    torch.save(make(tokenizer).state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(PspoError, match="no model could be loaded"):
        load_policy(path)

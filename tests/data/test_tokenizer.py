"""The small tokenizer, and that what a checkpoint saves is what transformers and vLLM read back."""

import importlib.util
import json
import string
from pathlib import Path

import pytest

from pspo.config import SftConfig, compose
from pspo.config.schema import WordProblems
from pspo.data import eos_ids, load_tokenizer
from pspo.data.tokenizer import EOS, PAD, VOCABULARY, build_tokenizer, looks_local
from pspo.data.wordproblems import demonstration, examples, train_example
from pspo.errors import PspoError


@pytest.fixture(scope="module")
def world() -> WordProblems:
    data = compose("sft", SftConfig).data
    assert isinstance(data, WordProblems)
    return data


@pytest.fixture(scope="module")
def tokenizer(world):
    return build_tokenizer(world)


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory) -> Path:
    """A directory as a saved policy has it: the Qwen2 config is what makes AutoTokenizer rebuild the tokenizer."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tokenizer.save_pretrained(directory)
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": len(tokenizer)}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def texts(world) -> list[str]:
    """Problems with solutions that the tokenizer was not trained on."""
    held_out = examples(world, "test", 300) + [train_example(world, i) for i in range(50_000, 50_300)]
    return [f"{e.problem.question}\n{demonstration(e, s)}" for e in held_out for s in ("steps", "terse")]


def test_the_same_settings_give_the_same_tokenizer(world, tokenizer) -> None:
    assert build_tokenizer(world).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_decoding_is_lossless_and_digits_are_single_tokens(tokenizer, texts) -> None:
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        pieces = [tokenizer.decode([i]) for i in ids]
        assert all(len(piece) == 1 for piece in pieces if any(letter.isdigit() for letter in piece))


def test_printable_ascii_is_lossless_too(tokenizer) -> None:
    text = string.printable[:95] + "\n" + "What a Zebra's (quick) fox?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_are_single_tokens(world, tokenizer) -> None:
    question = train_example(world, 123).problem.question
    assert len(tokenizer(question)["input_ids"]) <= len(question.split()) + question.count(".") + 1 + 2 * 12
    assert len(tokenizer(" books")["input_ids"]) == len(tokenizer(" together")["input_ids"]) == 1


def test_a_prompt_and_its_solution_meet_at_a_token_border(world, tokenizer) -> None:
    for index in range(300):
        example = train_example(world, index)
        prompt, solution = example.problem.question + "\n", demonstration(example, "steps")
        joint = tokenizer(prompt + solution)["input_ids"]
        assert joint == tokenizer(prompt)["input_ids"] + tokenizer(solution)["input_ids"]


def test_special_tokens(tokenizer) -> None:
    eos, pad = tokenizer.convert_tokens_to_ids(EOS), tokenizer.convert_tokens_to_ids(PAD)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (eos, pad) and eos != pad
    assert tokenizer.bos_token is None and tokenizer.chat_template is None
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))  # no row without a token
    assert len(tokenizer) <= VOCABULARY
    assert eos_ids(tokenizer) == (eos,)
    assert tokenizer("a b\n")["input_ids"][-1] != eos  # nothing is appended


def test_a_chat_model_ends_with_either_of_two_tokens(checkpoint) -> None:
    chat = load_tokenizer(checkpoint)
    chat.chat_template = "{{ messages[0].content }}"
    assert eos_ids(chat) == (chat.eos_token_id, chat.pad_token_id)


def test_round_trip_through_a_checkpoint(tokenizer, checkpoint, texts) -> None:
    again = load_tokenizer(checkpoint)
    assert type(again).__name__ == "Qwen2Tokenizer"
    for text in texts:
        assert again(text + EOS)["input_ids"] == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert (again.eos_token, again.pad_token, len(again)) == (EOS, PAD, len(tokenizer))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_round_trip_through_vllm(tokenizer, checkpoint, texts) -> None:
    from vllm.tokenizers import get_tokenizer

    theirs = get_tokenizer(str(checkpoint))
    for text in texts[:200]:
        assert theirs.encode(text) == tokenizer(text)["input_ids"]
        assert theirs.decode(theirs.encode(text)) == text


def test_what_is_not_there_is_told_in_one_line(tmp_path) -> None:
    with pytest.raises(PspoError, match="no such checkpoint directory"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PspoError, match="no tokenizer could be loaded") as told:
        load_tokenizer(tmp_path / "empty")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("path", "local"),
    [("Qwen/Qwen2.5-0.5B", False), ("./models/x", True), ("models/x/y", True), ("/x/y", True), ("gpt2", True)],
)
def test_hub_ids_and_directories_are_told_apart(path: str, local: bool) -> None:
    assert looks_local(path) is local

"""Prompts: text, chat template, and the hash that says which prompt it was."""

from dataclasses import replace

import pytest

from pspo.config import SftConfig, TrainConfig, compose
from pspo.config.schema import Prompt
from pspo.data import encode_prompt, prompt_hash
from pspo.data.tokenizer import build_tokenizer
from pspo.errors import PspoError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(compose("sft", SftConfig).data)


@pytest.fixture
def plain() -> Prompt:
    return compose("sft", SftConfig).prompt


@pytest.fixture
def chat() -> Prompt:
    return Prompt("c", chat=True, system="Be {brief}.", template="Q: {question}!", style="gsm8k")


def test_the_template_is_filled_and_braces_of_a_question_are_left_alone(plain, tokenizer) -> None:
    assert (
        tokenizer.decode(encode_prompt(plain, tokenizer, r"Is \frac{1}{2} {question}?"))
        == r"Is \frac{1}{2} {question}?" + "\n"
    )


def test_a_chat_opens_the_turn_of_the_assistant(chat, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    text = tokenizer.decode(encode_prompt(chat, tokenizer, "1+1"))
    assert text == (
        "<|im_start|>system\nBe {brief}.<|im_end|>\n<|im_start|>user\nQ: 1+1!<|im_end|>\n<|im_start|>assistant\n"
    )
    alone = tokenizer.decode(encode_prompt(replace(chat, system=None), tokenizer, "1+1"))
    assert alone == "<|im_start|>user\nQ: 1+1!<|im_end|>\n<|im_start|>assistant\n"


def test_a_chat_without_a_template_is_refused(chat, tokenizer) -> None:
    with pytest.raises(PspoError, match=r"prompt=c needs a chat template"):
        encode_prompt(chat, tokenizer, "1+1")


def test_the_hash_is_of_the_text_and_of_nothing_else(plain, chat) -> None:
    # sha256 of [false, null, "{question}\n"] as JSON
    assert prompt_hash(plain) == "6920c6a80799"
    assert prompt_hash(replace(plain, name="other", style="math")) == prompt_hash(plain)
    others = [plain, replace(plain, template="{question}"), chat, replace(chat, system=None), replace(chat, system="")]
    assert len({prompt_hash(p) for p in others}) == 5


def test_every_shipped_prompt_has_its_own_hash() -> None:
    made = {
        prompt_hash(compose("train", TrainConfig, [f"prompt={name}"]).prompt) for name in ("plain", "boxed", "hashes")
    }
    assert len(made) == 3

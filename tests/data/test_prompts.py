"""Prompts: text, demonstrations, chat templates, and the hash that says what a policy was shown."""

from dataclasses import replace

import pytest

from pspo.config import SftConfig, TrainConfig, compose
from pspo.config.compose import CONF
from pspo.config.schema import Prompt, Shot
from pspo.data import Ends, Prompter, make_prompter
from pspo.data.tokenizer import build_tokenizer
from pspo.errors import ConfigError, PspoError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOTS = (Shot("2+2?", "It is 4."), Shot("3+3?", "#### 6"))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(compose("sft", SftConfig).data)


@pytest.fixture
def plain() -> Prompt:
    return compose("sft", SftConfig).prompt


@pytest.fixture
def chat(plain) -> Prompt:
    return replace(plain, chat=True, chat_template=CHATML, system="Be {brief}.", template="Q: {question}!")


def test_the_template_is_filled_and_braces_of_a_question_are_left_alone(plain, tokenizer) -> None:
    question = r"Is \frac{1}{2} {question}?"
    prompter = Prompter(plain, tokenizer)
    assert prompter.text(question) == question + "\n"
    assert tokenizer.decode(prompter.encode(question)) == question + "\n"


def test_demonstrations_stand_before_the_question(plain, tokenizer) -> None:
    prompt = replace(plain, template="Q: {question}\nA:", shot=" {answer}\n\n", shots=SHOTS)
    text = "Q: 2+2?\nA: It is 4.\n\nQ: 3+3?\nA: #### 6\n\nQ: {answer}?\nA:"
    assert Prompter(prompt, tokenizer).text("{answer}?") == text
    assert Prompter(replace(prompt, shots=()), tokenizer, SHOTS).text("{answer}?") == text


def test_a_chat_opens_the_turn_of_the_assistant(chat, tokenizer) -> None:
    prompter = Prompter(chat, tokenizer)
    text = "<|im_start|>system\nBe {brief}.<|im_end|>\n<|im_start|>user\nQ: 1+1!<|im_end|>\n<|im_start|>assistant\n"
    assert prompter.text("1+1") == text
    assert tokenizer.decode(prompter.encode("1+1")) == text
    alone = Prompter(replace(chat, system=None), tokenizer).text("1+1")
    assert alone == "<|im_start|>user\nQ: 1+1!<|im_end|>\n<|im_start|>assistant\n"
    shown = Prompter(replace(chat, system=None, shots=SHOTS[:1]), tokenizer).text("1+1")
    assert shown == "<|im_start|>user\nQ: 2+2?!<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>\n" + alone


def test_a_chat_ends_where_its_template_ends_a_turn(plain, chat, tokenizer) -> None:
    eos = (tokenizer.eos_token_id,)
    assert Prompter(plain, tokenizer).ends == Ends(eos, ())
    assert Prompter(replace(plain, stop=("Q:",)), tokenizer).ends == Ends(eos, ("Q:",))
    assert tokenizer.eos_token == "<|im_end|>" and Prompter(chat, tokenizer).ends == Ends(eos)
    other = replace(chat, chat_template=CHATML.replace("<|im_end|>", "<end_of_turn>"), stop=("Q:",))
    assert Prompter(other, tokenizer).ends == Ends(eos, ("Q:", "<end_of_turn>"))  # no token of this tokenizer
    by_token = replace(chat, chat_template=CHATML.replace("<|im_end|>", tokenizer.pad_token))
    assert Prompter(by_token, tokenizer).ends == Ends((*eos, tokenizer.pad_token_id))
    without = replace(chat, chat_template="{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert Prompter(without, tokenizer).ends == Ends(eos)


def test_a_solution_ends_as_a_completion_does_and_has_no_calculator_s_marks(plain, chat, tokenizer) -> None:
    """GSM8K's <<48/2=24>>. Of a template whose end is no token the policy's own EOS is learned."""
    ids = Prompter(plain, tokenizer).encode_solution("48/2=<<48/2=24>>24.\n#### 24")
    assert tokenizer.decode(ids[:-1]) == "48/2=24.\n#### 24" and ids[-1] == tokenizer.eos_token_id
    by_token = replace(chat, chat_template=CHATML.replace("<|im_end|>", tokenizer.pad_token))
    assert Prompter(by_token, tokenizer).encode_solution("1")[-1] == tokenizer.pad_token_id
    other = replace(chat, chat_template=CHATML.replace("<|im_end|>", "<end_of_turn>"))
    assert Prompter(other, tokenizer).encode_solution("1")[-1] == tokenizer.eos_token_id


def test_the_tokenizer_s_own_chat_template_is_used_where_the_prompt_has_none(chat, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[-1].content }} >")
    assert Prompter(replace(chat, chat_template=None), tokenizer).text("1+1") == "Q: 1+1! >"
    assert Prompter(chat, tokenizer).text("1+1").startswith("<|im_start|>")


def test_a_chat_without_any_template_is_refused(chat, tokenizer) -> None:
    with pytest.raises(PspoError, match=r"prompt=plain needs a chat template.*question_answer.*prompt\.chat_template"):
        Prompter(replace(chat, chat_template=None), tokenizer)


def test_demonstrations_that_were_not_given_are_refused(plain, tokenizer) -> None:
    with pytest.raises(PspoError, match=r"prompt\.train_shots=3: 2 demonstrations"):
        Prompter(replace(plain, train_shots=3), tokenizer, SHOTS)


def test_demonstrations_come_from_the_training_part(plain, tokenizer) -> None:
    data = compose("sft", SftConfig).data
    prompt = replace(plain, train_shots=2, shot="{answer}\n\n")
    made = make_prompter(prompt, data, tokenizer)
    assert len(made.shots) == 2 and all("####" in shot.answer for shot in made.shots)
    text = made.text("?")
    assert text.endswith("\n\n?\n") and text.count("####") == 2
    assert make_prompter(plain, data, tokenizer).text("?") == "?\n"


def test_the_hash_is_of_what_is_shown_and_of_nothing_else(plain, chat, tokenizer) -> None:
    def hashed(prompt: Prompt, shots: tuple[Shot, ...] = ()) -> str:
        return Prompter(prompt, tokenizer, shots).hash

    # sha256 of ["{question}\n", []] as JSON
    assert hashed(plain) == "4cff9f5b5c03"
    assert hashed(replace(plain, name="other", style="math")) == hashed(plain)
    assert hashed(replace(plain, shots=SHOTS)) == hashed(plain, SHOTS)
    others = [
        plain, replace(plain, template="{question}"), replace(plain, stop=("\n\n",)), replace(plain, shots=SHOTS), chat,
        replace(chat, system=None), replace(chat, system=""), replace(chat, chat_template=CHATML + " "),
    ]  # fmt: skip
    assert len({hashed(prompt) for prompt in others}) == len(others)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"template": "no place"}, r"prompt\.template"),
        ({"shot": "none"}, r"prompt\.shot="),
        ({"chat": False}, r"prompt\.system"),
        ({"chat": False, "system": None}, r"prompt\.chat_template"),
        ({"shots": SHOTS, "train_shots": 1}, r"prompt\.train_shots"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(chat, change, told) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(chat, **change)


def test_every_shipped_prompt_is_another_one(tokenizer) -> None:
    names = sorted(path.stem for path in (CONF / "prompt").glob("*.yaml"))
    prompts = [compose("train", TrainConfig, [f"prompt={name}"]).prompt for name in names]
    assert [prompt.name for prompt in prompts] == names
    made = [
        Prompter(replace(prompt, chat_template=CHATML if prompt.chat else None), tokenizer, SHOTS * 3).hash
        for prompt in prompts
    ]
    assert len(set(made)) == len(names) >= 5

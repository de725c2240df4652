"""Stop strings, with both engines. In a file of its own: closing a vLLM engine breaks any other of the process."""

import importlib.util

import pytest

from pspo.config import TrainConfig, compose
from pspo.data import Ends, eos_ids, load_tokenizer
from pspo.rollout import Decoding, make_sampler, sample
from pspo.rollout.completions import before_stop, has_stop

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has no build for this machine")
PROMPTS = [tuple(range(20, 20 + n)) for n in (5, 17, 9)]


@pytest.fixture(scope="module")
def checkpoint(random_policy):
    return str(random_policy())


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=needs_vllm)])
def test_a_stop_string_ends_a_completion(checkpoint, name):
    tokenizer, settings = load_tokenizer(checkpoint), compose("train", TrainConfig, [f"rollout={name}"]).rollout

    def draw(stop):
        engine = make_sampler(checkpoint, settings, tokenizer, "cpu", 96, Ends(eos_ids(tokenizer), stop))
        try:
            return [c for row in sample(engine, PROMPTS, (1, 2, 3), Decoding(24, n=8)) for c in row]
        finally:
            engine.close()

    free = draw(())
    text = max((c.text for c in free), key=len)
    stop = text[len(text) // 2 : len(text) // 2 + 2]  # what some completion writes on its way
    stopped = draw((stop, "never written"))
    assert any(stop in c.text for c in free) and any(stop not in c.text for c in free)
    for before, after in zip(free, stopped, strict=True):
        kept, found, _ = before.text.partition(stop)
        assert (after.text, after.finished) == (kept, bool(found) or before.finished)
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        if found:  # it ends with the token that completes the string
            assert stop in tokenizer.decode(after.token_ids) and stop not in tokenizer.decode(after.token_ids[:-1])
        assert len(after.log_probs) == len(after.token_ids)


def test_the_first_of_several_stop_strings_cuts():
    assert before_stop("a Q: b\n\nc", ("\n\n", "Q:")) == "a "
    assert before_stop("a", ("\n\n",)) == before_stop("a", ()) == "a"
    assert before_stop("Q:", ("Q:",)) == ""


def test_a_stop_string_is_found_however_long_its_tokens_are(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer("some words before it, then many more of them, and at last Frage: zq")["input_ids"]
    assert has_stop(ids, tokenizer, ("Frage: zq",)) and has_stop(ids, tokenizer, ("q", "x"))
    assert not has_stop(ids, tokenizer, ("words before",)) and not has_stop(ids, tokenizer, ())

"""How a question is put to a policy. Imports the standard library only; the tokenizer is handed in."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pspo.config.schema import Prompt
from pspo.errors import PspoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[int, ...]:
    """Token ids of the whole prompt, up to where the completion begins.

    With `prompt.chat` the tokenizer's chat template is applied and the assistant's turn opened; raises PspoError where
    the tokenizer has none.
    """
    # Not str.format: a question or template may hold other braces, as LaTeX does.
    text = prompt.template.replace("{question}", question)
    if not prompt.chat:
        return tuple(tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        model = tokenizer.name_or_path or "this model"
        raise PspoError(
            f"prompt={prompt.name} needs a chat template, which the tokenizer of {model} does not have: choose another "
            "model, or prompt.chat=false and prompt.system=null"
        )
    messages = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    messages.append({"role": "user", "content": text})
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer(whole, add_special_tokens=False)["input_ids"])


def prompt_hash(prompt: Prompt) -> str:
    """Twelve hex digits of what a question's text is made of; the prompt's name and grading style are no part of it."""
    made_of = [prompt.chat, prompt.system, prompt.template]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]

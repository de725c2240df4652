"""How a question is put to a policy. Imports the standard library only; the tokenizer is handed in."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pspo.config.schema import Prompt, Shot
from pspo.data.tokenizer import eos_ids
from pspo.errors import PspoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ANSWER = "(the answer)"  # stands for one where only what follows it is of interest


@dataclass(frozen=True)
class Ends:
    """What ends a completion: token ids, and strings in its text."""

    ids: tuple[int, ...]
    strings: tuple[str, ...] = ()


class Prompter:
    """A prompt, its demonstrations and a tokenizer, put together.

    Raises PspoError where the prompt wants a chat template and there is none.
    """

    def __init__(self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, shots: Sequence[Shot] = ()) -> None:
        self.prompt, self.tokenizer, self.shots = prompt, tokenizer, prompt.shots or tuple(shots)
        self.style = prompt.style
        if len(self.shots) < prompt.train_shots:
            raise PspoError(f"prompt.train_shots={prompt.train_shots}: {len(self.shots)} demonstrations were given")
        if prompt.chat and not (prompt.chat_template or tokenizer.chat_template):
            model = tokenizer.name_or_path or "this model"
            raise PspoError(
                f"prompt={prompt.name} needs a chat template, which the tokenizer of {model} does not have: choose a "
                "prompt without chat, such as question_answer or problem_solution, or give one as prompt.chat_template"
            )

    def encode(self, question: str) -> tuple[int, ...]:
        """Token ids of the whole prompt, up to where the completion begins."""
        # A chat template writes its special tokens itself.
        encoded = self.tokenizer(self.text(question), add_special_tokens=not self.prompt.chat)
        return tuple(encoded["input_ids"])

    def text(self, question: str) -> str:
        """The whole prompt: demonstrations, then the question."""
        asked = [self._ask(shot.question) for shot in self.shots]
        if not self.prompt.chat:
            answered = [self.prompt.shot.replace("{answer}", shot.answer) for shot in self.shots]
            return "".join(a + b for a, b in zip(asked, answered, strict=True)) + self._ask(question)
        messages = [] if self.prompt.system is None else [{"role": "system", "content": self.prompt.system}]
        for text, shot in zip(asked, self.shots, strict=True):
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": shot.answer}]
        return self._chat([*messages, {"role": "user", "content": self._ask(question)}], add_generation_prompt=True)

    def encode_solution(self, solution: str) -> tuple[int, ...]:
        """Token ids of a completion that is this solution, and of what ends it: in a chat the token that the template
        writes after an answer, elsewhere EOS. Marks of a calculator, as GSM8K has them, are left out."""
        text = re.sub(r"<<[^<>]*>>", "", solution)
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self._end)

    @functools.cached_property
    def _end(self) -> int:
        known = self.tokenizer.get_vocab().get(self._after_answer)
        return eos_ids(self.tokenizer)[0] if known is None else known

    @functools.cached_property
    def ends(self) -> Ends:
        """What ends a completion: the tokenizer's EOS, the prompt's stop strings, and in a chat what the template
        writes after an answer, which another model's tokenizer may not know as a token."""
        ids, strings, after = eos_ids(self.tokenizer), self.prompt.stop, self._after_answer
        if not after:
            return Ends(ids, strings)
        known = self.tokenizer.get_vocab().get(after)
        return Ends(ids, (*strings, after)) if known is None else Ends((*ids, *({known} - {*ids})), strings)

    @functools.cached_property
    def _after_answer(self) -> str:
        """What a chat template writes after an answer; "" without one."""
        if not self.prompt.chat:
            return ""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
        return next(iter(self._chat(turns, add_generation_prompt=False).rpartition(ANSWER)[2].split()), "")

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hex digits of all that a policy is shown beside the question, chat template included, and of the stop
        strings. The prompt's name and grading style are no part of it."""
        made_of = [self.text("{question}"), list(self.prompt.stop)]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]

    def described(self, question: str) -> dict[str, str]:
        """For a summary: the prompt's name, its hash, and one prompt in full."""
        return {"name": self.prompt.name, "hash": self.hash, "example": self.text(question)}

    def _chat(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.prompt.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )

    def _ask(self, question: str) -> str:
        # Not str.format: a question or template may hold other braces, as LaTeX does.
        return self.prompt.template.replace("{question}", question)

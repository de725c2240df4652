"""Tokenizers: the small world's own, built here, and `load_tokenizer` for any checkpoint.

The small one is byte-level BPE as Qwen2 has it, trained on the generator's own text. transformers rebuilds the
tokenizer of a directory with a Qwen2 config from its vocabulary and merges and with Qwen2's pre-tokenizer, whatever was
saved there; so this is a Qwen2Tokenizer from the start: every digit is a token, nearly every word is one, and
`AutoTokenizer` and vLLM read back the same ids. Its alphabet is printable ASCII and the line break; other letters are
lost on it.

transformers and tokenizers are imported inside the functions, so that `pspo.data` imports without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pspo.config.schema import WordProblems
from pspo.data.wordproblems import demonstration, train_example
from pspo.errors import PspoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY = 384
"""At most so many tokens, EOS and padding included; the generator's words need a few less."""
HUB_FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors")
"""What is fetched of a policy's repository: configs, tokenizer and weights."""
EOS, PAD = "<|im_end|>", "<|endoftext|>"
CORPUS = 3000  # problems: every word of the generator occurs in them hundreds of times


def build_tokenizer(data: WordProblems) -> PreTrainedTokenizerBase:
    """The small world's tokenizer, from training problems alone; the same for the same data settings."""
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    # The byte-level letters for "!" to "~" are themselves; the last two stand for a space and a line break.
    alphabet = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]
    learner = Qwen2Tokenizer(vocab={PAD: 0}, merges=[]).backend_tokenizer  # for its normaliser and pre-tokenizer
    learner.model = BPE()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - 2,  # EOS and PAD are put behind them
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[],
        show_progress=False,
    )
    learner.train_from_iterator(_corpus(data), trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return Qwen2Tokenizer(vocab=model["vocab"], merges=merges, unk_token=PAD, eos_token=EOS, pad_token=PAD)


def _corpus(data: WordProblems) -> Iterator[str]:
    for index in range(CORPUS):
        example = train_example(data, index)
        yield f"{example.problem.question}\n{demonstration(example, 'steps' if index % 2 else 'terse')}"


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory or hub id; code that comes with it is not executed.

    Raises PspoError where there is none, or where it has no EOS token, without which no completion can end.
    """
    from transformers import AutoTokenizer

    if looks_local(path) and not Path(path).is_dir():
        raise PspoError(f"{path}: no such checkpoint directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise PspoError(f"{path}: no tokenizer could be loaded: {first_line(error)}") from error
    if not tokenizer("a")["input_ids"]:  # what transformers makes of a directory without tokenizer files
        raise PspoError(f"{path}: no tokenizer files in it")
    if tokenizer.eos_token_id is None:
        raise PspoError(f"{path}: its tokenizer has no EOS token")
    return tokenizer


def eos_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token ids that end a completion; the first is the tokenizer's own EOS.

    Qwen2's chat models end a turn with <|im_end|> and a document with <|endoftext|>, as their generation configs say,
    so with a chat template both count. Without one it is EOS alone: there the other may only be padding.
    """
    eos = tokenizer.eos_token_id
    if not tokenizer.chat_template:
        return (eos,)
    vocabulary = tokenizer.get_vocab()
    others = (vocabulary[token] for token in (EOS, PAD) if token in vocabulary)
    return (eos, *(other for other in others if other != eos))


def looks_local(path: str | Path) -> bool:
    """Is `path` a place on this machine rather than a hub id such as Qwen/Qwen2.5-0.5B?"""
    text = str(path)
    return isinstance(path, Path) or text.startswith(("/", ".", "~")) or text.count("/") != 1 or Path(text).exists()


def first_line(error: Exception) -> str:
    """What an error says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Token ids as a Completion, for both engines alike."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from pspo.types import Completion


def completion_of(
    ids: Sequence[int],
    log_probs: Sequence[float],
    tokenizer: PreTrainedTokenizerBase,
    eos: tuple[int, ...],
    stop: tuple[str, ...],
) -> Completion:
    """Text and end of what was sampled. The tokens of a stop string stay in the completion: the policy chose them."""
    ended = ids[-1] in eos
    text = tokenizer.decode(ids[:-1] if ended else ids)
    kept = before_stop(text, stop)
    return Completion(tuple(ids), tuple(log_probs), kept, finished=ended or len(kept) < len(text))


def before_stop(text: str, stop: tuple[str, ...]) -> str:
    """The text up to the first of the stop strings.

    >>> before_stop("#### 4\\n\\nQuestion: What", ("Question:", "\\n\\n"))
    '#### 4'
    """
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=len(text))]


def has_stop(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> bool:
    """Does the text of these tokens end in, or shortly after, a stop string? Only as many tokens are decoded as the
    longest of them may take, one a byte."""
    if not stop:
        return False
    text = tokenizer.decode(ids[-(max(len(string.encode()) for string in stop) + 4) :])
    return any(string in text for string in stop)

"""What flows through the loop: problems, groups of completions, and the samples a minibatch is made of.

Plain data, no behaviour, standard library only. Axes, used in every comment and docstring of the project:

    P  problems of a step (`rollout.prompts`)      N  sequences of a pack, which is what
    G  completions of a problem (`group_size`)        goes through the learner at once
    S  samples that a step learns from             L  tokens of a pack
    K  completion tokens of these samples          M  completion tokens of a pack
    D  hidden width                                V  vocabulary

A worked miniature. One problem (P = 1), two completions (G = 2), prompt of two tokens, EOS = 1:

    Group(problem, prompt_ids=(7, 8), completions=(Completion((5, 1), (-0.1, -0.2), "a", finished=True),
                                                   Completion((5, 6), (-0.1, -3.0), "ab", finished=False)))

The first ended by itself: its EOS is part of the completion, has a log-prob, and is trained on. The second was cut at
`max_new_tokens`: it has no EOS and is marked by `finished=False`. With rewards [[1, 0]] the advantages are
[[0.707, -0.707]] and the group becomes two samples:

    Sample(prompt_ids=(7, 8), completion_ids=(5, 1), sampler_log_probs=(-0.1, -0.2), advantage=+0.707)
    Sample(prompt_ids=(7, 8), completion_ids=(5, 6), sampler_log_probs=(-0.1, -3.0), advantage=-0.707)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its known answer. `id` is unique in its data set and never changes; `gold` is the bare answer.

    level, subject, solution    as the data set has them, or ""; `solution` is the worked one
    """

    id: str
    question: str
    gold: str
    level: str = ""
    subject: str = ""
    solution: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote after a prompt.

    `log_probs` are those of the distribution it was sampled from (temperature and top-p applied), one per token.
    `finished` is False for a completion that was cut by the token limit. `text` is without the EOS token.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Group:
    """The G completions sampled for one problem."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion as the learner sees it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_log_probs: tuple[float, ...]
    advantage: float

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def samples_of(groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> list[Sample]:
    """Groups and their advantages [P, G] as one flat list of P * G samples, group by group.

    >>> group = Group(Problem("1", "?", "a"), (7, 8), (Completion((5, 1), (-0.1, -0.2), "a", True),))
    >>> samples_of([group], [[0.5]])[0].advantage
    0.5
    """
    return [
        Sample(group.prompt_ids, completion.token_ids, completion.log_probs, float(advantage))
        for group, row in zip(groups, advantages, strict=True)
        for completion, advantage in zip(group.completions, row, strict=True)
    ]

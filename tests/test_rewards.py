"""What completions are worth, by each kind of reward, as conf/reward sets them."""

from __future__ import annotations

import pytest

from pspo.config import TrainConfig, compose
from pspo.grading import grade
from pspo.rewards import rewards_of
from pspo.types import Completion, Group, Problem

TEXTS = {
    "right": ("3+4=7.\n#### 7", True),
    "right, cut": ("3+4=7.\n#### 7", False),
    "wrong": ("3+4=8.\n#### 8", True),
    "right without the format": ("3+4=7", True),
    "wrong without the format": ("3+4=8", True),
    "wrong, cut": ("3+4=8.\n#### 8", False),
    "nothing": ("who knows", True),
    "right, then another number": ("3+4=7.\n#### 7\nThere are 9", True),
    "wrong, then the right number": ("#### 8\nor rather 7", True),
}


def rewards(kind: str, *overrides: str, seed: int = 0, problems: int = 1) -> list[list[float]]:
    completions = tuple(Completion((1,), (0.0,), text, ended) for text, ended in TEXTS.values())
    groups = [Group(Problem(f"p{k // 2}", "?", "7"), (1,), completions) for k in range(problems)]
    grades = [grade(c.text, "7", "gsm8k") for group in groups for c in group.completions]
    cfg = compose("train", TrainConfig, [f"reward={kind}", *overrides])
    return rewards_of(groups, grades, cfg.reward, seed).tolist()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("accuracy", [1, 0, 0, 0, 0, 0, 0, 1, 0]),
        ("released", [1, 1, 0.05, 1, 0, 0.05, 0, 0.05, 1]),
        ("format", [1, 0, 1, 0, 0, 0, 0, 1, 1]),
    ],
)
def test_every_kind_of_completion(kind, expected):
    [row] = rewards(kind)
    assert row == pytest.approx(expected)


def test_the_bonus_can_be_had_with_the_strict_reading():
    [row] = rewards("accuracy", "reward.format_bonus=0.5")
    assert row == [1, 0, 0.5, 0, 0, 0, 0, 1, 0.5]


def test_a_random_reward_follows_from_the_seed_and_the_problem_alone():
    """The same for any text; another for another seed, and for a problem that comes again in a step."""
    a = rewards("random", problems=200)
    assert a == rewards("random", problems=200) != rewards("random", problems=200, seed=1)
    assert a[:10] == rewards("random", problems=10)
    assert sum(a[k] != a[k + 1] for k in range(0, 200, 2)) > 90  # p0, p0, p1, p1, ...: 2^-7 are equal by chance
    assert sum(map(sum, a)) / (200 * len(TEXTS)) == pytest.approx(0.5, abs=0.04)
    assert rewards("random", "reward.probability=0") == [[0] * len(TEXTS)]
    assert rewards("random", "reward.probability=1") == [[1] * len(TEXTS)]

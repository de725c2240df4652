"""What graded completions are worth: grades of P groups of G -> rewards [P, G]. Imports: torch, grading, seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pspo.config import schema
from pspo.data.order import distinct
from pspo.grading import Grade, last_number_is
from pspo.seeds import derive
from pspo.types import Completion, Group


def rewards_of(groups: Sequence[Group], grades: Sequence[Grade], cfg: schema.Reward, seed: int) -> Tensor:
    """Rewards [P, G] in [0, 1]; `grades` are those of the groups' completions in order.

    A random reward follows from `seed`, which is the step's, and the problem, so methods of one seed get the same.
    """
    rows: list[list[float]] = []
    of_groups = iter(grades)
    for group, name in zip(groups, distinct([group.problem for group in groups]), strict=True):
        if isinstance(cfg, schema.RandomReward):
            draws = (derive(seed, *name, k) / 2**62 for k in range(len(group.completions)))
            rows.append([float(draw < cfg.probability) for draw in draws])
        else:
            gold = group.problem.gold
            rows.append([worth(completion, next(of_groups), gold, cfg) for completion in group.completions])
    return torch.tensor(rows)


def worth(completion: Completion, grade: Grade, gold: str, cfg: schema.Accuracy | schema.Format) -> float:
    """Of one completion. A comparison that failed (time-out, unreadable gold) is not right, and has its format.

    >>> cut = Completion((5, 6), (-0.1, -3.0), "#### 7", finished=False)
    >>> released = schema.Accuracy("accuracy", "last_number", format_bonus=0.05, must_end=False)
    >>> worth(cut, Grade(False, "7"), "8", released), worth(cut, Grade(False, "7"), "8", schema.Format("format"))
    (0.05, 0.0)
    """
    has_format = grade.status != "no_answer"
    if isinstance(cfg, schema.Format):
        return float(has_format and completion.finished)
    if cfg.must_end and not completion.finished:
        return 0.0
    if cfg.reading == "last_number":
        right = last_number_is(completion.text, gold)
    else:
        right = grade.lenient if cfg.reading == "lenient" else grade.correct
    return 1.0 if right else cfg.format_bonus if has_format else 0.0

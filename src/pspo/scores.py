"""What per-problem records add up to: accuracy with its interval, pass@k, majority vote, outcomes, lengths.

A record is a line of an `eval/` file (docs/files.md). Imports numpy and scipy through `intervals`; never torch.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pspo.grading import STATUSES, Style, answer_key
from pspo.intervals import bootstrap, wilson

Record = dict[str, Any]


def scores(records: Sequence[Record], style: Style, greedy: bool = True) -> dict[str, Any]:
    """Everything that is reported of an evaluation, as one JSON object. Shares and accuracies are in [0, 1].

    style     in which they were graded: it decides which answers are one in a vote
    greedy    drawn at T=0: the interval is Wilson's, over problems; else a bootstrap over problems of their means
    """
    drawn = [completion for record in records for completion in record["completions"]]
    samples = len(records[0]["completions"])
    return {
        "problems": len(records),
        "samples": samples,
        **accuracy(records, greedy),
        "lenient_accuracy": mean(c["lenient"] for c in drawn),
        "pass_at": {str(k): mean(pass_at_k(samples, right(record), k) for record in records) for k in ks(samples)},
        "majority": mean(majority_right(record["completions"], style) for record in records),
        "status": {status: sum(c["status"] == status for c in drawn) for status in STATUSES},
        "truncated_share": mean(not c["finished"] for c in drawn),
        "truncated_right_share": mean(c["right_if_finished"] and not c["finished"] for c in drawn),
        "no_answer_share": mean(c["status"] == "no_answer" for c in drawn),
        "tokens": lengths(drawn),
        "by_level": by(records, "level", greedy),
        "by_subject": by(records, "subject", greedy),
    }


def accuracy(records: Sequence[Record], greedy: bool) -> dict[str, Any]:
    """Mean over problems of their share of right completions, with its 95% interval and how that was found."""
    shares = [right(record) / len(record["completions"]) for record in records]
    if greedy:
        low, high = wilson(sum(right(record) for record in records), len(records))
    else:
        low, high = bootstrap([shares])
    method = "Wilson" if greedy else "bootstrap over problems"
    return {"accuracy": mean(shares), "interval": [low, high], "interval_method": method}


def by(records: Sequence[Record], field: str, greedy: bool) -> dict[str, dict[str, Any]]:
    """`accuracy` of the records of each level or subject; empty where the data set has none."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.get(field, "")].append(record)
    groups.pop("", None)
    return {name: {"problems": len(some), **accuracy(some, greedy)} for name, some in sorted(groups.items())}


def right(record: Record) -> int:
    """How many of a problem's completions are right."""
    return sum(completion["correct"] for completion in record["completions"])


def ks(samples: int) -> list[int]:
    """The k of pass@k: powers of two below the number of samples, and that number."""
    return sorted({2**e for e in range(samples.bit_length()) if 2**e < samples} | {samples})


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k completions is right, from `right` of `samples`:
    1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, section 2.1).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 0, 4), pass_at_k(4, 2, 3)
    (0.25, 0.5, 0.0, 1.0)
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_right(completions: Sequence[dict[str, Any]], style: Style) -> float:
    """Is the most frequent answer right? Of equally frequent ones each counts by its share: 0.5 for one of two.

    Completions without an answer, or cut at the token limit, have no vote. Answers that are written differently and
    graded differently may fall together ("40%" and "40"): then their share of right ones counts.
    """
    votes: dict[str, list[bool]] = defaultdict(list)
    for c in completions:
        if c["answer"] is not None and c["finished"]:
            votes[answer_key(c["answer"], style)].append(c["correct"])
    most = max(map(len, votes.values()), default=0)
    winners = [mean(graded) for graded in votes.values() if len(graded) == most]
    return mean(winners) if winners else 0.0


def lengths(drawn: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Completion lengths in tokens, EOS included, prompts and padding not."""

    def mean_of(keep: Callable[[dict[str, Any]], bool]) -> float | None:
        some = [c["tokens"] for c in drawn if keep(c)]
        return mean(some) if some else None

    ordered = sorted(c["tokens"] for c in drawn)
    return {
        "mean": mean(ordered),
        "median": statistics.median(ordered),
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
        "mean_right": mean_of(lambda c: c["correct"]),
        "mean_wrong": mean_of(lambda c: not c["correct"]),
    }


def mean(values: Iterable[float]) -> float:
    numbers = [float(value) for value in values]
    return math.fsum(numbers) / len(numbers)


def lines(found: dict[str, Any]) -> list[str]:
    """Scores as a person reads them, a few lines."""
    low, high = found["interval"]
    tokens = found["tokens"]
    text = [
        f"accuracy {percent(found['accuracy'])} [{percent(low)}, {percent(high)}] ({found['interval_method']}, 95%) on "
        f"{found['problems']} problems, {found['samples']} sample(s) each",
        f"lenient {percent(found['lenient_accuracy'])}; truncated {percent(found['truncated_share'])}; no answer "
        f"{percent(found['no_answer_share'])}; tokens {tokens['mean']:.1f} on average, at most {tokens['max']}",
    ]
    if found["samples"] > 1:
        passes = ", ".join(f"pass@{k} {percent(value)}" for k, value in found["pass_at"].items())
        text.append(f"{passes}; majority vote {percent(found['majority'])}")
    failed = {name: count for name, count in found["status"].items() if count and name not in ("ok", "no_answer")}
    if failed:
        text.append("not graded: " + ", ".join(f"{count} {name}" for name, count in failed.items()))
    for field in ("by_level", "by_subject"):
        if len(found[field]) > 1:
            text.append("; ".join(f"{name} {percent(one['accuracy'])}" for name, one in found[field].items()))
    return text


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"

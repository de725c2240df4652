"""How fast and how right grading is on one core, beside math-verify alone on the same items.

    .venv/bin/python benchmarks/grading.py [--data ../shared/data] [--items 1000] [--pairs 5] [--hang 4096]

Each official solution of GSM8K and MATH is graded as a completion against its own gold and against another problem's.
"ours" is `Grader.grade` with one worker that is already up and with empty caches. "math-verify" is the same worker's
`second_opinion` of the answer alone, `\\boxed{answer}` against `\\boxed{gold}`, as trainers call it; "math-verify,
whole" is that of the whole completion, which it searches for an answer itself. The three take turns, all on one core.
Which golds are unequal is decided here, apart from the grader. Prints a table and the correctness counts, and writes
benchmarks/results/grading.json.
`--items 0` takes every row: minutes a pair with math-verify.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from _common import ROOT, spread, table, write_results

from pspo.grading import Grader
from pspo.grading.answers import last_box, last_hash_line
from pspo.grading.grade import bare_gold
from pspo.grading.pool import Item

HANGS = r"\boxed{9^{9^{9}}}"
WHO = ("ours", "math-verify", "math-verify, whole")
SETS = (("gsm8k", "answer"), ("math", "solution"))


def solutions(data: Path, style: str, field: str) -> list[str]:
    paths = [data / style / f"{split}.jsonl" for split in ("train", "test")]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        sys.exit(f"no {missing[0]}; give the directory that holds gsm8k/ and math/ with --data")
    rows = [json.loads(line)[field] for path in paths for line in path.open(encoding="utf-8")]
    return [row for row in rows if style == "gsm8k" or last_box(row)]


def items_of(rows: list[str], style: Any, count: int) -> dict[str, list[Item]]:
    """The same solutions against their own golds, and against those of others."""
    chosen = random.Random(0).sample(rows, min(count or len(rows), len(rows)))
    return {
        "own gold": [(row, row, style) for row in chosen],
        "other gold": [(row, other, style) for row, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)],
    }


def make_cold(grader: Grader) -> None:
    """Empty caches here, and a working process that has graded nothing: the worker forks another one for it."""
    for module in [m for name, m in sys.modules.items() if name.startswith("pspo.grading")]:
        for member in vars(module).values():
            if hasattr(member, "cache_clear"):
                member.cache_clear()
    for pid in grader.worker_pids():
        for child in psutil.Process(pid).children():
            child.kill()
            child.wait()
    grader.grade([(r"\boxed{\sin x}", r"\cos x", "math")])  # the next one is up


def extracted(item: Item) -> Item:
    """The answer in a box of its own, as a trainer hands it to math-verify; `second_opinion` has the bare gold."""
    completion, gold, style = item
    answer = last_box(completion) if style == "math" else last_hash_line(completion)
    return rf"\boxed{{{answer or ''}}}", gold, style


def timed(grader: Grader, items: list[Item], who: str) -> tuple[float, list[str]]:
    """Items a second, and the outcome of each: "equal", "different" or what went wrong."""
    make_cold(grader)
    start = time.perf_counter()
    if who == "math-verify":
        outcomes: list[str] = list(grader.second_opinion([extracted(item) for item in items]))
    elif who == "math-verify, whole":
        outcomes = list(grader.second_opinion(items))
    else:
        grades = grader.grade(items)
        outcomes = [g.status if g.status != "ok" else "equal" if g.correct else "different" for g in grades]
    return len(items) / (time.perf_counter() - start), outcomes


def bare(text: str) -> str:
    """A gold without name, unit, degree, percent, dollar sign, separators, in one spelling; none of the grader."""
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", text)
    text = re.sub(r"\^\{?\\circ\}?|\\?%|\\?\$|\\(?:text|mbox)\{[^{}]*\}|\\[dt](?=frac)|\\!|\s", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text.replace("dfrac", "frac").replace("tfrac", "frac"))


def unequal(first: str, second: str, style: Any) -> bool:
    """Are two golds different answers? Equal ones in spellings that `bare` does not know count as different."""
    read = last_hash_line if style == "gsm8k" else last_box
    return bare(read(first) or "") != bare(read(second) or "")


def counts(halves: dict[str, list[Item]], found: dict[str, dict[str, list[str]]]) -> dict[str, Any]:
    """Own golds accepted, unequal golds rejected, and where the two graders disagree."""
    told: dict[str, Any] = {}
    for who in WHO:
        own, other = found["own gold"][who], found["other gold"][who]
        apart = [
            o for o, (text, gold, style) in zip(other, halves["other gold"], strict=True) if unequal(text, gold, style)
        ]
        told[who] = {
            "own gold accepted": f"{own.count('equal')} of {len(own)}",
            "unequal gold not accepted": f"{len(apart) - apart.count('equal')} of {len(apart)}",
            "outcomes": dict(Counter(own + other)),
        }
    told["disagreements"] = [
        {"half": half, "gold": bare_gold(gold, style), "answer": bare_gold(text, style), "ours": a, "math-verify": b}
        for half, items in halves.items()
        for (text, gold, style), a, b in zip(items, found[half]["ours"], found[half]["math-verify"], strict=True)
        if (a == "equal") != (b == "equal")
    ]
    return told


def speed(grader: Grader, rows: list[str], style: str, options: argparse.Namespace) -> dict[str, Any]:
    halves = items_of(rows, style, options.items)
    rates: dict[str, dict[str, list[float]]] = {half: {who: [] for who in WHO} for half in halves}
    found: dict[str, dict[str, list[str]]] = {half: {} for half in halves}
    for _ in range(options.pairs):
        for half, items in halves.items():
            for who in WHO:
                rate, found[half][who] = timed(grader, items, who)
                rates[half][who].append(rate)
    both = {
        who: [2 / (1 / a + 1 / b) for a, b in zip(*(rates[h][who] for h in halves), strict=True)]
        for who in found["own gold"]
    }
    return {
        "items a half": len(halves["own gold"]),
        "rates": rates | {"both": both},
        "correctness": counts(halves, found),
    }


def hanging(grader: Grader, rows: list[str], size: int) -> dict[str, float]:
    """Seconds for a batch of other people's golds, and for the same batch with one item that would run for ever."""
    chosen = random.Random(2).sample(rows, min(size, len(rows) - 1))
    items: list[Item] = [(a, b, "math") for a, b in zip(chosen, chosen[1:] + chosen[:1], strict=True)]
    seconds = {}
    for name, batch in (
        ("without", items),
        ("with", [*items[: size // 2], (HANGS, "2", "math"), *items[size // 2 + 1 :]]),
    ):
        make_cold(grader)
        start = time.perf_counter()
        grades = grader.grade(batch)
        seconds[name] = time.perf_counter() - start
        assert sum(g.status == "timeout" for g in grades) == (name == "with")
    return seconds | {"items": len(items), "cost of the item that hangs": seconds["with"] - seconds["without"]}


FORMULA = re.compile(r"\$+([^$]+)\$+|\\\[(.+?)\\\]", re.DOTALL)


def copied(grader: Grader, data: Path) -> dict[str, int]:
    """How often boxing the last formula of the question is right on MATH's test part: what copying alone would earn."""
    rows = [json.loads(line) for line in (data / "math" / "test.jsonl").open(encoding="utf-8")]
    asked = [(found, row["solution"]) for row in rows if (found := FORMULA.findall(row["problem"]))]
    items: list[Item] = [(rf"\boxed{{{''.join(found[-1])}}}", gold, "math") for found, gold in asked]
    return {"problems": len(rows), "accepted": sum(grade.correct for grade in grader.grade(items))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--items", type=int, default=1000, help="solutions a data set; 0 for all")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--hang", type=int, default=4096, help="size of the batch with an item that hangs")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # inherited by the workers
    loaded = {style: solutions(options.data, style, field) for style, field in SETS}

    with Grader(workers=1) as grader:
        results: dict[str, Any] = {style: speed(grader, rows, style, options) for style, rows in loaded.items()}
        results["hanging"] = hanging(grader, loaded["math"], options.hang)
        results["last formula of the question, boxed"] = copied(grader, options.data)
    rows = []
    for style, result in ((style, results[style]) for style, _ in SETS):
        for half, columns in result["rates"].items():
            rates = [columns[who] for who in WHO]
            ratio, whole = (statistics.median(rates[0]) / statistics.median(theirs) for theirs in rates[1:])
            rows.append([f"{style}, {half}", *(spread(v) for v in rates), f"{ratio:,.1f} ({whole:,.1f})"])
    print(table([f"items/s, median of {options.pairs} (range)", *WHO, "ours over math-verify (whole)"], rows))
    for style, result in ((style, results[style]) for style, _ in SETS):
        told = result["correctness"]
        for who in WHO:
            print(f"{style}, {who}: " + "; ".join(f"{name} {value}" for name, value in told[who].items()))
        print(f"{style}: {len(told['disagreements'])} disagreements")
        for case in told["disagreements"][:10]:
            print("  ", json.dumps(case, ensure_ascii=False))
    print("a batch of {items:,} in {without:.1f} s; with one item that hangs {with:.1f} s".format(**results["hanging"]))
    print("last formula of the question boxed, MATH test: accepted", results["last formula of the question, boxed"])
    write_results("grading", options=vars(options), results=results)


if __name__ == "__main__":
    main()

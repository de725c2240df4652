"""Published data sets as problems: from local JSONL files, or from the hub.

Imports the standard library and `pspo.grading`; `datasets` inside the function that asks the hub.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pspo.config.schema import Benchmark
from pspo.errors import PspoError
from pspo.grading.answers import last_box, last_hash_line
from pspo.seeds import derive
from pspo.types import Problem

Split = Literal["train", "validation", "test"]


def load_benchmark(cfg: Benchmark, split: Split, seed: int) -> list[Problem]:
    """The problems of a split. Rows without a gold answer are left out with a warning.

    `validation` is the end of the training part after a shuffle by `split_seed`, or by `seed` where that is null;
    `train` is the rest of it, in that order.

    Raises PspoError with file (or hub id) and row for a row that does not have the fields.
    """
    source: Literal["train", "test"] = "test" if split == "test" else "train"
    problems, dropped = [], []
    for index, (place, row) in enumerate(_rows(cfg, source)):
        question, gold = _text(row, cfg.question_field, place), gold_answer(cfg, row, place)
        if not gold:
            dropped.append(place)
            continue
        level = str(row.get(cfg.level_field, "")) if cfg.level_field else ""
        problems.append(Problem(f"{cfg.name}-{source}-{index:05d}", question, gold, level))
    if dropped:
        warnings.warn(
            f"{cfg.name}: {len(dropped)} rows without a gold answer left out: {', '.join(dropped)}", stacklevel=2
        )
    if split == "test":
        return problems
    if cfg.validation >= len(problems):
        raise PspoError(f"data.validation={cfg.validation}: {cfg.name} has {len(problems)} training problems in all")
    random.Random(derive(seed if cfg.split_seed is None else cfg.split_seed, "split", cfg.name)).shuffle(problems)
    border = len(problems) - cfg.validation
    return problems[:border] if split == "train" else problems[border:]


def gold_answer(cfg: Benchmark, row: dict[str, Any], place: str) -> str:
    """The answer alone, as `cfg.gold_from` says where it stands; "" where there is none."""
    text = _text(row, cfg.gold_field, place)
    if cfg.gold_from == "field":
        return text.strip()
    return (last_hash_line(text) if cfg.gold_from == "after_hashes" else last_box(text)) or ""


def _text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise PspoError(
            f"{place}: the field {field!r} must be a text or a number; the row has {', '.join(row) or 'none'}"
        )
    return value


def _rows(cfg: Benchmark, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with the place to name when it is at fault."""
    return _local_rows(Path(cfg.path) / f"{source}.jsonl") if cfg.path is not None else _hub_rows(cfg, source)


def _local_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        # Not splitlines: a text may hold line separators that are not the line break.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PspoError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PspoError(f"{place}: not a JSON object: {error.msg}") from error
        if not isinstance(row, dict):
            raise PspoError(f"{place}: not a JSON object but a {type(row).__name__}")
        yield place, row


def _hub_rows(cfg: Benchmark, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(cfg.hub, cfg.subset, split=source, revision=cfg.revision)
    except Exception as error:  # datasets, the hub's client and the network each have exceptions of their own
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PspoError(
            f"data.hub={cfg.hub}: {told}; with the files at hand, give their directory as data.path"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{cfg.hub} {source} row {number}", dict(row)

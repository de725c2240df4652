"""Published data sets as problems, and a report of what was found in them (docs/data.md).

A data set has a training and a test part, or a test part alone; rows come from `sources.py`. The training part is dealt
into the splits `train` and `validation`. A row that cannot be graded is left out, counted and told; a row that is not
what the settings say is an error. Imports the standard library and `pspo.grading`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pspo.config.schema import Benchmark, Part, Shot
from pspo.data.sources import Source, has_part, local_file, open_source, split_name
from pspo.errors import ConfigError, PspoError
from pspo.grading.answers import last_box, last_hash_line
from pspo.grading.numbers import exact_number, leading_number
from pspo.seeds import derive
from pspo.types import Problem

Split = Literal["train", "validation", "test"]

# Why a row is left out.
NO_QUESTION = "no question"
NO_GOLD = "no gold answer"
UNREADABLE = "gold answer is not a number"
SEVERAL = "several gold answers"
PLACES = 3  # of left-out rows named in a warning; the report has them all


@dataclass(frozen=True)
class DataReport:
    """What was found in one part of a data set. `dataclasses.asdict` of it is JSON.

    source             the file, or hub@revision
    file_sha256        of the file's bytes; None for the hub
    problems_sha256    of the kept problems in the source's order: the same for JSONL, Parquet and hub of one content
    rows, kept         numbers of rows at the source, and of problems made of them
    dropped            (place, reason) of each row left out, in order; dropped_by_reason: their numbers
    duplicates         ids of problems with the same question, a group a question; they are kept
    overlap            (id, id in the other part) of each question that both parts have; None without an other part

    Two questions are the same if they differ in white space and case alone, as "$x + 1$" and "$x+1$" do.
    """

    name: str
    part: Part
    source: str
    file_sha256: str | None
    problems_sha256: str
    rows: int
    kept: int
    dropped: tuple[tuple[str, str], ...]
    dropped_by_reason: dict[str, int]
    duplicates: tuple[tuple[str, ...], ...]
    overlap: tuple[tuple[str, str], ...] | None


def load_benchmark(cfg: Benchmark, split: Split, seed: int) -> list[Problem]:
    """The problems of a split. Rows that cannot be graded are left out, with one warning.

    `validation` is the end of the training part after a shuffle by `split_seed`, or by `seed` where that is null;
    `train` is the rest of it, in that order.

    Raises PspoError with file (or hub id) and row where the source is not what `cfg` says.
    """
    reading = _read(cfg, _part(split))
    if reading.dropped:
        warnings.warn(_told(cfg, reading), stacklevel=2)
    problems = list(reading.problems)
    if split == "test":
        return problems
    if cfg.validation >= len(problems):
        raise PspoError(f"data.validation={cfg.validation}: {cfg.name} has {len(problems)} training problems in all")
    random.Random(derive(seed if cfg.split_seed is None else cfg.split_seed, "split", cfg.name)).shuffle(problems)
    border = len(problems) - cfg.validation
    return problems[:border] if split == "train" else problems[border:]


def report_benchmark(cfg: Benchmark, split: Split) -> DataReport:
    """What was found in the part behind `split`; also compared with the other part where that is present.

    Raises as `load_benchmark` does, for either part.
    """
    part = _part(split)
    reading = _read(cfg, part)
    other: Part = "test" if part == "train" else "train"
    ids_of = _by_question(reading.problems)
    overlap = None
    if has_part(cfg, other):
        others = _by_question(_read(cfg, other).problems)
        overlap = tuple((mine, theirs) for key in ids_of for mine in ids_of[key] for theirs in others.get(key, ()))
    return DataReport(
        name=cfg.name,
        part=part,
        source=reading.source,
        file_sha256=reading.sha256,
        problems_sha256=_fingerprint(reading.problems),
        rows=len(reading.problems) + len(reading.dropped),
        kept=len(reading.problems),
        dropped=reading.dropped,
        dropped_by_reason=dict(Counter(reason for _, reason in reading.dropped)),
        duplicates=tuple(tuple(ids) for ids in ids_of.values() if len(ids) > 1),
        overlap=overlap,
    )


def demonstrations(cfg: Benchmark, count: int) -> tuple[Shot, ...]:
    """Question and worked solution of the first `count` training rows, in the source's order, that have a solution.

    The rows stay in the splits: one of them may be a validation problem too. The test part is never touched.
    Raises PspoError where the data set has no training part, no worked solutions or too few of them.
    """
    wanted = f"prompt.train_shots={count}: "
    if "train" not in cfg.splits:
        raise PspoError(f"{wanted}{cfg.name} has no training part; give demonstrations as prompt.shots")
    if cfg.solution_field is None:
        raise PspoError(f"{wanted}{cfg.name} has no worked solutions; give demonstrations as prompt.shots")
    worked = [problem for problem in _read(cfg, "train").problems if problem.solution.strip()]
    if len(worked) < count:
        raise PspoError(f"{wanted}{cfg.name} has {len(worked)} training problems with a worked solution")
    return tuple(Shot(problem.question, problem.solution) for problem in worked[:count])


def _part(split: Split) -> Part:
    return "test" if split == "test" else "train"


def _told(cfg: Benchmark, reading: _Reading) -> str:
    """The warning about rows left out: by reason, with the number and the first few places."""
    groups = []
    for reason, number in Counter(reason for _, reason in reading.dropped).items():
        places = [place for place, because in reading.dropped if because == reason][:PLACES]
        more = ", ..." if number > len(places) else ""
        groups.append(f"{reason}: {number} ({', '.join(places)}{more})")
    rows = len(reading.problems) + len(reading.dropped)
    return f"{cfg.name}: {len(reading.dropped)} of {rows} rows left out: {'; '.join(groups)}"


def _by_question(problems: Iterable[Problem]) -> dict[str, list[str]]:
    """Ids by question, without its white space and in folded case."""
    ids: dict[str, list[str]] = {}
    for problem in problems:
        ids.setdefault("".join(problem.question.split()).casefold(), []).append(problem.id)
    return ids


def _fingerprint(problems: Iterable[Problem]) -> str:
    digest = hashlib.sha256()
    for p in problems:
        digest.update(json.dumps([p.id, p.question, p.gold, p.level, p.subject, p.solution]).encode())
    return digest.hexdigest()


# --- reading a part, once --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """A part as it was read: what `Source` says of it, the problems in the source's order, and the rows left out."""

    source: str
    sha256: str | None
    problems: tuple[Problem, ...]
    dropped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Wanted:
    """The key of a reading: all that decides it. A Benchmark has dicts, which cannot be keys, so its text is used."""

    cfg: Benchmark = field(compare=False)
    part: Part
    key: str


def _read(cfg: Benchmark, part: Part) -> _Reading:
    """The part, from memory where nothing has changed since it was last read, the file's time and size included."""
    split_name(cfg, part)
    same = replace(cfg, validation=0, split_seed=None)  # they deal the problems out, and do not change them
    stamp = None
    if cfg.path is not None:
        file = local_file(cfg, part)
        status = file.stat()
        stamp = (str(file.resolve()), status.st_mtime_ns, status.st_size)
    return _read_source(_Wanted(same, part, f"{same} {stamp}"))


@functools.lru_cache(maxsize=4)  # both parts of two data sets; MATH's training part takes about 10 MB
def _read_source(wanted: _Wanted) -> _Reading:
    cfg, part = wanted.cfg, wanted.part
    source = open_source(cfg, part)
    problems, dropped = [], []
    for index, (place, row) in enumerate(source.rows):
        problem, reason = _problem(cfg, f"{cfg.name}-{part}-{index:05d}", row, place)
        if reason:
            dropped.append((place, reason))
        else:
            problems.append(problem)
    _check_rows(cfg, part, source, len(problems) + len(dropped))
    if not problems:
        raise PspoError(f"{source.name}: none of its {len(dropped)} rows can be used: {dropped[0][1]}")
    return _Reading(source.name, source.sha256, tuple(problems), tuple(dropped))


def _check_rows(cfg: Benchmark, part: Part, source: Source, found: int) -> None:
    if not found:
        raise PspoError(f"{source.name}: no rows in it")
    due = cfg.rows.get(part) if cfg.rows else None
    if due is not None and found != due:
        raise PspoError(
            f"{source.name}: {found} rows, but {cfg.name}'s {part} part has data.rows.{part}={due}; "
            "data.rows=null accepts any number"
        )


def _problem(cfg: Benchmark, name: str, row: dict[str, Any], place: str) -> tuple[Problem, str]:
    """The problem that a row holds, and why it cannot be used ("" where it can)."""

    def optional(setting: str) -> str:
        wanted = getattr(cfg, setting)
        return "" if wanted is None else _text(row, wanted, place, setting)

    question, (gold, reason) = _question(cfg, row, place), gold_answer(cfg, row, place)
    problem = Problem(
        name, question, gold, optional("level_field"), optional("subject_field"), optional("solution_field")
    )
    return problem, reason if question.strip() else NO_QUESTION


def gold_answer(cfg: Benchmark, row: dict[str, Any], place: str) -> tuple[str, str]:
    """The answer alone, taken from where `cfg.gold_from` says it stands, and why it is no use ("" where it is of use).

    Kinds that are numbers are read as the grader will read them; "last_box" and "field" may be any expression.
    """
    text = _text(row, cfg.gold_field, place, "gold_field")
    if cfg.gold_from == "number_with_unit":
        gold = _UNIT.sub("", text).strip()
        if exact_number(gold):
            return gold, ""
        return gold, SEVERAL if ";" in text else UNREADABLE if text.strip() else NO_GOLD
    if cfg.gold_from == "after_hashes":
        gold = last_hash_line(text) or ""
        return gold, "" if leading_number(gold) else UNREADABLE if gold else NO_GOLD
    gold = text.strip() if cfg.gold_from == "field" else last_box(text) or ""
    return gold, "" if gold else NO_GOLD


_UNIT = re.compile(r"\s*\([^()]*\)\s*$")  # "9 (apples)"
_FIELD = re.compile(r"\{([^{}]+)\}")  # not str.format: a field is put in as it is, whatever braces it holds


def _question(cfg: Benchmark, row: dict[str, Any], place: str) -> str:
    if not _FIELD.search(cfg.question):
        raise ConfigError("data.question", repr(cfg.question), 'must name a field of the rows, as "{question}" does')
    return _FIELD.sub(lambda match: _text(row, match[1], place, "question"), cfg.question)


def _text(row: dict[str, Any], name: str, place: str, setting: str) -> str:
    """A field's text; a number as Python writes it. PspoError for anything else, a missing field among it."""
    value = row.get(name)
    if isinstance(value, str) and (value.isascii() or _is_unicode(value)):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    if name not in row:
        names = ", ".join(key if key.isidentifier() else repr(key[:40]) for key in [*row][:10])
        found = f"the row has {names or 'no fields'}{', ...' if len(row) > 10 else ''}"
    elif isinstance(value, str):
        found = "it holds half a surrogate pair"
    elif isinstance(value, float):
        found = f"it is {value}"
    else:
        found = "it is null" if value is None else f"it is a {type(value).__name__}"
    raise PspoError(f"{place}: the field {name!r} (data.{setting}) must be a text or a number; {found}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape half a character, which no file could be written with later
        return False
    return True

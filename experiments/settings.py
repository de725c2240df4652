"""Every setting of a study's runs with the file and line that sets it, and the source that stands there. Never torch.

Sources are the comments of conf/*.yaml: (paper), (released code), (library default), (our choice), or another in
parentheses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pspo.config import choices
from studies import Cell

CONF = Path(__file__).resolve().parents[1] / "conf"
LEFT_OUT = ("slurm", "tracking", "saving", "run_dir", "runs", "models", "rank_timeout")
"""What decides nothing about a run's numbers."""
SOURCE = re.compile(r"\((paper|released code|library default|our choice|data set|[^()]*(?:arXiv|harness)[^()]*)\)")
OURS = "our choice"
ABSENT = "-"


@dataclass(frozen=True)
class Written:
    """A line of a file of conf/."""

    value: object
    source: str
    comment: str
    where: str


@dataclass(frozen=True)
class Setting:
    """Of all runs of a study; `value` says so where they differ, and `where` what sets it."""

    name: str
    value: str
    source: str
    comment: str
    where: str


def settings_of(cells: Sequence[Cell]) -> list[Setting]:
    flat = [dict(_leaves(asdict(cell.cfg), "")) for cell in cells]
    known: dict[str, list[Written]] = {}
    for path, package in _files(cells[0].overrides):
        for name, line in _lines(path):
            known.setdefault(f"{package}{name}", []).append(line)
    found = []
    for name in dict.fromkeys(name for one in flat for name in one):
        if name.partition(".")[0] in LEFT_OUT or name == "seed":
            continue
        values = [one.get(name, ABSENT) for one in flat]
        if any(value != values[0] for value in values):
            found.append(Setting(name, _by_what(cells, [str(value) for value in values]), "the study", "", "the study"))
            continue
        lines = [one for one in known.get(name, []) if _same(one.value, values[0])]
        if lines:
            found.append(Setting(name, str(values[0]), lines[0].source, lines[0].comment, lines[0].where))
        else:
            found.append(Setting(name, str(values[0]), "the study", "", "the study or its command line"))
    return found


def varying(cells: Sequence[Cell]) -> list[str]:
    """Settings that tell the runs of a study apart, seeds aside: few of them, the one with the most values first."""
    flat = [dict(_leaves(asdict(cell.cfg), "")) for cell in cells]
    every = dict.fromkeys(name for one in flat for name in one)
    values = {name: [str(one.get(name, ABSENT)) for one in flat] for name in every}
    names = [name for name in values if name.partition(".")[0] not in LEFT_OUT and name != "seed"]
    chosen: list[str] = []
    groups = [""] * len(cells)
    for name in sorted(names, key=lambda name: -len(set(values[name]))):
        finer = [f"{group}\x1f{value}" for group, value in zip(groups, values[name], strict=True)]
        if len(set(finer)) > len(set(groups)):
            chosen, groups = [*chosen, name], finer
    return chosen


def _by_what(cells: Sequence[Cell], values: Sequence[str]) -> str:
    """A value of which the runs have several, told by as few of their names as tell it: "gentle: 1; stress: 2", or,
    where one value is the rule, "1e-08, but bare Adam: 0.0"."""
    for kinds in (("regime",), ("arm",), ("model",), ("data",), ("model", "arm"), ("regime", "arm"), ("model", "data")):
        told: dict[str, set[str]] = {}
        for cell, value in zip(cells, values, strict=True):
            told.setdefault(", ".join(getattr(cell, kind) for kind in kinds), set()).add(value)
        if all(len(some) == 1 for some in told.values()):
            one = {name: value for name, (value,) in told.items() if value != ABSENT}
            rule, count = Counter(one.values()).most_common(1)[0]
            if count == len(one) > 1:
                return f"{rule}, where there is this setting"
            if count <= len(one) / 2 or count == len(one):
                return "; ".join(f"{name}: {value}" for name, value in one.items())
            return f"{rule}, but " + "; ".join(f"{name}: {value}" for name, value in one.items() if value != rule)
    return "several: " + ", ".join(dict.fromkeys(values))


def _files(overrides: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """The files that a run's config is made of, with the prefix of their names; those that win first."""
    chosen = choices("train", overrides)
    for group in reversed(list(chosen)):
        path = CONF / group / f"{chosen[group]}.yaml"
        while path.exists():
            text = path.read_text(encoding="utf-8")
            named = re.search(r"^# @package (\S+)", text, re.MULTILINE)
            package = named[1] if named else group
            yield path, "" if package == "_global_" else f"{package}."
            base = [one for one in (yaml.safe_load(text) or {}).get("defaults", []) if isinstance(one, str)]
            path = CONF / group / f"{next((one for one in base if one != '_self_'), '')}.yaml"
    yield CONF / "train.yaml", ""


@cache
def _lines(path: Path) -> tuple[tuple[str, Written], ...]:
    text = path.read_text(encoding="utf-8")
    rows = text.splitlines()
    root = yaml.compose(text)
    found = []
    for name, node in _nodes(root, ""):
        number = node.start_mark.line
        own = rows[number][node.end_mark.column if node.end_mark.line == number else 0 :].partition("#")[2].strip()
        above = rows[number - 1].lstrip("# ") if number and rows[number - 1].startswith("#") else ""
        marked = SOURCE.search(own) or SOURCE.search(above) if not own or SOURCE.search(own) else None
        comment = SOURCE.sub("", own).strip(" :;,") if marked else own
        where = f"{path.relative_to(CONF.parent).as_posix()}:{number + 1}"
        value = yaml.safe_load(text[node.start_mark.index : node.end_mark.index])
        found.append((name, Written(value, marked[1] if marked else OURS, comment, where)))
    return tuple(found)


def _nodes(node: yaml.Node | None, name: str) -> Iterator[tuple[str, yaml.Node]]:
    """Leaves by dotted name, without Hydra's own."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not name and key.value in ("defaults", "hydra"):
                continue
            yield from _nodes(value, f"{name}.{key.value}".removeprefix("."))
    elif node is not None:
        yield name, node


def _leaves(values: Any, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{name}.{key}".removeprefix("."))
    else:
        yield name, list(values) if isinstance(values, tuple) else values


def _same(written: object, value: object) -> bool:
    """Is that what a file says? A reference to another setting is what it refers to."""
    if isinstance(written, str) and written.startswith("${"):
        return True
    if isinstance(written, str) and isinstance(value, float):
        try:
            return float(written) == value  # YAML 1.1 takes 1e-6 for a text
        except ValueError:
            return False
    return written == value

"""Are two run directories the same run? Every file is compared, apart from times, places and what it was made with.

Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TIMES = ("time/", "speed/")
APART = {"run_dir", "seconds", "provenance", "made_with", "checkpoint", "tracker"}
"""Keys of JSON files that say where, when, how fast and with what; in an evaluation's summary `checkpoint` is the path
of what was evaluated (its digest stands in the identity, and is compared)."""


def differences(reference: Path, other: Path) -> Iterator[str]:
    """Every difference, one line each, the telling ones first; nothing where the two are the same run."""
    expected, found = files_of(reference), files_of(other)
    for name in sorted(expected - found):
        yield f"{name} is missing"
    for name in sorted(found - expected):
        yield f"{name} is left behind: the reference has no such file"
    for name in sorted(expected & found, key=lambda name: (not name.endswith("metrics.jsonl"), name)):
        yield from (f"{name}{what}" for what in _differences_of(reference / name, other / name))


def files_of(run_dir: Path) -> set[str]:
    """All files and empty directories, hidden ones too; the lock is expected to stay."""
    found = (path for path in run_dir.rglob("*") if not path.is_dir() or not any(path.iterdir()))
    return {path.relative_to(run_dir).as_posix() for path in found} - {".lock"}


def _differences_of(one: Path, two: Path) -> Iterator[str]:
    if one.name == "metrics.jsonl":
        yield from _of_metrics(one.read_text(), two.read_text())
    elif one.name == "config.yaml":
        if _without_place(one) != _without_place(two):
            yield ": the settings differ"
    elif one.name.endswith(("summary.json", "manifest.json")):
        read = [json.loads(path.read_text()) for path in (one, two)]
        for found in read:
            for own in ("sum", "sha256"):  # of a manifest with its times; of an evaluation, whose bytes are compared
                found.pop(own, None)
        yield from (f": {what}" for what in _of_json(*read))
    elif one.read_bytes() != two.read_bytes():
        yield ": the bytes differ"


def _of_metrics(one: str, two: str) -> Iterator[str]:
    mine, theirs = _lines(one), _lines(two)
    steps, expected = [line.get("step") for line in theirs], [line.get("step") for line in mine]
    if steps != expected:
        yield f": its steps are {steps} instead of {expected}"
        return
    for line, other in zip(mine, theirs, strict=True):
        yield from (f", step {line['step']}: {what}" for what in _of_json(line, other))


def _lines(text: str) -> list[dict[str, Any]]:
    """Without times; a line that is none as {"step": what it begins with}."""
    found = []
    for line in text.split("\n"):
        try:
            read = json.loads(line) if line else {}
        except json.JSONDecodeError:
            read = {"step": f"torn: {line[:30]}"}
        found.append({key: value for key, value in read.items() if not key.startswith(TIMES)})
    return found[:-1] if found[-1] == {} else found


def _of_json(one: Any, two: Any, name: str = "") -> Iterator[str]:
    """Where two values differ, by the path of keys to it."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in dict.fromkeys([*one, *two]):
            if key not in APART or name.startswith("identity"):
                here = f"{name}.{key}" if name else str(key)
                yield from _of_json(one.get(key, "nothing"), two.get(key, "nothing"), here)
    elif one != two:
        yield f"{name} is {two!r}, in the reference {one!r}"


def _without_place(config: Path) -> list[str]:
    return [line for line in config.read_text().splitlines() if not line.startswith("run_dir:")]

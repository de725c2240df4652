"""Rows of a published data set: from a local JSONL or Parquet file, or from the hub. Their meaning: `benchmarks.py`.

Imports the standard library; pyarrow and `datasets` inside the functions that need them. Every error is a PspoError of
one line that names file and line (or row), or the setting to mend.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pspo.config.schema import Benchmark, Part
from pspo.data.tokenizer import first_line
from pspo.errors import ConfigError, PspoError

Row = dict[str, Any]
FORMATS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Source:
    """The rows of a part, each with the place to name when it is at fault. `rows` can be gone through once.

    name      the file, or hub@revision
    sha256    of the file's bytes; None for the hub
    """

    name: str
    sha256: str | None
    rows: Iterator[tuple[str, Row]]


def open_source(cfg: Benchmark, part: Part) -> Source:
    """Where the rows of `part` come from. Raises PspoError where they are missing or cannot be read, at once or while
    `rows` is gone through."""
    if cfg.path is None:
        return Source(f"{cfg.hub}@{cfg.revision or 'newest'}", None, _hub_rows(cfg, split_name(cfg, part)))
    file = local_file(cfg, part)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise PspoError(f"{file}: cannot be read: {error.strerror}") from error
    rows = _parquet_rows(file, content) if file.suffix == ".parquet" else _json_rows(file, content)
    return Source(str(file), hashlib.sha256(content).hexdigest(), rows)


def has_part(cfg: Benchmark, part: Part) -> bool:
    """Does the data set have `part`, and is it at the source?"""
    if part not in cfg.splits:
        return False
    return bool(_local_files(cfg, part)) if cfg.path is not None else cfg.splits[part] in _hub(cfg)


def split_name(cfg: Benchmark, part: Part) -> str:
    """The source's name of the split behind `part`; PspoError where the data set has no such part."""
    if part not in cfg.splits:
        kind = "training" if part == "train" else part
        raise PspoError(f"data={cfg.name} has no {kind} part: data.splits names {', '.join(cfg.splits)} only")
    return cfg.splits[part]


def local_file(cfg: Benchmark, part: Part) -> Path:
    """The one file of `part` in the directory data.path; PspoError where there is none, or more than one."""
    names = " or ".join(split_name(cfg, part) + ending for ending in FORMATS)
    try:
        there = Path(cfg.path or "").expanduser().is_dir()
        found = _local_files(cfg, part)
    except (OSError, RuntimeError) as error:  # a name that is too long, no permission; no such user's home
        shown = cfg.path if len(cfg.path or "") < 200 else f"{(cfg.path or '')[:200]}..."
        raise PspoError(f"data.path={shown}: cannot be looked into: {first_line(error)[:200]}") from error
    if not there:
        raise PspoError(f"data.path={cfg.path}: no such directory; it should have {names}")
    if not found:
        raise PspoError(f"data.path={cfg.path}: there is no {names} in it")
    if len(found) > 1:
        raise PspoError(f"data.path={cfg.path}: which of {names} is meant? Leave one of them")
    return found[0]


def _local_files(cfg: Benchmark, part: Part) -> list[Path]:
    directory = Path(cfg.path or "").expanduser()
    return [file for ending in FORMATS if (file := directory / (cfg.splits[part] + ending)).exists()]


# --- local files -----------------------------------------------------------------------------------------------------


def _json_rows(file: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    try:
        text = content.decode("utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        broken = error.object[: error.start].count(b"\n") + 1
        raise PspoError(f"{file}:{broken}: not valid UTF-8; save the file as UTF-8") from error
    # Not splitlines: a text may hold line separators that are not the line break.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", _object(line, f"{file}:{number}")


def _object(line: str, place: str) -> Row:
    try:
        row = json.loads(line, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        raise PspoError(f"{place}: not a JSON object: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
        raise PspoError(f"{place}: not a JSON object that can be read: {first_line(error)}") from error
    if not isinstance(row, dict):
        raise PspoError(f"{place}: not a JSON object but a {type(row).__name__}")
    return row


def _no_key_twice(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a field stands in it twice")
    return row


def _parquet_rows(file: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(io.BytesIO(content))
        if len(set(table.schema_arrow.names)) < len(table.schema_arrow.names):
            raise ValueError("a column stands in it twice")
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{file} row {number}", row
    # OSError: a damaged page; ValueError: not UTF-8; OverflowError: a time that Python cannot hold
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        where = f"{file}: after row {number}" if number else f"{file}"
        raise PspoError(f"{where}: not a Parquet file that can be read: {first_line(error)}") from error


# --- the hub ---------------------------------------------------------------------------------------------------------


def _hub_rows(cfg: Benchmark, split: str) -> Iterator[tuple[str, Row]]:
    splits = _hub(cfg)
    if split not in splits:
        raise ConfigError("data.splits", cfg.splits, f"{cfg.hub} has {', '.join(splits)}, and no {split}")
    for number, row in enumerate(splits[split], start=1):
        yield f"{cfg.hub} {split} row {number}", dict(row)


def _hub(cfg: Benchmark) -> dict[str, Any]:
    """The splits of the data set as `datasets` has them: on disk, rows are read when asked for."""
    return _hub_splits(cfg.hub, cfg.subset, cfg.revision)


@functools.lru_cache(maxsize=2)
def _hub_splits(hub: str, subset: str | None, revision: str | None) -> dict[str, Any]:
    from datasets import load_dataset

    try:
        return dict(load_dataset(hub, subset, revision=revision))
    except Exception as error:  # datasets, the hub's client and the network each have exceptions of their own
        told = first_line(error)
        raise PspoError(f"data.hub={hub}: {told}; with the files at hand, give their directory as data.path") from error

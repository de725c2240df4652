"""The files of an audit (docs/audit.md): writing audit.html, .jsonl, .csv and .json, and reading the last two again.

    write                           all four; the csv keeps what a person wrote into it
    read_audit                      what an earlier audit found, for the report
    visible, highlighted, spelled   text of a policy, made so that it can neither act in a page nor disguise itself

Looks at no run and grades nothing: the entries come from Item.entry.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pspo.errors import PspoError
from suspicion import CLASSES, Entry, regions

TEMPLATE = Path(__file__).resolve().parent / "audit.html.j2"
FORMAT = 1
"""Of audit.json; another number, where what the report reads of it changes (a class is added, say)."""
TOP = 10
"""Suspects that the report shows."""
MAX_SHOWN = 20_000
"""Characters of a completion in audit.html, from its end; audit.jsonl has all."""


def write(folder: Path, counted: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    """Writes the four files; returns what is in audit.json: `counted`, and what is shown of it."""
    shown = dict(Counter(entry["class"] for entry in entries))
    audit = {"format": FORMAT, **counted, "shown": shown, "top": top(entries)}
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "audit.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    write_csv(folder / "audit.csv", entries)
    page = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    replace(folder / "audit.html", page.render(audit=audit, classes=CLASSES, entries=entries))
    replace(folder / "audit.json", json.dumps(audit, indent=1) + "\n")  # last: it says that the others are whole
    return audit


def top(entries: Sequence[Entry]) -> list[Entry]:
    """The first suspects of every class in turn, so that a class with many does not hide the others."""
    ranks: Counter[str] = Counter()
    ranked = []
    for place, entry in enumerate(entries):
        if entry["class"] != "ordinary":
            ranked.append((ranks[entry["class"]], place))
            ranks[entry["class"]] += 1
    return [entries[place] for place in sorted(place for _, place in sorted(ranked)[:TOP])]


def read_audit(folder: Path) -> dict[str, Any] | None:
    """What audit.json of an earlier audit says; None without one, or where it is damaged or of another version."""
    try:
        found = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and found.get("format") == FORMAT
    parts = {"identity": dict, "date": str, "groups": dict, "totals": dict, "top": list}
    if not (whole and all(isinstance(found.get(name), kind) for name, kind in parts.items())):
        return None
    return found if all(isinstance(found["identity"].get(name), dict) for name in ("files", "settings")) else None


# --- text that cannot disguise itself --------------------------------------------------------------------------------

# Drawn as nothing or as a space, though Unicode does not count them as control or format characters.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_UNUSUAL = re.compile(r"[^\x20-\x7e\n\t]")
_IS_BLANK = re.compile(f"[{_BLANK}]")


def hidden(character: str) -> bool:
    """Control, format (also bidi), unassigned, or a space that is not the usual one; or drawn as nothing."""
    return not character.isprintable() or _IS_BLANK.match(character) is not None


def visible(text: object) -> Markup:
    """Text for a page, escaped, with what cannot be seen written as its code point."""
    return Markup(_spelled(str(escape(str(text))), '<span class="code">U+{:04X}</span>'))


def spelled(text: str) -> str:
    """The same for a plain file."""
    return _spelled(text, "<U+{:04X}>")


def _spelled(text: str, form: str) -> str:
    return _UNUSUAL.sub(lambda m: form.format(ord(m.group())) if hidden(m.group()) else m.group(), text)


def highlighted(entry: Entry) -> Markup:
    """The completion with the answer that counts, the last one marked, in <mark>."""
    text, start, end = entry["text"], 0, 0
    left_out = max(0, len(text) - MAX_SHOWN)
    if found := regions(text, entry["style"])[-1:]:
        start, end = max(0, found[0][0] - left_out), max(0, found[0][1] - left_out)
    text = text[left_out:]
    head = Markup("<i>{} characters before this are left out</i>\n").format(left_out) if left_out else Markup()
    mark = Markup("<mark>{}</mark>").format(visible(text[start:end])) if end > start else Markup()
    return head + visible(text[:start]) + mark + visible(text[end:])


def verdict(value: bool | None) -> str:
    return "unknown" if value is None else "right" if value else "wrong"


def environment() -> jinja2.Environment:
    """Autoescaped: completions are whatever a policy writes."""
    made = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    made.filters |= {"visible": visible, "highlighted": highlighted, "verdict": verdict}
    return made


# --- files -----------------------------------------------------------------------------------------------------------

COLUMNS = (
    "class", "file", "id", "sample", "question", "gold", "answer", "counted", "strict", "lenient", "second_opinion",
    "status", "finished", "text", "person",
)  # fmt: skip
_KEY = ("file", "id", "sample", "gold", "text")
_FORMULA = re.compile(r"[=+\-@\t\r](?![\d.,]*$)")


def cell(value: object) -> str:
    """As a spreadsheet may read it: no control characters, and no formula (an apostrophe before what would be one)."""
    text = spelled("unknown" if value is None else str(value))
    return f"'{text}" if _FORMULA.match(text) else text


def write_csv(path: Path, entries: Sequence[Entry]) -> None:
    """For a person, who fills the column `person`. Verdicts that are there already are kept: in the same row, or, where
    such a row is not shown any more, in the old file under another name."""
    old = _read_csv(path)
    verdicts = {_key(row): row["person"] for row in old if row["person"]}
    rows = [{name: cell(entry[name]) for name in COLUMNS[:-1]} for entry in entries]
    for row in rows:
        row["person"] = verdicts.get(_key(row), "")
    if set(verdicts) - {_key(row) for row in rows}:
        aside = path.with_name(f"audit-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}.csv")
        path.replace(aside)
        print(f"{aside} keeps verdicts on completions that are not shown any more", file=sys.stderr)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    replace(path, text.getvalue())


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name].replace("\r\n", "\n") for name in _KEY)


def _read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier audit.csv; [] without one. Raises PspoError for one that is not ours."""
    if not path.is_file():
        return []
    csv.field_size_limit(sys.maxsize)  # a completion may be longer than the default
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise PspoError(f"{path}: not CSV in UTF-8 ({error}); move it away, so that verdicts in it are kept") from error
    for row in rows:
        if any(row.get(name) is None for name in (*_KEY, "person")):
            needed = ", ".join((*_KEY, "person"))
            raise PspoError(f"{path}: it needs the columns {needed}; move it away, so that verdicts in it are kept")
    return rows


def replace(path: Path, text: str) -> None:
    """Writes a file complete or leaves it as it was. A lone surrogate, which UTF-8 cannot say, is spelled out.

    Not pspo.evaluation's: scipy, which comes with it, takes three times as long to load as all of the audit.
    """
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    aside.replace(path)

"""python experiments/audit.py study=main, or FILES AND RUN DIRECTORIES: graded completions for a person to look at.

    study=main scale=cpu ...     the settings of report.py: every complete run of the study, and what runs start from
    runs/a runs/b/eval/x.jsonl   evaluation files, or run directories that hold some

Where the strict reading, the lenient reading and math-verify alone disagree, one of them is wrong: those completions
come first. Writes audit.html, audit.jsonl, audit.csv and audit.json (docs/audit.md). Changes no grade; never torch.
What is suspicious is in suspicion.py, the writing in auditpage.py; here: which files, reading, choosing, grading again.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml

import auditpage
import pspo.grading
import suspicion
from pspo.config import StudyConfig, compose
from pspo.config.compose import one_line_errors
from pspo.errors import ConfigError, PspoError
from pspo.grading import Grader, Style
from pspo.seeds import derive
from records import read_jsonl
from studies import Cell, cells_of, load_study
from suspicion import CLASSES, Counts, Item, Source, counts_of


@dataclass(frozen=True)
class Settings:
    """limit: completions of a file that get a second opinion; show: items of a class; seed: of both choices."""

    limit: int = 150
    show: int = 40
    seed: int = 0


# --- what to audit ---------------------------------------------------------------------------------------------------


def study_sources(cells: Sequence[Cell]) -> list[Source]:
    """The evaluation files of a study's starting policies and complete runs; none: []. Where the best policy of a run
    is its last, the second of the two files, which are the same, is left out."""
    found: dict[Path, Source] = {}
    for cell in cells:
        if (start := cell.start_evaluation).is_file():
            found.setdefault(start, Source(start, cell.cfg.prompt.style, f"before RL/{cell.model}/{cell.data}"))
    for cell in cells:
        seen: set[str] = set()
        paths = (cell.run_dir / "eval").glob("[!.]*.jsonl") if cell.complete else []
        for path in sorted(paths, key=lambda path: (path.stem != cell.cfg.data.name, path.name)):
            if (content := digest(path)) in seen:
                continue
            seen.add(content)
            which = "" if path.stem == cell.cfg.data.name else f" ({path.stem})"
            group = f"{cell.arm}/{cell.model}/{cell.data}/{cell.regime}{which}"
            found[path] = Source(path, summary_style(path) or cell.cfg.prompt.style, group)
    return list(found.values())


def path_sources(paths: Sequence[Path], style: Style | None) -> list[Source]:
    """The evaluation files of files and directories. Raises PspoError for a path without any, or a style not known."""
    files = dict.fromkeys(file for path in paths for file in _files(path))
    return [Source(file, _style(file, style), str(file)) for file in files]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise PspoError(f"{path}: no such file or run directory; name an eval/*.jsonl or a directory that holds eval/")
    for folder in (path / "eval", path):
        # A run directory has metrics.jsonl, which is no evaluation.
        if files := [file for file in sorted(folder.glob("[!.]*.jsonl")) if file.name != "metrics.jsonl"]:
            return files
    raise PspoError(f"{path}: no evaluation files in it (eval/*.jsonl); evaluate first, or name another directory")


def _style(file: Path, given: Style | None) -> Style:
    """The style that the file was graded in: as its summary says, else as its run's config says, else as given."""
    found = written_style(file) or given
    if found is None:
        needed = f"neither a summary nor a run's config.yaml says how {file} was graded"
        allowed = f"{needed}; give --style {' or '.join(get_args(Style))}"
        raise ConfigError("style", "unknown", allowed)
    return found


def written_style(file: Path) -> Style | None:
    """The summary beside the file comes first: a run may also be evaluated with another prompt than its own."""
    return summary_style(file) or _style_in(file.parent.parent / "config.yaml", ("prompt", "style"))


def summary_style(file: Path) -> Style | None:
    return _style_in(file.with_suffix(".summary.json"), ("identity", "style"))


def _style_in(path: Path, names: Sequence[str]) -> Style | None:
    if not path.is_file():
        return None
    try:
        # JSON as YAML would do, but YAML reads a long summary slowly.
        value: Any = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise PspoError(f"{path}: cannot be read ({' '.join(str(error).split())}); remove or mend it") from error
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return next((style for style in get_args(Style) if value == style), None)


def read_items(source: Source, number: int, seed: int) -> Iterator[Item]:
    """Every completion of a file. Raises PspoError naming file and line of what cannot be read, or an empty file."""
    try:
        lines = read_jsonl(source.path)
    except UnicodeDecodeError as error:
        raise PspoError(f"{source.path}: not UTF-8 ({error.reason} at byte {error.start}); evaluate again") from error
    if not lines:
        raise PspoError(f"{source.path}: no problems in it; evaluate again, or remove the file")
    name = "/".join(source.path.parts[-3:])  # the choice must not depend on where the runs are kept
    for index, line in enumerate(lines):
        try:
            for sample, written in enumerate(line["completions"]):
                if not isinstance(line["id"], str):
                    raise TypeError("an id that is no text")
                counted, finished = bool(written["correct"]), bool(written["finished"])
                yield Item(
                    source=source,
                    place=(number, index, sample),
                    key=derive(seed, "audit", name, line["id"], sample),
                    id=line["id"],
                    question=line.get("question"),
                    gold=str(line["gold"]),
                    text=str(written["text"]),
                    answer=written.get("answer"),
                    counted=counted,
                    right=written.get("right_if_finished", counted if finished else None),
                    lenient=written.get("lenient"),
                    status=str(written["status"]),
                    finished=finished,
                )
        except (KeyError, TypeError, AttributeError) as error:
            what = f"no {error} there" if isinstance(error, KeyError) else "not a record of an evaluation"
            raise PspoError(
                f"{source.path}, line {index + 1}: {what}; evaluate again, or leave the file out"
            ) from error


# --- the audit -------------------------------------------------------------------------------------------------------


def collect(
    sources: Sequence[Source], settings: Settings, grader: Grader
) -> tuple[list[Counts], list[tuple[str, Item]]]:
    """Counts of each file, and the items to show: of each class (an item's first) the `show` with the smallest keys."""
    counts: list[Counts] = []
    kept: dict[str, list[Item]] = {}
    for number, source in enumerate(sources):
        items = list(read_items(source, number, settings.seed))
        looked = heapq.nsmallest(settings.limit, items, key=lambda item: item.key)
        look_at(grader, looked)
        counts.append(counts_of(items))
        for item in items:
            kind = item.classes()[0]
            if kind != "ordinary":
                kept.setdefault(kind, []).append(item)
            elif item.today is not None:
                kept.setdefault(f"ordinary {item.strict}", []).append(item)
        for kind in kept:  # here and not at the end: a study's texts together may not fit in memory
            room = settings.show // 2 if kind.startswith("ordinary") else settings.show
            kept[kind] = heapq.nsmallest(room, kept[kind], key=lambda item: item.key)
    chosen = [(kind.partition(" ")[0], item) for kind, items in kept.items() for item in items]
    # For the reader; their class stays the one under which they were counted.
    look_at(grader, [item for _, item in chosen if item.today is None])
    order = list(CLASSES)
    return counts, sorted(chosen, key=lambda pair: (order.index(pair[0]), pair[1].place))


def look_at(grader: Grader, items: Sequence[Item]) -> None:
    """Adds today's grade and the second opinion."""
    asked = [(item.text, item.gold, item.source.style) for item in items]
    try:
        grades, verdicts = grader.grade(asked), grader.second_opinion(asked)
    except RuntimeError as error:  # no worker starts: math-verify is not installed, or there is no memory
        raise PspoError(str(error)) from error
    for item, grade, verdict in zip(items, grades, verdicts, strict=True):
        item.today, item.second = grade, verdict


def write(folder: Path, title: str, sources: Sequence[Source], settings: Settings, grader: Grader) -> dict[str, Any]:
    """Audits `sources` and writes the four files; returns what is in audit.json."""
    counts, chosen = collect(sources, settings, grader)
    totals, groups = Counts(), {source.group: Counts() for source in sources}
    for source, of_file in zip(sources, counts, strict=True):
        totals.add(of_file)
        groups[source.group].add(of_file)
    entries = [item.entry(kind) for kind, item in chosen]
    counted = {
        "title": title,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "identity": identity(sources, settings),
        "totals": totals.plain(),
        "groups": {name: of_group.plain() for name, of_group in groups.items()},
        "files": {str(source.path): of_file.plain() for source, of_file in zip(sources, counts, strict=True)},
    }
    return auditpage.write(folder, counted, entries)


def identity(sources: Sequence[Source], settings: Settings) -> dict[str, Any]:
    """What decides the outcome: the files, the settings, the grader and this program."""
    ours = [*map(Path, (__file__, suspicion.__file__, auditpage.__file__)), auditpage.TEMPLATE]
    programs = [*Path(pspo.grading.__file__).parent.glob("*.py"), *ours]
    return {
        "settings": asdict(settings),
        "files": digests(sources),
        "program": hashlib.sha256("".join(digest(path) for path in sorted(programs)).encode()).hexdigest()[:16],
    }


def digests(sources: Sequence[Source]) -> dict[str, str]:
    return {str(source.path): digest(source.path) for source in sources}


def digest(path: Path) -> str:
    """Of the content alone: two files of a run that say the same have the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def audit_study(cells: Sequence[Cell], cfg: StudyConfig) -> None:
    """Writes results/<study>/audit.*, unless an audit of the same files is there, with whatever settings."""
    sources = study_sources(cells)
    folder = Path(cfg.results) / cfg.study
    done = auditpage.read_audit(folder)
    settings = Settings(**done["identity"]["settings"]) if done else Settings()
    if sources and (done is None or done["identity"] != identity(sources, settings)):
        with Grader(workers=1) as grader:
            write(folder, f"study {cfg.study}", sources, settings, grader)


def outdated(audit: Mapping[str, Any], cells: Sequence[Cell]) -> int:
    """Evaluation files of the study that are new or others than those that were audited."""
    audited = audit["identity"]["files"]
    return sum(audited.get(path) != found for path, found in digests(study_sources(cells)).items())


# --- the program -----------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"pspo: {message}; --help lists what there is", file=sys.stderr)
        sys.exit(2)


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    default = Settings()
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="settings of a study, or evaluation files and run directories")
    limit = f"completions of a file that are graded again and get math-verify's opinion (default {default.limit})"
    parser.add_argument("--limit", type=count, default=default.limit, help=limit)
    parser.add_argument("--show", type=count, default=default.show, help=f"items of a class (default {default.show})")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the choice of both (default 0)")
    parser.add_argument("--style", choices=get_args(Style), help="how files are graded that do not say it")
    parser.add_argument("--workers", type=count, default=1, help="processes for math-verify (default 1)")
    parser.add_argument("--out", type=Path, help="folder to write to (default results/<study>, or results/audit)")
    return parser.parse_intermixed_args(argv)


def chosen_sources(asked: argparse.Namespace) -> tuple[Path, str, list[Source]]:
    """Where to write, a title, and what to audit."""
    settings = [text for text in asked.what if re.match(r"[+~]*[\w.]+=", text) and not Path(text).exists()]
    paths = [Path(text) for text in asked.what if text not in settings]
    if not settings:
        title = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        return asked.out or Path("results/audit"), title, path_sources(paths, asked.style)
    if paths:
        raise PspoError(f"either settings of a study ({settings[0]}) or files ({paths[0]}), not both")
    cfg = compose("study", StudyConfig, settings)
    sources = study_sources(cells_of(load_study(cfg.study), cfg))
    if not sources:
        run = f"make reproduce STUDY={cfg.study}"
        raise PspoError(f"study {cfg.study}: nothing is evaluated in {cfg.runs} at scale={cfg.scale}; {run} does it")
    return asked.out or Path(cfg.results) / cfg.study, f"study {cfg.study}", sources


def report(audit: Mapping[str, Any]) -> Iterable[str]:
    """What is printed: one line a class."""
    totals = audit["totals"]
    looked = f"{totals['looked_at']} graded again and asked of math-verify alone"
    drawn = f"drawn with seed {audit['identity']['settings']['seed']}"
    yield f"{audit['title']}: {totals['completions']} completions in {len(audit['files'])} files; {looked}, {drawn}"
    for name, about in CLASSES.items():
        of = totals["looked_at"] if about.sampled else totals["completions"]
        yield f"  {about.title}: {totals['classes'][name]} of {of}, shown {audit['shown'].get(name, 0)}"


def main(argv: Sequence[str] | None = None) -> None:
    asked = parse(argv)
    with one_line_errors():
        folder, title, sources = chosen_sources(asked)
        with Grader(workers=asked.workers) as grader:
            audit = write(folder, title, sources, Settings(asked.limit, asked.show, asked.seed), grader)
        print(*report(audit), folder / "audit.html", sep="\n")


if __name__ == "__main__":
    main()

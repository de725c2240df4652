"""The audit of hand-written completions, graded by the real grader, in run directories of the real format."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import audit
import auditpage
import report
import reproduce
from pspo.config import StudyConfig
from pspo.errors import PspoError
from pspo.grading import Grader, Style
from studies import Cell, load_study
from suspicion import CLASSES, PERCENT, regions, restates

ROOT = Path(__file__).resolve().parents[2]
STUDY = load_study("smoke")
BIDI = "\u202e"  # what follows is drawn from right to left
HOSTILE = f"</pre><script>alert(1)</script> 2+2=4 {BIDI}gpj.\u200b\n#### 4"

# name -> (completion, gold, what the audit must make of it); a class first, then the others that it fits.
GSM8K = {
    "fine": ("2+2=4.\n#### 4", "4", ["ordinary"]),
    "plainly wrong": ("2+2=5.\n#### 5", "4", ["ordinary"]),
    "million": ("1+2=3.\n#### 3 million", "3000000", ["false_accept"]),
    "percent": ("4/10 of it.\n#### 40%", "0.4", ["false_reject"]),
    "no mark": ("2+2=4. The answer is 4.", "4", ["format_missed"]),
    "no gold": ("2+2=4.\n#### 4", "four", ["not_graded"]),
    "cut": ("2+2=4.\n#### 4", "4", ["cut_off"]),
    "cut and wrong": ("2+2=5.\n#### 5", "4", ["ordinary"]),
    "many": ("2+2.\n#### 3\n#### 5\n#### 4", "4", ["format_trick"]),
    "bare": ("#### 4", "4", ["format_trick"]),
    "old": ("2+2=4.\n#### 4", "4", ["regraded", "false_reject"]),
}
MATH = {
    "boxed": (r"x+x=2x, so \boxed{2x}.", "2x", ["ordinary"]),
    "percent": (r"40 of 100: \boxed{40\%}.", "40", ["false_accept"]),
    "rounded": (r"1/3 is \boxed{0.333333}.", r"\frac13", ["false_reject"]),
    "repeats": (r"1+1=2: \boxed{2}, I mean \boxed{2}.", "2", ["format_trick"]),
    "2(x+1)": (r"As 2 times x+1 it is \boxed{2(x+1)}.", "2x+2", ["restated"]),  # the name is in the question
}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as one:
        yield one


def record(grader: Grader, name: str, text: str, gold: str, style: Style, finished: bool = True) -> dict[str, Any]:
    """A line as pspo.evaluation writes it."""
    [grade] = grader.grade([(text, gold, style)])
    fields = asdict(grade) | {"right_if_finished": grade.correct}
    if not finished:
        fields |= {"correct": False, "lenient": False}
    written = {"text": text, **fields, "tokens": 9, "finished": finished}
    return {
        "id": name, "level": "1", "subject": "", "prompt_hash": "abc", "question": f"Question {name}?", "gold": gold,
        **{key: written[key] for key in ("correct", "status", "tokens")}, "completions": [written],
    }  # fmt: skip


def records(grader: Grader, cases: dict[str, tuple[str, str, list[str]]], style: Style) -> list[dict[str, Any]]:
    lines = [
        record(grader, name, text, gold, style, finished=not name.startswith("cut"))
        for name, (text, gold, _) in cases.items()
    ]
    for line in lines:
        if line["id"] == "old":  # as a grader would have it that read nothing
            nothing = {"correct": False, "answer": None, "status": "no_answer", "lenient": False}
            line["completions"][0] |= nothing | {"right_if_finished": False}
            line |= {"correct": False, "status": "no_answer"}
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_run(folder: Path, lines: list[dict[str, Any]], style: Style) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"prompt:\n  style: {style}\n")
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    write_lines(folder / "eval" / "benchmark.jsonl", lines)
    return folder


def audited(grader: Grader, *arguments: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The program with a grader that is there already; the last argument is its --out. audit.json and audit.jsonl."""
    asked = audit.parse([*map(str, arguments[:-1]), "--out", str(arguments[-1])])
    folder, title, sources = audit.chosen_sources(asked)
    audit.write(folder, title, sources, audit.Settings(asked.limit, asked.show, asked.seed), grader)
    lines = (folder / "audit.jsonl").read_text().splitlines()
    return json.loads((folder / "audit.json").read_text()), [json.loads(line) for line in lines]


class Page(HTMLParser):
    """The elements, and the text of each article and of each <mark>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.articles: list[str] = []
        self.marks: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "article":
            self.articles.append("")
        if tag == "mark":
            self.marks.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "article" in self.open:
            self.articles[-1] += data
        if "mark" in self.open:
            self.marks[-1] += data


def test_every_class_by_hand(grader: Grader, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "words", records(grader, GSM8K, "gsm8k"), "gsm8k"),
        write_run(tmp_path / "boxes", records(grader, MATH, "math"), "math"),
    ]
    found, entries = audited(grader, *runs, tmp_path / "out")
    expected = {("words", name): classes for name, (_, _, classes) in GSM8K.items()}
    expected |= {("boxes", name): classes for name, (_, _, classes) in MATH.items()}
    made = {
        (Path(entry["file"]).parts[-3], entry["id"]): [entry["class"], *entry["also"]]
        for entry in entries
    }  # fmt: skip
    assert made == expected
    assert {entry["class"] for entry in entries} == set(CLASSES)  # each has a case

    order = [list(CLASSES).index(entry["class"]) for entry in entries]
    assert order == sorted(order)
    of_words, of_boxes = found["files"].values()
    assert found["totals"]["completions"] == found["totals"]["looked_at"] == len(expected)
    assert (of_words["right"], of_boxes["right"]) == (4, 4)
    assert of_words["no_opinion"] == 1  # the gold that cannot be read
    assert of_words["classes"] == {
        "regraded": 1, "not_graded": 1, "false_accept": 1, "false_reject": 2, "format_missed": 1, "cut_off": 1,
        "restated": 0, "format_trick": 2, "ordinary": 3,
    }  # fmt: skip
    assert sum(found["shown"].values()) == len(entries)

    by_name = {(Path(entry["file"]).parts[-3], entry["id"]): entry for entry in entries}
    assert by_name["boxes", "percent"]["notes"] == [PERCENT]
    assert by_name["words", "million"]["notes"] == []
    assert by_name["words", "many"]["notes"] == ["3 different answers are marked: 3, 5, 4; the last one counts"]
    assert by_name["boxes", "repeats"]["notes"] == ["the same answer is marked 2 times"]
    assert by_name["words", "old"]["notes"] == [
        "today right is True, in the file False",
        "today answer is '4', in the file None",
        "today status is 'ok', in the file 'no_answer'",
        "today lenient is True, in the file False",
    ]
    # The report's ten have one of each class before a second of any.
    assert len(found["top"]) == 10 and len({entry["class"] for entry in found["top"]}) == len(CLASSES) - 1


def test_what_a_file_lacks_is_unknown(grader: Grader, tmp_path: Path) -> None:
    lines = records(grader, {name: GSM8K[name] for name in ("fine", "cut")}, "gsm8k")
    for line in lines:
        del line["question"], line["completions"][0]["right_if_finished"], line["completions"][0]["tokens"]
    _, entries = audited(grader, write_run(tmp_path / "run", lines, "gsm8k"), tmp_path / "out")
    assert [(entry["id"], entry["class"], entry["strict"]) for entry in entries] == [
        ("cut", "cut_off", True),  # as today's grader says
        ("fine", "ordinary", True),
    ]
    assert "unknown" in Page(tmp_path / "out" / "audit.html").articles[0]


@pytest.mark.parametrize(
    ("text", "style", "found"),
    [
        ("no mark", "gsm8k", []),
        ("#### 42, wait, #### 41\nand more", "gsm8k", ["#### 42, wait, ", "#### 41"]),
        ("####\n\n 7 \nmore", "gsm8k", ["####\n\n 7"]),
        ("####", "gsm8k", ["####"]),
        ("##### 5", "gsm8k", ["##### 5"]),
        (r"a \boxed{\frac{1}{2}} b \boxed 3.", "math", [r"\boxed{\frac{1}{2}}", r"\boxed 3"]),
        (r"\boxed{b} \fboxed{", "math", [r"\boxed{b}", r"\fboxed"]),
        (r"\boxedness", "math", []),
    ],
)
def test_the_answer_that_is_highlighted(text: str, style: Style, found: list[str]) -> None:
    assert [text[start:end].strip() for start, end, _ in regions(text, style)] == [one.strip() for one in found]


def test_hostile_text_stays_text(grader: Grader, tmp_path: Path) -> None:
    name = f"<img src=x onerror=alert(1)>{BIDI}"
    lines = [
        record(grader, name, HOSTILE, "4", "gsm8k"),
        record(grader, "lone", "\ud800 2+2=4 \x1b[31m\n#### 4", "4", "gsm8k"),
        record(grader, "formula", "=HYPERLINK(1+1)\n#### 5", "4", "gsm8k"),
    ]
    audited(grader, write_run(tmp_path / "run", lines, "gsm8k"), tmp_path / "out")
    html = (tmp_path / "out" / "audit.html").read_text()
    made = Page(tmp_path / "out" / "audit.html")
    assert [tag for tag, _ in made.tags].count("script") == 1  # its own
    assert not {"img", "link", "iframe"} & {tag for tag, _ in made.tags}
    assert not [attrs for _, attrs in made.tags if "src" in attrs or "href" in attrs or "onerror" in attrs]
    assert not {BIDI, "\u200b", "\x1b", "\ud800"} & set(html)
    [hostile] = [text for text in made.articles if "<script>alert(1)</script>" in text]
    assert "U+202Egpj.U+200B" in hostile and "<img src=x" in hostile
    assert any("U+D800 2+2=4 U+001B[31m" in text for text in made.articles)
    assert "#### 4" in made.marks
    assert all(attrs.get("dir") == "auto" for tag, attrs in made.tags if tag == "pre")

    with (tmp_path / "out" / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["person"] for row in rows} == {""}
    assert any("<U+202E>gpj.<U+200B>" in row["text"] for row in rows)
    assert [row["text"] for row in rows if row["id"] == "formula"] == ["'=HYPERLINK(1+1)\n#### 5"]


@pytest.mark.parametrize(("text", "safe"), [("-3", "-3"), ("+1.5", "+1.5"), ("-x", "'-x"), ("@A1", "'@A1"), ("4", "4")])
def test_a_spreadsheet_gets_no_formula(text: str, safe: str) -> None:
    assert auditpage.cell(text) == safe


def test_a_very_long_text_is_cut_on_the_page_alone(grader: Grader, tmp_path: Path) -> None:
    text = "first " + "1+1=2. " * 20_000 + "\n#### 4"
    run = write_run(tmp_path / "run", [record(grader, "long", text, "4", "gsm8k")], "gsm8k")
    _, [entry] = audited(grader, run, tmp_path / "out")
    assert entry["text"] == text
    made = Page(tmp_path / "out" / "audit.html")
    assert f"{len(text) - auditpage.MAX_SHOWN} characters before this are left out" in made.articles[0]
    assert made.marks[-1] == "#### 4" and len(made.articles[0]) < 1.1 * auditpage.MAX_SHOWN


def test_the_choice_is_seeded_and_told(grader: Grader, tmp_path: Path) -> None:
    cases = {f"p{i}": (f"{i}+1={i + 1}.\n#### {i + 1}", str(i + 1), ["ordinary"]) for i in range(40)}
    cases |= {f"m{i}": (f"{i}+1={i + 1}.\nThe answer is {i + 1}", str(i + 1), ["format_missed"]) for i in range(20)}
    run = write_run(tmp_path / "run", records(grader, cases, "gsm8k"), "gsm8k")

    def chosen(name: str, *options: object) -> list[str]:
        found, entries = audited(grader, run, "--limit", 20, "--show", 10, *options, tmp_path / name)
        assert (found["totals"]["completions"], found["totals"]["looked_at"]) == (60, 20)
        assert found["totals"]["classes"]["format_missed"] == 20  # of all, looked at or not
        assert 0 < found["totals"]["classes"]["ordinary"] <= 20
        assert found["shown"] == {"format_missed": 10, "ordinary": 5}
        assert all(entry["second_opinion"] == "equal" for entry in entries)
        return [entry["id"] for entry in entries]

    first = chosen("a")
    assert chosen("b") == first
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere" / "run")
    _, entries = audited(grader, elsewhere, "--limit", 20, "--show", 10, tmp_path / "c")
    assert [entry["id"] for entry in entries] == first
    assert chosen("d", "--seed", 1) != first
    assert "20 in all, were drawn at random (seed\n0)" in (tmp_path / "a" / "audit.html").read_text()


def test_a_persons_verdicts_are_kept(grader: Grader, tmp_path: Path) -> None:
    lines = records(grader, {name: GSM8K[name] for name in ("fine", "percent", "bare")}, "gsm8k")
    run, out = write_run(tmp_path / "run", lines, "gsm8k"), tmp_path / "out"
    audited(grader, run, out)
    with (out / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["person"] = f"says {row['id']}"
    with (out / "audit.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)

    def persons(path: Path) -> dict[str, str]:
        with path.open(newline="") as file:
            return {row["id"]: row["person"] for row in csv.DictReader(file)}

    audited(grader, run, out)
    assert persons(out / "audit.csv") == {name: f"says {name}" for name in ("fine", "percent", "bare")}
    assert not list(out.glob("audit-*.csv"))
    write_lines(run / "eval" / "benchmark.jsonl", lines[:2])
    audited(grader, run, out)
    assert persons(out / "audit.csv") == {"fine": "says fine", "percent": "says percent"}
    [aside] = out.glob("audit-*.csv")
    assert persons(aside)["bare"] == "says bare"


def test_the_style_comes_from_the_summary_then_the_run_then_the_option(grader: Grader, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records(grader, MATH, "math"), "gsm8k")  # trained in another style
    file = run / "eval" / "benchmark.jsonl"
    assert audit.path_sources([run], None)[0].style == "gsm8k"
    file.with_suffix(".summary.json").write_text(json.dumps({"identity": {"style": "math"}}))
    assert audit.path_sources([run], None)[0].style == "math"
    alone = write_lines(tmp_path / "alone.jsonl", records(grader, MATH, "math"))
    assert audit.path_sources([alone], "math")[0].style == "math"
    with pytest.raises(PspoError, match="give --style gsm8k or math"):
        audit.path_sources([alone], None)


def finish(cells: list[Cell], lines: list[dict[str, Any]]) -> None:
    """Complete runs, and what they start from, evaluated on the same problems."""
    for cell in cells:
        for which in ("", ".best"):
            write_lines(cell.run_dir / "eval" / f"{cell.cfg.data.name}{which}.jsonl", lines)
        steps = [{"step": step, "eval/validation_accuracy": 0.5} for step in range(cell.cfg.steps + 1)]
        write_lines(cell.run_dir / "metrics.jsonl", steps)
        made_with = {"provenance": {"commit": "abc", "packages": "torch 2", "machine": "two cores"}}
        (cell.run_dir / "summary.json").write_text(json.dumps(made_with))
        (cell.run_dir / "DONE").touch()
    write_lines(cells[0].start_evaluation, lines)


def test_a_report_without_an_audit_says_how_to_make_one(
    smoke: tuple[StudyConfig, list[Cell]], grader: Grader, tmp_path: Path
) -> None:
    cfg, cells = smoke
    finish(cells, records(grader, GSM8K, "gsm8k"))
    report.rebuild(STUDY, cells, cfg)
    folder = Path(cfg.results) / "smoke"
    html = (folder / "report.html").read_text()
    assert "Audit of the grader" in html and "python experiments/audit.py study=smoke scale=cpu" in html
    assert 'href="audit.html"' not in html
    (folder / "audit.json").write_text('{"format": 0}')  # of another version: as if there were none
    (folder / "figures" / ".reward.svg.123").touch()  # of a process that was killed
    report.rebuild(STUDY, cells, cfg)
    assert 'href="audit.html"' not in (folder / "report.html").read_text()
    assert not list((folder / "figures").glob(".*"))


def test_an_audit_that_lacks_something_is_none(tmp_path: Path) -> None:
    whole = {
        "format": auditpage.FORMAT,
        "identity": {"files": {}, "settings": {}},
        "date": "",
        "groups": {},
        "totals": {},
    }
    (tmp_path / "audit.json").write_text(json.dumps(whole | {"top": []}))
    assert auditpage.read_audit(tmp_path) is not None
    for damaged in (json.dumps(whole), json.dumps(whole | {"top": [], "identity": {"files": 1}}), "[" * 100_000):
        (tmp_path / "audit.json").write_text(damaged)
        assert auditpage.read_audit(tmp_path) is None


def test_a_study_is_audited_before_its_report(smoke: tuple[StudyConfig, list[Cell]], grader: Grader) -> None:
    cfg, cells = smoke
    lines = records(grader, GSM8K, "gsm8k")
    lines.append(record(grader, "hostile", HOSTILE + "\n#### 4", "4", "gsm8k"))
    finish(cells, lines)
    folder = Path(cfg.results) / "smoke"
    reproduce.audit_grades(cells, cfg)
    found = json.loads((folder / "audit.json").read_text())
    place = "tiny/wordproblems"
    assert list(found["groups"]) == [f"before RL/{place}", f"no_clip/{place}/gentle", f"pspo/{place}/gentle"]
    # The seeds of an arm together; a best checkpoint that is the last one is not counted again.
    assert found["groups"][f"pspo/{place}/gentle"]["completions"] == 2 * len(lines)
    assert len(found["files"]) == 1 + len(cells)

    report.rebuild(STUDY, cells, cfg)
    html = (folder / "report.html").read_text()
    assert 'href="audit.html"' in html and "false-accept suspect" in html and "3 million" in html
    assert html.count("<script") == 1 and "alert(1)</script>" not in html and "are new or others" not in html

    written = (folder / "audit.html").stat().st_mtime_ns
    reproduce.audit_grades(cells, cfg)  # nothing is new
    assert (folder / "audit.html").stat().st_mtime_ns == written
    write_lines(cells[0].run_dir / "eval" / "wordproblems.jsonl", lines[:-1])
    write_lines(cells[0].run_dir / "eval" / "wordproblems.best.jsonl", lines[:-1])
    assert audit.outdated(found, cells) == 1
    reproduce.audit_grades(cells, cfg)
    again = json.loads((folder / "audit.json").read_text())
    assert again["totals"]["completions"] == found["totals"]["completions"] - 1

    # The same from the command line, whose settings are those of report.py.
    places = [f"{name}={getattr(cfg, name)}" for name in ("results", "runs", "models")]
    settings = ["study=smoke", "scale=cpu", "rollout=hf", *places]
    assert audit.chosen_sources(audit.parse(settings))[0] == folder
    told, _ = audited(grader, *settings, folder / "elsewhere")
    assert (told["title"], told["totals"]) == ("study smoke", again["totals"])
    assert next(iter(audit.report(told))).startswith(f"study smoke: {5 * len(lines) - 1} completions in 5 files; ")


def test_what_cannot_be_audited_does_not_stop_the_report(
    smoke: tuple[StudyConfig, list[Cell]], grader: Grader, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, cells = smoke
    finish(cells, records(grader, GSM8K, "gsm8k"))
    (cells[0].run_dir / "eval" / "other.jsonl").write_text("{not json\n")
    reproduce.audit_grades(cells, cfg)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("no audit of the grader: ") and "other.jsonl, line 1: not JSON" in line


@pytest.mark.parametrize(
    ("arguments", "complaint", "status"),
    [
        (["study=mian"], "study=mian: must be one of ahead, alpha, confirm, controls, edge, epsilon", 2),
        (["study=smoke", "runs=nowhere", "models=nowhere"], "study smoke: nothing is evaluated in nowhere", 1),
        (["study=smoke", "gone"], "either settings of a study (study=smoke) or files (gone), not both", 1),
        (["gone"], "gone: no such file or run directory", 1),
        (["hollow"], "hollow: no evaluation files in it", 1),
        (["empty.jsonl", "--style", "math"], "empty.jsonl: no problems in it", 1),
        (["broken.jsonl", "--style", "math"], "broken.jsonl, line 1: no 'completions' there", 1),
        (["list.jsonl", "--style", "math"], "list.jsonl, line 1: not a record of an evaluation", 1),
        (["bytes.jsonl", "--style", "math"], "bytes.jsonl: not UTF-8", 1),
        (["empty.jsonl"], "style=unknown: neither a summary nor a run's config.yaml", 2),
        (["empty.jsonl", "--limit", "0"], "argument --limit: invalid count value: '0'", 2),
        ([], "the following arguments are required: what", 2),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    arguments: list[str],
    complaint: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hollow").mkdir()
    for name, content in (("empty", b""), ("broken", b"{}\n"), ("list", b"[]\n"), ("bytes", b"\xff\n")):
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        audit.main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert complaint in line and ended.value.code == status
    assert not (tmp_path / "results").exists()


def test_the_program_needs_no_torch(grader: Grader, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records(grader, MATH, "math"), "math")
    script = (
        "import sys; sys.path.insert(0, 'experiments'); import audit; audit.main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'sympy', 'math_verify', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-c", script, str(run), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "audit.html")
    assert "false-accept suspect: 1 of 5, shown 1" in done.stdout


@pytest.mark.parametrize(
    ("question", "answer", "gold", "expected"),
    [
        (r"What is $\cos 60^\circ$?", r"\cos 60^\circ", r"\frac{1}{2}", True),
        (r"Factor $30x^3 - 8x^2$.", "30x^3-8x^2", "2x^2(15x-4)", True),
        (r"What is $\cos 60^\circ$?", r"\frac12", r"\frac{1}{2}", False),
        ("Which of 48 and 24 is larger?", "48", "48", False),
        (None, "48", "24", False),
        ("How many?", None, "24", False),
    ],
)
def test_what_restates_the_question(question: str | None, answer: str | None, gold: str, expected: bool) -> None:
    assert restates(question, answer, gold) is expected

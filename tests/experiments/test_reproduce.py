"""What reproduce.py decides to run, and what it does where it cannot. No model runs here."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import changes
import reproduce
from benchmarking import benchmark_tasks
from driver import Task
from jobs.ledger import Ledger
from jobs.verdicts import judge
from progress import Progress, last_metrics
from pspo.config import EvalConfig, SftConfig, StudyConfig, TrainConfig, compose, run_dir_of, warm_start_dir
from pspo.errors import BusyError, PspoError
from studies import Cell, cells_of, load_study

ROOT = Path(__file__).resolve().parents[2]


def finish(cells: list[Cell]) -> None:
    for cell in cells:
        cell.run_dir.mkdir(parents=True)
        (cell.run_dir / "DONE").touch()


def start_is_there(cell: Cell, problems: int) -> None:
    cell.start_evaluation.parent.mkdir(parents=True, exist_ok=True)
    cell.start_evaluation.write_text("{}\n" * problems)
    (cell.start_dir / "DONE").touch()


def test_the_commands_are_those_that_make_what_is_missing(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    for cell in cells:
        task = reproduce.cell_task(cell, cfg)
        assert Path(task.command[1]).name == "worker.py" and task.job is not None
        assert run_dir_of(compose("train", TrainConfig, task.job["overrides"])) / "DONE" == task.product
        assert task.environment == {"OMP_NUM_THREADS": "1"}

    [start] = reproduce.start_tasks(cells, cfg)  # one for all cells
    assert start.command[1:3] == ("-m", "pspo.sft")
    made = compose("sft", SftConfig, start.command[3:])
    assert warm_start_dir(made) / "DONE" == start.product and made.sft.steps == cells[0].cfg.sft.steps

    [evaluation] = reproduce.evaluation_tasks(cells, cfg)
    asked = compose("eval", EvalConfig, evaluation.command[2:])
    assert (asked.checkpoint, asked.out) == (str(cells[0].start_dir), str(evaluation.product))
    assert (asked.data, asked.prompt, asked.eval.max_new_tokens) == (cells[0].cfg.data, cells[0].cfg.prompt, 64)


def test_what_the_cells_start_from_is_evaluated_once_for_each_protocol(
    smoke: tuple[StudyConfig, list[Cell]], study_config: Callable[..., StudyConfig]
) -> None:
    cfg, cells = smoke
    start_is_there(cells[0], problems=16)
    assert reproduce.start_tasks(cells, cfg) == []
    assert reproduce.evaluation_tasks(cells, cfg) == []
    shorter = study_config("overrides=['eval.max_new_tokens=32','prompt.template=\\'Q: {question}\\'']")
    [task] = reproduce.evaluation_tasks(cells_of(load_study("smoke"), shorter), shorter)
    asked = compose("eval", EvalConfig, task.command[2:])
    assert (asked.eval.max_new_tokens, asked.prompt.template) == (32, "Q: {question}")


def test_a_published_model_is_evaluated_as_it_is(paper: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = paper
    assert reproduce.start_tasks(cells, cfg) == []
    tasks = reproduce.evaluation_tasks(cells, cfg)
    asked = [compose("eval", EvalConfig, task.command[2:]) for task in tasks]
    assert len(asked) == 3 * 2
    assert {one.checkpoint for one in asked} == {
        "Qwen/Qwen2-Math-1.5B", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B",
    }  # fmt: skip
    assert {(one.benchmark, one.prompt.style) for one in asked} == {("gsm8k", "gsm8k"), ("math", "math")}
    assert all(one.device == "cuda" and one.threads is None for one in asked)


def test_only_what_is_missing_runs(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The cells' command is replaced by one that only marks the run as done: which ones start is what is tested."""
    cfg, cells = smoke
    start_is_there(cells[0], problems=16)
    finish(cells[:3])
    ran: list[str] = []

    def marking(cell: Cell, cfg: StudyConfig) -> Task:
        ran.append(cell.name)
        product = cell.run_dir / "DONE"
        command = (sys.executable, "-c", f"open({str(product)!r}, 'w')")
        return Task(cell.name, command, Path(cfg.runs) / "logs" / "one.log", product)

    monkeypatch.setattr(reproduce, "cell_task", marking)
    assert reproduce.run_missing(cells, cfg) == []
    assert ran == [cells[3].name] and cells[3].complete
    assert reproduce.run_missing(cells, cfg) == []
    assert ran == [cells[3].name]
    assert "nothing to run: all 4 runs of study smoke complete" in capfd.readouterr().err


def command(cfg: StudyConfig, *overrides: str) -> list[str]:
    places = [f"{name}={getattr(cfg, name)}" for name in ("results", "runs", "models")]
    program = str(ROOT / "experiments" / "reproduce.py")
    return [sys.executable, program, "study=smoke", "scale=cpu", "rollout=hf", *places, *overrides]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("study=mian", "wrong setting: study=mian: must be one of ahead, alpha, confirm, controls, edge, epsilon"),
        ("scale=paper", "wrong setting: scale=paper: study smoke has cpu"),
        ("cell=4", "wrong setting: cell=4: study smoke has cells 0 to 3 at scale=cpu"),
        ("overrides=['learner.passes=0']", "wrong setting: learner.passes=0"),
        ("launcher=slurm", "launcher=slurm needs sbatch"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    override: str, complaint: str, smoke: tuple[StudyConfig, list[Cell]], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        command(smoke[0], override),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path / "bin")},
    )
    assert done.returncode != 0
    assert complaint in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_one_driver_at_a_time(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    path = Path(smoke[0].runs) / ".study-smoke.lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for patience in (0, 1.0):
            held = pytest.raises(BusyError, match="another process runs this study")
            with held as raised, reproduce.alone(path, patience):
                pass
            assert judge(raised.value.status, [f"pspo: {raised.value}"]).kind == "again"  # of a job
    with reproduce.alone(path, 0):
        pass


def test_a_job_that_makes_tables_waits_for_one_that_submits(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    path = Path(smoke[0].runs) / ".study-smoke.lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tables = subprocess.Popen(command(smoke[0], "only=tables"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            assert tables.stderr is not None
            assert f"{path} is held by another process" in tables.stderr.readline()
            assert tables.poll() is None
        finally:
            tables.kill()
            tables.communicate()


def test_an_edited_study_is_told_and_its_old_runs_stay(
    smoke: tuple[StudyConfig, list[Cell]], study_config: Callable[..., StudyConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    cfg, cells = smoke
    changes.tell(cfg, cells)
    changes.tell(cfg, cells)
    assert capfd.readouterr().err == ""  # nothing was there, then nothing changed
    finish(cells[:1])
    edited = study_config("overrides=['steps=3']")
    changes.tell(edited, others := cells_of(load_study("smoke"), edited))
    assert capfd.readouterr().err.splitlines() == [
        f"study smoke is not what it was when it was last run in {cfg.runs}:",
        f"  4 new: {', '.join(cell.name for cell in others)}",
        f"  1 belong to it no more, and stay in {cfg.runs}: {cells[0].run_dir.name}",
    ]
    changes.tell(edited, others[:3])
    assert "1 that had not begun belong to it no more" in capfd.readouterr().err
    assert cells[0].complete


def test_a_job_runs_the_run_that_was_submitted_or_none(
    smoke: tuple[StudyConfig, list[Cell]], study_config: Callable[..., StudyConfig]
) -> None:
    """A study may be edited while its jobs wait: a number then means another cell."""
    cfg, cells = smoke
    ledger = Ledger(cfg.runs, "smoke", "cpu")
    token = ledger.open([cell.run_dir.name for cell in reversed(cells)] + ["clip-gentle-s0-0123456789"]).token
    job = study_config("cell=0", f"submission={token}")
    assert reproduce.one_cell(cells, job) is cells[3]
    assert reproduce.one_cell(cells, study_config("cell=0")) is cells[0]
    with pytest.raises(PspoError, match="was changed since this job was submitted and has no run clip-gentle-s0-01"):
        reproduce.one_cell(cells, study_config("cell=4", f"submission={token}"))


def test_benchmarks_are_of_complete_runs_last_and_best_under_their_own_protocol(
    smoke: tuple[StudyConfig, list[Cell]],
) -> None:
    cfg, cells = smoke
    study = load_study("smoke")
    study.scales["cpu"].benchmarks["four"] = ("benchmark=wordproblems", "data.levels=[4]", "limit=6")
    assert benchmark_tasks(cells, study, cfg) == []
    assert len(benchmark_tasks(cells, study, cfg, whether_complete=True)) == 4
    finish(cells[:2])
    for cell, best in zip(cells[:2], (1, 2), strict=True):
        (cell.run_dir / "summary.json").write_text(json.dumps({"best_step": best}))
    tasks = benchmark_tasks(cells, study, cfg)
    asked = [compose("eval", EvalConfig, task.command[2:]) for task in tasks]
    places = [Path(one.checkpoint).relative_to(cfg.runs).as_posix() for one in asked]
    steps = [f"{cells[k].run_dir.name}/checkpoints/step-{step}" for k, step in ((0, 2), (0, 1), (1, 2))]
    assert places == steps  # the second run's best is its last
    for one, task in zip(asked, tasks, strict=True):
        assert (one.limit, one.data.levels, one.model, one.rollout.engine) == (6, (4,), cells[0].cfg.model, "hf")
        assert one.out is not None and Path(one.out).with_suffix(".summary.json") == task.product
    tasks[0].product.parent.mkdir()
    tasks[0].product.touch()
    assert [task.name for task in benchmark_tasks(cells, study, cfg)] == [task.name for task in tasks[1:]]
    study.scales["cpu"].benchmarks["four"] = ("benchmark=wordproblems", "data.levels=[4]", "limit=7")
    assert len(benchmark_tasks(cells, study, cfg)) == 3  # asked another question, it has other files
    (cells[0].run_dir / "summary.json").write_text(json.dumps({"best_step": "x"}))
    with pytest.raises(PspoError, match=r"summary\.json: best_step is not a step"):
        benchmark_tasks(cells, study, cfg)


def test_a_terminal_shows_what_runs_and_how_far_it_is(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 3, "eval/validation_accuracy": 0.625}\n')
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(total=4, done=1, at_once=2, console=console) as view:
        view.started(Task("clip/s0", (), tmp_path / "log", tmp_path / "DONE", metrics=metrics, steps=40))
        view.tick()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "clip/s0" in shown and "3/40" in shown and "62.5%" in shown and "1 of 4" in shown


def test_progress_reads_a_file_that_is_being_written(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    task = Task("t", (), tmp_path / "log", tmp_path / "DONE", metrics=metrics, steps=3)
    assert last_metrics(task) == {}
    lines = [{"step": 0, "eval/validation_accuracy": 0.5}, {"step": 1, "reward/mean": None, "accuracy/train": 0.4}]
    metrics.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 2, "rew')
    assert last_metrics(task) == {"step": 1, "accuracy/train": 0.4, "eval/validation_accuracy": 0.5}

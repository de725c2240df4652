"""Jobs on a real cluster of two nodes (tests/programs/cluster.py): what is submitted, sent back, told, and left alone.

The trained program is tests/programs/behaves.py, which needs no model: here it matters how it ends. Whole runs on the
cluster are tests/slurm's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, wait_for

import slurm
import status
from jobs.attempts import attempts_of
from jobs.ledger import Ledger
from jobs.states import Survey
from jobs.verdicts import Verdict, judge
from pspo.config import StudyConfig
from studies import Cell, load_study

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
STARTS_S = 120.0
"""From its submission to a job's program, at most: a Python of some size starts before it, on a busy machine."""

CANNOT_GO_ON = Verdict("failed", "pspo: rank 1 cannot go on (exit status 1)")


@pytest.fixture
def cluster(started: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Idle, and the one that SLURM's clients in this process speak to; its jobs' interpreter is behaves.py."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, started.env[name])
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/programs/behaves.py "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setenv("PSPO_PYTHON", str(interpreter))
    monkeypatch.setenv("PSPO_HOME", str(ROOT))
    yield started
    started.clear()


def start_is_there(cell: Cell) -> None:
    cell.start_evaluation.parent.mkdir(parents=True, exist_ok=True)
    cell.start_evaluation.write_text("{}\n")
    (cell.start_dir / "DONE").touch()


Submit = Callable[..., list[str]]


@pytest.fixture
def submit(
    smoke: tuple[StudyConfig, list[Cell]], study_config: Callable[..., StudyConfig], capfd: pytest.CaptureFixture[str]
) -> Submit:
    """Submits the study smoke with more settings; the lines that are printed."""

    def call(*overrides: str, to_make: bool = False) -> list[str]:
        capfd.readouterr()
        cfg = study_config("slurm.time=0:10:00", "slurm.warn_s=60", *overrides)
        slurm.submit(cfg, load_study("smoke"), smoke[1], to_make, to_make)
        return capfd.readouterr().out.splitlines()

    return call


def told(cfg: StudyConfig, cells: list[Cell]) -> list[str]:
    """What make slurm-status prints."""
    survey = Survey(Ledger(cfg.runs, cfg.study, cfg.scale), [cell.run_dir.name for cell in cells], cluster=True)
    return [" ".join(line.split()) for line in status.lines(load_study("smoke"), cells, cfg, survey)]


def jobs_in(lines: list[str]) -> list[str]:
    return [line.split()[1].rstrip(":") for line in lines if line.startswith("submitted")]


def ranks_are_up(log: Path, count: int = 1) -> None:
    """Waits until so many ranks have said so in the attempt that is under way."""

    def there() -> bool:
        return log.exists() and len(re.findall(r"^rank \d", log.read_text().split("\n== ")[-1], re.MULTILINE)) >= count

    wait_for(there, f"{count} ranks", lambda: log.read_text() if log.exists() else "no log", STARTS_S)


def test_a_study_is_submitted_once_and_told_cell_by_cell(
    cluster: Cluster, smoke: tuple[StudyConfig, list[Cell]], submit: Submit
) -> None:
    cfg, cells = smoke
    cluster.call("scontrol", "update", "NodeName=n[1-2]", "State=DRAIN", "Reason=test")
    try:
        start, train, report = jobs_in(submit(to_make=True))
        assert cluster.job(f"{train}_0")["Dependency"].startswith(f"afterok:{start}")
        assert set(re.findall(r"afterany:(\d+)", cluster.job(report)["Dependency"])) == {start, train}
        shown = told(cfg, cells)
        assert shown[0] == "study smoke at scale cpu: 4 runs: 4 waiting"
        assert shown[2].startswith(f"waiting {cells[1].name}: job {train}_1: ")  # and SLURM's reason
        assert shown[-2].startswith(f"waiting (the report): job {report}: ") and shown[-1] == "nothing to do"

        again = submit(to_make=True)
        assert jobs_in(again) == [] and "not submitted: 4 waiting" in again

        cluster.call("scancel", f"{train}_1")
        wait_for(lambda: f"{train}_1" not in cluster.call("squeue", "-h", "-r", "-o", "%i"), "one task to go")
        assert f"lost {cells[1].name}: job {train}_1 left the queue before it began" in told(cfg, cells)
        lines = submit(to_make=True)
        [more, _] = jobs_in(lines)
        assert f"submitted {more}: 1 of 4 runs" in lines and "not submitted: 3 waiting" in lines
        assert cluster.job(f"{more}_1")["Dependency"].startswith(f"afterok:{start}")
    finally:
        cluster.call("scancel", "--user=root")
        cluster.call("scontrol", "update", "NodeName=n[1-2]", "State=RESUME")


def test_a_run_that_failed_by_itself_is_told_and_not_submitted_again(
    cluster: Cluster, smoke: tuple[StudyConfig, list[Cell]], submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHAVIOUR", "fail")
    cfg, cells = smoke
    train, _ = jobs_in(submit("cell=2"))
    cluster.wait_for_job(f"{train}_2", "FAILED", within=STARTS_S)
    shown = told(cfg, cells)
    at = shown.index(f"failed {cells[2].name}: pspo: rank 0 cannot go on (exit status 1)")
    log = slurm.log_of(cfg, "train", cells[2])
    assert shown[at + 1 : at + 3] == [f"less +G {log}", f"scontrol show job {train}_2"]
    assert shown[-1].startswith("to submit the 3 that are neither complete, nor in the queue, nor failed: make slurm ")

    lines = submit("cell=2")
    assert jobs_in(lines) == [] and lines[0].endswith("retry_failed=true submits them all the same:")
    assert lines[1] == f"  {cells[2].name}: pspo: rank 0 cannot go on (exit status 1)"
    assert len(jobs_in(submit("cell=2", "retry_failed=true"))) == 2


def test_one_task_of_an_array_is_warned_and_goes_back_alone(
    cluster: Cluster, smoke: tuple[StudyConfig, list[Cell]], submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHAVIOUR", "wait")
    cfg, cells = smoke
    for cell in cells[2:]:
        cell.run_dir.mkdir(parents=True)
        (cell.run_dir / "DONE").touch()
    train, _ = jobs_in(submit())
    for cell in cells[:2]:
        ranks_are_up(slurm.log_of(cfg, "train", cell))
    cluster.call("scancel", "--signal=USR1", f"{train}_1")  # the last task of an array has the array's own number
    wait_for(lambda: cluster.job(f"{train}_1")["Restarts"] == "1", "the task to be sent back")
    assert cluster.job(f"{train}_0")["Restarts"] == "0" and cluster.job(f"{train}_0")["JobState"] == "RUNNING"
    saved = f"waiting {cells[1].name}: job {train}_1: BeginTime; sent back once, last: told to stop; saved"
    wait_for(lambda: told(cfg, cells)[2] == saved, f'"{saved}"', lambda: "\n".join(told(cfg, cells)))

    cluster.call("scancel", f"{train}_0")  # it saves as well, and whoever cancels a job means it
    wait_for(lambda: cluster.job(f"{train}_0")["JobState"] == "CANCELLED", "the task to end")
    cluster.restart_now(f"{train}_1")
    cluster.wait_for_job(f"{train}_1", "COMPLETED", within=STARTS_S)
    assert told(cfg, cells)[1] == f"lost {cells[0].name}: cancelled"
    first, second = attempts_of(slurm.log_of(cfg, "train", cells[1]))
    assert (first.job, first.status, second.restart, second.status) == (f"{train}_1", 75, 1, 0)


def test_a_job_whose_node_dies_goes_back_and_its_attempt_has_no_end(
    cluster: Cluster, smoke: tuple[StudyConfig, list[Cell]], submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHAVIOUR", "wait")
    cfg, cells = smoke
    train, _ = jobs_in(submit("cell=0"))
    log = slurm.log_of(cfg, "train", cells[0])
    ranks_are_up(log)
    node = cluster.job(f"{train}_0")["NodeList"]
    cluster.kill_node(node)
    cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")  # what SlurmdTimeout brings
    wait_for(lambda: cluster.job(f"{train}_0")["Restarts"] == "1", "the job to be sent back")
    assert f"sent back once, last: {node} or the job on it was killed" in told(cfg, cells)[1]
    cluster.start_slurmd(node)
    cluster.wait_for_nodes()
    cluster.restart_now(f"{train}_0")
    cluster.wait_for_job(f"{train}_0", "COMPLETED", within=STARTS_S)
    assert [one.status for one in attempts_of(log)] == [None, 0]


def ours() -> dict[str, str]:
    """What slurm/job.sh reads; `Cluster.call` has not this process's environment."""
    return {name: os.environ[name] for name in ("PSPO_PYTHON", "PSPO_HOME")}


def submitted_run(cluster: Cluster, folder: Path, *options: str, **env: str) -> tuple[str, Path]:
    """A job of slurm/train.sh when its ranks are up, and its log."""
    script = [str(ROOT / "slurm" / "train.sh"), f"runs={folder / 'runs'}", f"models={folder / 'models'}"]
    job = cluster.sbatch(*options, *script, cwd=folder, **ours(), **env)
    logs = folder / "runs" / "logs"
    wait_for(lambda: list(logs.glob("*.log")), "the run's log", lambda: cluster.output(job), STARTS_S)
    [log] = logs.glob("*.log")
    ranks_are_up(log, 2 if "-N2" in options else 1)
    return job, log


def test_one_ranks_error_ends_the_job_although_the_other_saves(cluster: Cluster, tmp_path: Path) -> None:
    job, log = submitted_run(cluster, tmp_path, "-N2", BEHAVIOUR="fail1")
    ended = cluster.wait_for_job(job, "FAILED")
    assert ended["Restarts"] == "0"
    [only] = attempts_of(log)
    assert only.verdict == CANNOT_GO_ON
    assert "SIGTERM: saving" in log.read_text()


def test_a_warning_before_the_program_listens_sends_the_job_back(cluster: Cluster, tmp_path: Path) -> None:
    job, log = submitted_run(cluster, tmp_path, BEHAVIOUR="deaf")
    cluster.call("scancel", "--signal=USR1", job)
    wait_for(lambda: cluster.job(job)["Restarts"] == "1", "the job to be sent back")
    [only] = attempts_of(log)
    assert (only.status, only.verdict) == (138, ("again", "ended by SIGUSR1"))


def test_a_job_is_sent_back_so_often_and_no_oftener(cluster: Cluster, tmp_path: Path) -> None:
    job, _ = submitted_run(cluster, tmp_path, BEHAVIOUR="wait", PSPO_MAX_REQUEUES="0")
    cluster.call("scancel", "--signal=USR1", job)
    ended = cluster.wait_for_job(job, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", "0")
    assert "sent itself back 0 times already (slurm.max_requeues=0): not again" in cluster.output(job)


@pytest.mark.slow
def test_a_step_longer_than_the_time_limit_is_sent_back_from_there(cluster: Cluster, tmp_path: Path) -> None:
    """Warned, it goes on; SLURM ends it, and the job goes back by itself. SLURM counts limits in minutes: this one is
    brought near. It looks every half minute."""
    job, log = submitted_run(cluster, tmp_path, "--time=30", "--signal=USR1@30", BEHAVIOUR="stubborn")
    cluster.call("scontrol", "update", f"JobId={job}", "EndTime=now+1")
    wait_for(lambda: cluster.job(job)["Restarts"] == "1", "the limit", lambda: cluster.output(job), within=150)
    [only] = attempts_of(log)
    assert only.verdict is not None and only.verdict.reason.startswith("time limit reached before it could save")
    assert "SIGUSR1: saving" in log.read_text()


@pytest.mark.slow
def test_torchrun_hands_on_the_warning_and_ends_as_its_workers_do(cluster: Cluster, tmp_path: Path) -> None:
    """srun -N2 of slurm/agent.py; the workers are behaves.py, started by torchrun. No agent or worker dies of a second
    signal while it ends."""
    worker = tmp_path / "worker.py"
    programs = str(ROOT / "tests" / "programs")
    worker.write_text(f"import sys; sys.path.insert(0, {programs!r}); import behaves, os\n"
                      "behaves.behave(os.environ['BEHAVIOUR'], int(os.environ['RANK']))\n")  # fmt: skip
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/bash\nsource "$PSPO_HOME/slurm/job.sh"\nlaunch "$@" &\nwait_for $!\n')
    options = ["-N2", "--ntasks-per-node=1", f"--output={tmp_path}/%j.log"]
    for behaviour, expected in (("wait", Verdict("again", "told to stop; saved")), ("fail1", CANNOT_GO_ON)):
        env = {"PSPO_LAUNCH": "torchrun", "BEHAVIOUR": behaviour}
        job = cluster.sbatch(*options, str(script), str(worker), **ours(), **env)
        log = tmp_path / f"{job}.log"
        ranks_are_up(log, 2)
        if behaviour == "wait":
            cluster.call("scancel", "--signal=USR1", job)
        ended = cluster.wait_for_job(job, "FAILED")
        assert judge(int(ended["ExitCode"].partition(":")[0]), log.read_text().splitlines()) == expected
        assert behaviour != "wait" or ended["ExitCode"] == "75:0"

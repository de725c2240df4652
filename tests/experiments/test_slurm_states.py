"""What became of a cell, decided from its files, its attempts and what SLURM says; which of them are submitted."""

from __future__ import annotations

import doctest
import importlib
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import slurm
import status
from jobs.attempts import Attempt, begin, end
from jobs.ledger import Ledger
from jobs.options import sbatch_options
from jobs.queue import Ended, Queued, queued_in, scontrol_says
from jobs.states import Facts, Survey, state_of
from jobs.verdicts import Verdict
from pspo.config import StudyConfig, compose
from pspo.errors import PspoError
from studies import Cell, load_study

LOG = Path("run.log")
FAILED = Verdict("failed", "pspo: loss is not finite (exit status 1)")
SAVED = Verdict("again", "told to stop; saved")
DONE = Verdict("done", "")


def attempt(verdict: Verdict | None, job: str = "17_3", restart: int = 0) -> Attempt:
    ended = None if verdict is None else "2026-11-23T03:00:00+00:00"
    return Attempt(job, restart, "n2", "2026-11-23T02:00:00+00:00", ended, None if verdict is None else 1, verdict)


def queued(state: str, reason: str = "None") -> Queued:
    return Queued("17_3", "pspo-main-train-s0", 3, state, reason, "n1" if state == "RUNNING" else "")


@pytest.mark.parametrize(
    ("attempts", "slurm_says", "name", "text"),
    [
        ([], None, "lost", "job 17_3 left the queue before it began"),
        ([], Ended("CANCELLED", "0:0", "None"), "lost", "cancelled"),
        ([], Ended("CANCELLED", "0:0", "DependencyNeverSatisfied"), "lost", "not begun: what it needs has failed"),
        ([], Ended("FAILED", "2:0", "NonZeroExitCode"), "failed", "no output (2:0)"),
        ([attempt(None)], None, "lost", "n2: no end was written, so its node or its job was killed"),
        ([attempt(None)], Ended("NODE_FAIL", "0:0", "NodeDown"), "lost", "the node failed"),
        ([attempt(None)], Ended("TIMEOUT", "0:9", "TimeLimit"), "lost", "time limit reached"),
        ([attempt(None)], Ended("PREEMPTED", "0:0", "None"), "lost", "preempted"),
        ([attempt(None)], Ended("OUT_OF_MEMORY", "0:125", "OutOfMemory"), "failed", "out of memory"),
        ([attempt(SAVED)], Ended("FAILED", "75:0", "NonZeroExitCode"), "lost", "told to stop; saved"),
        ([attempt(FAILED)], Ended("FAILED", "1:0", "NonZeroExitCode"), "failed", FAILED.reason),
        ([attempt(FAILED)], Ended("NODE_FAIL", "1:0", "NodeDown"), "lost", "the node failed"),
        ([attempt(DONE)], Ended("COMPLETED", "0:0", "None"), "failed", "its product is not there"),
        ([attempt(SAVED), attempt(FAILED, restart=1)], None, "failed", FAILED.reason),
        # An earlier job failed by itself, and the one that was submitted after it never began.
        ([attempt(FAILED, job="4_3")], Ended("CANCELLED", "0:0", "None"), "lost", "cancelled"),
        ([attempt(FAILED, job="4_3")], None, "failed", FAILED.reason),
    ],
)  # fmt: skip
def test_what_the_cluster_did_is_lost_and_what_the_run_did_is_failed(
    attempts: list[Attempt], slurm_says: Ended | None, name: str, text: str
) -> None:
    state = state_of(Facts(complete=False, log=LOG, attempts=attempts, job="17_3", ended=slurm_says))
    assert state.name == name and text in state.text
    assert state.look == ("scontrol show job 17_3",)


def test_what_is_in_the_queue_says_why_and_how_often_it_was_sent_back() -> None:
    waiting = state_of(Facts(False, LOG, queued("PENDING", "Resources"), [], "17_3"))
    assert (waiting.name, waiting.text) == ("waiting", "job 17_3: Resources")
    attempts = [attempt(SAVED), attempt(None, restart=1)]
    again = state_of(Facts(False, LOG, queued("PENDING", "BeginTime"), attempts, "17_3"))
    assert again.text == "job 17_3: BeginTime; sent back 2 times, last: n2 or the job on it was killed"
    running = state_of(Facts(False, LOG, queued("RUNNING"), attempts, "17_3"))
    assert (running.name, running.text) == (
        "running",
        "job 17_3 on n1; sent back once, last: told to stop; saved",
    )
    assert state_of(Facts(True, LOG, queued("RUNNING"), attempts, "17_3")).name == "complete"
    assert state_of(Facts(False, LOG)).name == "missing"


def test_what_squeue_and_scontrol_print_is_read() -> None:
    printed = (
        "11|2|PENDING||pspo-smoke-train-s75c289|(Resources, or more)\n10|N/A|RUNNING|n2|pspo-smoke-start-s75c289|None\n"
    )
    array, single = queued_in(printed)
    assert (array.job, array.task, array.state, array.nodes) == ("11_2", 2, "PENDING", "")
    assert (single.job, single.task, single.nodes) == ("10", None, "n2")
    shown = (
        "JobId=14 ArrayJobId=11 ArrayTaskId=2 JobName=x JobState=FAILED Reason=NonZeroExitCode Dependency=(null) "
        "Restarts=0 ExitCode=1:0\nJobId=10 JobName=y JobState=TIMEOUT Reason=TimeLimit ExitCode=0:9\n"
        "JobId=11 ArrayJobId=11 ArrayTaskId=0,3 JobState=CANCELLED Reason=DependencyNeverSatisfied ExitCode=0:0\n"
    )
    assert scontrol_says(shown) == {
        "11_2": Ended("FAILED", "1:0", "NonZeroExitCode"),
        "10": Ended("TIMEOUT", "0:9", "TimeLimit"),
        "11_0": Ended("CANCELLED", "0:0", "DependencyNeverSatisfied"),
        "11_3": Ended("CANCELLED", "0:0", "DependencyNeverSatisfied"),
    }


def test_an_index_means_the_run_that_it_meant_on_submission(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "smoke", "cpu")
    first = ledger.open(["a", "b", "c"])
    ledger.add(first, "train", "17", [0, 2])
    second = ledger.open(["b", "c", "d"])
    ledger.add(second, "train", "19", [1, 2])
    read = Ledger(str(tmp_path), "smoke", "cpu")
    assert [read.run_of(first.token, 2), read.run_of(second.token, 2)] == ["c", "d"]
    last = read.last_array("train", "c")
    assert last is not None and (last.job, read.index_of(last, "c")) == ("19", 1)
    assert read.last_array("train", "b") is None
    with pytest.raises(PspoError, match="submit the study again"):
        read.run_of("s000000", 0)
    read.add(read.submissions[first.token], "start", "16")
    mine = read.last_job("start", ["a", "b", "c"])
    assert mine is not None and mine.job == "16" and read.last_job("start", ["b", "c", "d"]) is None
    assert read.job_names()[read.job_name(first, "report")] == (read.submissions[first.token], "report")


def test_a_submission_cut_by_a_crash_is_as_if_it_were_not_and_other_damage_is_told(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "smoke", "cpu")
    first = ledger.open(["a"])
    ledger.path.open("a").write('{"submission": "s75c289", "stage": "tra')
    assert Ledger(str(tmp_path), "smoke", "cpu").submissions == {first.token: first}
    ledger.add(first, "train", "17", [0])
    read = Ledger(str(tmp_path), "smoke", "cpu")
    assert [job.job for job in read.submissions[first.token].jobs] == ["17"]
    ledger.path.write_text("{" + ledger.path.read_text())
    with pytest.raises(PspoError, match="a line cannot be read"):
        Ledger(str(tmp_path), "smoke", "cpu")


def test_a_start_that_was_made_for_other_runs_says_nothing_of_these(tmp_path: Path) -> None:
    """The same study with other settings starts from something else, which is still to be made."""
    ledger, log = Ledger(str(tmp_path), "smoke", "cpu"), tmp_path / "logs" / "smoke-cpu.start.log"
    ledger.add(ledger.open(["a"]), "start", "16")
    begin(log, {"SLURM_JOB_ID": "16"})
    end(log, 1, {"SLURM_JOB_ID": "16"})
    assert Survey(ledger, ["a"], cluster=False).state("start", "", False, log).name == "failed"
    assert Survey(ledger, ["b"], cluster=False).state("start", "", False, log).name == "missing"
    ledger.add(ledger.open(["a"]), "start", "17")
    begin(log, {"SLURM_JOB_ID": "17"})
    end(log, 0, {"SLURM_JOB_ID": "17"})
    assert Survey(ledger, ["a"], cluster=False).state("start", "", True, log).name == "complete"
    assert Survey(ledger, ["a"], cluster=False).state("start", "", False, log).name == "missing"


def test_settings_become_options_in_one_place() -> None:
    cfg = compose(
        "study",
        StudyConfig,
        ["slurm.partition=gpu", "slurm.time=2:00:00", "slurm.nodes=2", "slurm.tasks_per_node=4",
         "slurm.gpus_per_task=1", "slurm.cpus_per_task=8", "slurm.memory=200G", "slurm.warn_s=600",
         "slurm.extra=['--constraint=a100']"],
    )  # fmt: skip
    asked = sbatch_options(cfg.slurm, ranks=True)
    assert asked == [
        "--partition=gpu", "--mem=200G", "--time=2:00:00", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4",
        "--cpus-per-task=8", "--gpus-per-task=1", "--signal=USR1@600", "--constraint=a100",
    ]  # fmt: skip
    alone = sbatch_options(cfg.slurm, ranks=False, gpus=False)
    assert "--nodes=1" in alone and "--ntasks=1" in alone and not any("gpus" in option for option in alone)


def test_a_job_gets_nothing_of_the_job_it_was_submitted_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_NTASKS", "64"), ("SLURM_CONF", "/etc/c"), ("SBATCH_ACCOUNT", "a"), ("SRUN_DEBUG", "1")):
        monkeypatch.setenv(name, value)
    asked = compose("study", StudyConfig, ["slurm.container=/images/pspo.sif", "slurm.max_requeues=3"]).slurm
    env = slurm.environment(asked)
    assert "SLURM_NTASKS" not in env and "SRUN_DEBUG" not in env
    assert (env["SLURM_CONF"], env["SBATCH_ACCOUNT"]) == ("/etc/c", "a")
    assert (env["PSPO_CONTAINER"], env["PSPO_MAX_REQUEUES"]) == ("/images/pspo.sif", "3") and "PSPO_PYTHON" not in env


EXAMPLES = ("slurm", "jobs.queue", "jobs.verdicts", "jobs.states")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_arguments_give_the_same_study(tmp_path: Path) -> None:
    cfg = compose(
        "study", StudyConfig, [f"runs='{tmp_path}/a b'", "overrides=['steps=2','model.path=\"x,y\"']", "jobs=3"]
    )
    assert compose("study", StudyConfig, slurm.arguments_of(cfg)) == cfg


def test_without_a_cluster_the_files_are_told(
    smoke: tuple[StudyConfig, list[Cell]], study_config: Callable[..., StudyConfig]
) -> None:
    cfg, cells = smoke
    cells[0].run_dir.mkdir(parents=True)
    (cells[0].run_dir / "DONE").touch()
    cells[1].run_dir.mkdir()
    (cells[1].run_dir / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    study = load_study("smoke")
    told = list(status.lines(study, cells, cfg, Survey(Ledger(cfg.runs, cfg.study, "cpu"), [], cluster=False)))
    assert told[0] == "study smoke at scale cpu: 4 runs: 1 complete, 1 lost, 2 missing"
    assert told[1].split() == ["complete", cells[0].name]
    assert told[2].strip() == f"lost      {cells[1].name}: step 1 of 2; begun, and not by a job"
    assert told[-1].startswith("to submit the 3 that are neither complete, nor in the queue, nor failed: make slurm ")


def test_what_to_type_next_is_as_short_as_the_settings_allow() -> None:
    plain = compose("study", StudyConfig, ["study=smoke", "scale=cpu", "slurm.partition=gpu"])
    assert slurm.command(plain, "slurm-status") == "make slurm-status STUDY=smoke SCALE=cpu"
    hf = compose("study", StudyConfig, ["study=smoke", "scale=cpu", "rollout=hf"])
    typed = slurm.command(hf, "slurm", "retry_failed=true")
    assert typed == 'make slurm STUDY=smoke SCALE=cpu ARGS="rollout=hf retry_failed=true"'
    other = compose("study", StudyConfig, ["study=smoke", "scale=cpu", "overrides=['steps=2']"])
    program, *arguments = shlex.split(slurm.command(other, "slurm", "retry_failed=true"))[1:]
    assert program == "experiments/reproduce.py" and arguments[0] == "launcher=slurm"
    again = compose("study", StudyConfig, arguments)
    assert again.overrides == ("steps=2",) and again.retry_failed

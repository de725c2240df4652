"""How an attempt ended, decided from an exit status and a log; and the record of attempts. SLURM lines in the logs are
those of its release 22.05."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.attempts import attempts_of, begin, end, lines_of_attempt, record_of, send
from jobs.verdicts import AGAIN, BUSY, STOPPED, Verdict, judge

ATTEMPT = Path(__file__).resolve().parents[2] / "experiments" / "attempt.py"

SAVED = ["pspo: SIGUSR1: saving after this step", "srun: error: n1: task 0: Exited with exit code 75"]
# One rank failed; srun then ended the other with SIGTERM, which saved, and gave 75 as the status of both.
ONE_RANK_FAILED = [
    "pspo: no prompt is left",
    "srun: error: n2: task 1: Exited with exit code 1",
    "srun: launch/slurm: _step_signal: Terminating StepId=4.0",
    "slurmstepd-n1: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-23T02:15:51 ***",
    "pspo: SIGTERM: saving after this step",
    "srun: error: n1: task 0: Exited with exit code 75",
]
NODE_FAILED = [
    "srun: error: Node failure on n2",
    "srun: error: n1: task 0: Terminated",
    "srun: Force Terminated StepId=1.0",
]
PEER_LOST = ['pspo: rank 1 has given no sign of life for 60 s; it was in "sampling of step 3"']
# Of torchrun, whose agent on the other node ended first, so that srun ended the one whose worker had failed.
TORCHRUN_FAILED = [
    "pspo: no prompt is left",
    "E1123 02:56:59.7 28336 torch/distributed/elastic/api.py:1002] failed (exitcode: 1) local_rank: 0 (pid: 2)",
    "torchrun: the ranks of another node have ended (no answer)",
    "srun: error: n2: task 1: Exited with exit code 76",
    "srun: error: n1: task 0: Terminated",
]
# Rank 1 was warned, and saved nothing, since it was loading; the others heard of its end.
PEER_TOLD = [
    "pspo: SIGUSR1: stopping; the same command goes on from what is saved",
    'pspo: rank 1 was told to stop in "loading the policy": SIGUSR1',
    "srun: error: n1: task 0: Exited with exit code 1",
]
TWO_AT_ONCE = ["pspo: another process is at work in run_dir=runs/clip-gentle-s0-f3af13d4e9"]
TORCHRUN_BUSY = "torch/distributed/elastic/api.py:1002] failed (exitcode: 77) local_rank: 1 (pid: 2)"
TRACEBACK = [
    "pspo: runs/clip goes on after step 3",
    "Traceback (most recent call last):",
    '  File "train.py", line 3, in <module>',
    "torch.OutOfMemoryError: CUDA out of memory",
    "srun: error: n1: task 0: Exited with exit code 1",
]


@pytest.mark.parametrize(
    ("status", "log", "kind", "reason"),
    [
        (0, ["anything"], "done", ""),
        (75, SAVED, "again", "told to stop; saved"),
        (138, ["srun: error: n1: task 0: User defined signal 1"], "again", "ended by SIGUSR1"),
        (143, [], "again", "ended by SIGTERM"),
        (143, [*SAVED, "srun: error: n2: task 1: Terminated"], "again", "told to stop; saved"),
        (137, [*SAVED, "srun: error: n2: task 1: Killed"], "again", "ended by SIGKILL"),
        (137, ["srun: error: n1: task 0: Killed"], "again", "ended by SIGKILL"),
        (130, ["pspo: interrupted"], "again", "ended by SIGINT"),
        (1, TRACEBACK, "failed", "torch.OutOfMemoryError: CUDA out of memory (exit status 1)"),
        (2, ["pspo: wrong setting: steps=0: input"], "failed", "pspo: wrong setting: steps=0: input (exit status 2)"),
        (143, TORCHRUN_FAILED, "failed", "pspo: no prompt is left (exit status 1)"),
        (75, ONE_RANK_FAILED, "failed", "pspo: no prompt is left (exit status 1)"),
        (1, NODE_FAILED, "again", "srun: error: Node failure on n2"),
        (1, PEER_LOST, "again", PEER_LOST[0]),
        (76, PEER_LOST, "again", PEER_LOST[0]),
        (76, ["pspo: rank 1 failed in \"loading\": ValueError"], "failed", "ValueError (exit status 76)"),
        (76, ["torchrun: the ranks of another node have ended (no answer)"], "again", "another node"),
        (137, [*PEER_LOST, "srun: error: n2: task 1: Killed"], "again", "no sign of life"),
        (139, [*PEER_LOST, "srun: error: n2: task 1: Segmentation fault (core dumped)"], "failed", "Segmentation"),
        (134, ["srun: error: n1: task 0: Aborted (core dumped)"], "failed", "Aborted"),
        (137, ["slurmstepd: error: Detected 1 oom_kill event in StepId=9.0."], "failed", "oom_kill"),
        (75, PEER_TOLD[:2], "again", "told to stop; saved"),
        (76, PEER_TOLD[:2], "again", PEER_TOLD[1]),
        (1, PEER_TOLD, "again", PEER_TOLD[1]),
        (143, PEER_TOLD, "again", PEER_TOLD[1]),
        (1, [*PEER_TOLD, "srun: error: n2: task 1: Exited with exit code 75"], "again", "told to stop; saved"),
        (139, [*PEER_TOLD, "srun: error: n2: task 1: Segmentation fault (core dumped)"], "failed", "Segmentation"),
        (77, TWO_AT_ONCE, "again", TWO_AT_ONCE[0]),
        (1, [*TWO_AT_ONCE, TORCHRUN_BUSY], "again", TWO_AT_ONCE[0]),
        (77, ["FAILED math of a: pspo: another process is at work in b (exit status 77)"], "again", "FAILED math"),
        (1, ["pspo: model.path=another process is at work in here: no such"], "failed", "no such (exit status 1)"),
        (1, ["pspo: models/rank 1 has died/x: no such checkpoint directory"], "failed", "no such checkpoint"),
        (1, ["pspo: run_dir=/s/rank 0 has given no sign of life cannot be written"], "failed", "cannot be written"),
        (1, ["pspo: runs/rank 1 was told to stop in /x is not here"], "failed", "is not here (exit status 1)"),
        (2, ["pspo: wrong setting: a=b", "srun: error: Node failure on n1"], "failed", "a=b (exit status 2)"),
        (1, [], "failed", "no output (exit status 1)"),
        (1, ["10%\r 20%\r 30%", "", "the end", "wandb: synced"], "failed", "the end (exit status 1)"),
    ],
)  # fmt: skip
def test_what_would_happen_again_has_failed_and_the_rest_is_tried_again(
    status: int, log: list[str], kind: str, reason: str
) -> None:
    found = judge(status, log)
    assert found.kind == kind and reason in found.reason


def test_the_statuses_are_those_of_the_program() -> None:
    from pspo import errors, stopping
    from pspo.ranks import watch

    assert (stopping.AGAIN, watch.STOPPED, errors.BusyError.status) == (AGAIN, STOPPED, BUSY)


def job(number: str, task: str = "", restart: str = "") -> dict[str, str]:
    """What SLURM says to a job, as far as it is of use here."""
    array = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task} if task else {}
    again = {"SLURM_RESTART_COUNT": restart} if restart else {}
    return {"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "n1", **array, **again}


def test_an_attempt_without_an_end_is_one_that_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    begin(log, job("17", "3"))
    begin(log, job("17", "3", restart="1"))
    log.open("a").write("pspo: SIGUSR1: saving after this step\n")
    assert end(log, 75, job("17", "3", restart="1")) == Verdict("again", "told to stop; saved")
    begin(log, job("18"))
    log.open("a").write("pspo: loss is not finite\n")
    assert end(log, 1, job("18")).kind == "failed"
    killed, stopped, failed = attempts_of(log)
    assert (killed.job, killed.restart, killed.nodes, killed.ended, killed.verdict) == ("17_3", 0, "n1", None, None)
    assert (stopped.job, stopped.restart, stopped.status) == ("17_3", 1, 75)
    assert failed.verdict == Verdict("failed", "pspo: loss is not finite (exit status 1)")


def test_only_the_lines_of_the_last_attempt_count(tmp_path: Path) -> None:
    """An error of an earlier attempt is not the reason of a later one's end."""
    log = tmp_path / "run.log"
    begin(log, job("1"))
    log.open("a").write("pspo: the disk was full\n")
    begin(log, job("1", restart="1"))
    assert lines_of_attempt(log) == []
    assert end(log, 1, job("1", restart="1")).reason == "no output (exit status 1)"


def test_the_first_end_of_an_attempt_counts(tmp_path: Path) -> None:
    """At the time limit the script writes why; the program that is being killed may still end in its own way."""
    log = tmp_path / "run.log"
    begin(log, job("1"))
    end(log, 143, job("1"), reason="time limit reached")
    end(log, 75, job("1"))
    [only] = attempts_of(log)
    assert only.verdict == Verdict("again", "time limit reached")


def test_a_run_that_is_killed_every_time_is_not_sent_back_for_ever(tmp_path: Path) -> None:
    """A kernel that is out of memory kills without a word to SLURM."""
    log, kinds = tmp_path / "run.log", []
    for attempt in range(3):
        begin(log, job("1", restart=str(attempt)))
        kinds.append(end(log, 137, job("1", restart=str(attempt))))
    assert [verdict.kind for verdict in kinds] == ["again", "again", "failed"]
    assert kinds[2].reason == "killed 3 times in a row without a warning: is there memory enough?"
    begin(log, job("2"))
    end(log, 75, job("2"))
    begin(log, job("2", restart="1"))
    assert end(log, 137, job("2", restart="1")).kind == "again"


def test_a_job_counts_how_often_it_sends_itself_back_and_nothing_else(tmp_path: Path) -> None:
    """Not what SLURM sends back, nor other jobs of the run."""
    log = tmp_path / "run.log"
    begin(log, job("1"))
    end(log, 75, job("1"))  # preempted: SLURM sends it back by itself
    begin(log, job("1", restart="1"))
    assert [send(log, 2, job("1", restart=restart)) for restart in "123"] == [0, 1, 2]
    assert send(log, 2, job("1", restart="4")) == 2  # the last of which was not noted: it may not go back
    assert send(log, 2, job("2")) == 0
    assert [(one.job, one.restart) for one in attempts_of(log)] == [("1", 0), ("1", 1)]


def test_a_line_cut_by_a_crash_costs_that_line_alone(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    begin(log, job("1"))
    with record_of(log).open("a") as file:
        file.write('{"end": "2026-11-23T02:1' + 5000 * "?")
    assert [one.ended for one in attempts_of(log)] == [None]
    begin(log, job("1", restart="1"))
    assert [one.restart for one in attempts_of(log)] == [0, 1]
    assert [json.loads(line)["restart"] for line in record_of(log).read_text().splitlines()] == [0, 1]


def test_the_end_is_told_quickly_and_without_the_packages_of_the_project(tmp_path: Path) -> None:
    """SLURM leaves seconds to a job that it ends. -S: without site-packages."""
    log = tmp_path / "run.log"
    begin(log, job("4"))
    command = [sys.executable, "-S", str(ATTEMPT), "end", str(log), "143", "time limit", "reached"]
    done = subprocess.run(command, env={**os.environ, **job("4")}, capture_output=True, text=True, check=True)
    assert done.stdout == "again: time limit reached\n"
    assert json.loads(record_of(log).read_text().splitlines()[1])["kind"] == "again"
    command = [sys.executable, "-S", str(ATTEMPT), "send", str(log), "20"]
    done = subprocess.run(command, env={**os.environ, **job("4")}, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"

"""What slurm/job.sh decides, in bash, with a scontrol that says what it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.attempts import begin, send

ROOT = Path(__file__).resolve().parents[2]
JOB = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "3"}


def bash(place: Path, script: str, says: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The script after job.sh; every call of scontrol is written down, and answered with `says`."""
    scontrol = place / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >>{place}/asked\necho "{says}"\n')
    scontrol.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    path = {"PATH": f"{place}:{os.environ['PATH']}", "PSPO_HOME": str(ROOT), "PSPO_PYTHON": sys.executable}
    text = f"set -euo pipefail\nsource {ROOT}/slurm/job.sh\nlog={place}/run.log\n{script}"
    return subprocess.run(
        ["bash", "-c", text], cwd=place, env=kept | path | JOB | env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("number", ["TERM", "USR1"])
def test_the_status_is_the_programs_where_it_ends_while_a_trap_runs(tmp_path: Path, number: str) -> None:
    """`wait` returns 128 + the signal then, and the program is gone when the trap is through."""
    script = f"""
trap 'sleep 1' {number}
(sleep 0.5; exit 75) &
program=$!
(sleep 0.2; kill -{number} $$) &
status=0
wait_for $program || status=$?
echo $status
"""
    assert bash(tmp_path, script).stdout == "75\n"


def test_a_signal_that_ends_nothing_is_waited_through(tmp_path: Path) -> None:
    script = """
trap : USR1
(sleep 1; exit 3) &
program=$!
for pause in 0.2 0.4 0.6; do (sleep $pause; kill -USR1 $$) & done
wait_for $program || echo $?
"""
    assert bash(tmp_path, script).stdout == "3\n"
    assert bash(tmp_path, "true & wait_for $!; echo $?").stdout == "0\n"


RUNNING = "JobId=17 JobState=RUNNING Reason=None Restarts=3"


def sent(place: Path, says: str, **env: str) -> tuple[bool, str]:
    """Was the job sent back, and what was said."""
    done = bash(place, "send_back", says, **env)
    assert done.returncode == 0, done.stderr
    return "requeue 17\n" in (place / "asked").read_text(), done.stderr


def test_what_slurm_has_sent_back_does_not_count(tmp_path: Path) -> None:
    """This job was preempted three times, and may send itself back twice."""
    begin(tmp_path / "run.log", JOB)
    for _ in range(2):
        went, said = sent(tmp_path, RUNNING, PSPO_MAX_REQUEUES="2")
        assert went and "pspo: job 17: sent back to the queue" in said
        (tmp_path / "asked").unlink()
    went, said = sent(tmp_path, RUNNING, PSPO_MAX_REQUEUES="2")
    assert not went and "sent itself back 2 times already (slurm.max_requeues=2): not again" in said


def test_where_the_record_cannot_be_written_slurms_own_count_holds(tmp_path: Path) -> None:
    """It is not less."""
    (tmp_path / "run.attempts.jsonl").mkdir()
    assert sent(tmp_path, RUNNING, PSPO_MAX_REQUEUES="4")[0]
    (tmp_path / "asked").unlink()
    assert not sent(tmp_path, RUNNING, PSPO_MAX_REQUEUES="3")[0]


@pytest.mark.parametrize(
    ("says", "went", "what"),
    [
        ("JobState=COMPLETING Reason=TimeLimit Restarts=3", True, "sent back to the queue"),
        ("JobState=CANCELLED Reason=None Restarts=3", False, "SLURM has ended this job (CANCELLED), and decides"),
        ("JobState=RUNNING Reason=None Restarts=4", False, "this job has been sent back already"),
    ],
)
def test_a_job_that_slurm_has_ended_or_sent_back_is_left_alone(
    tmp_path: Path, says: str, went: bool, what: str
) -> None:
    found, said = sent(tmp_path, says)
    assert found == went and what in said
    assert send(tmp_path / "run.log", 0, JOB) == int(went)  # nothing is counted that did not happen

"""Sweeps of `python -m pspo.train -m` with the basic launcher and joblib's: real runs of a small policy. SLURM's is in
tests/slurm/test_sweep.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cluster import wait_for
from known import SETTINGS, make_policy, outcome

from pspo.config import TrainConfig, compose, run_dir_of
from pspo.config.sweeps import batch_lines, minutes
from pspo.errors import ConfigError

pytestmark = pytest.mark.timeout(900)

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
PROGRAM = [sys.executable, "-m", "pspo.train", "-m", *SETTINGS, "rollout=hf"]
PLENTY = 240.0  # seconds for two processes to load and reach a step, on a machine with other work


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("start") / "checkpoint")


def run_dirs(place: Path, checkpoint: str, *settings: str, seeds: range = range(2)) -> list[Path]:
    """Where the cells of a sweep over seeds live, which runs in `place`."""
    overrides = [*SETTINGS, "rollout=hf", f"model.path={checkpoint}", *settings]
    return [place / run_dir_of(compose("train", TrainConfig, [*overrides, f"seed={seed}"])) for seed in seeds]


# --- what is wrong is told before anything starts --------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, expected",
    [
        ("hydra/launcher=joblib surrogate.alpha=0.1,1.5", "surrogate.alpha=1.5: "),
        ("hydra/launcher=slurm surrogate.alpha=0.1,1.5", "surrogate.alpha=1.5: "),
        ("hydra/launcher=slrum seed=0,1", "hydra/launcher=slrum: must be one of joblib, slurm"),
        ("hydra/launcher=slurm seed=0,1 slurm.time=soon", "slurm.time=soon: must be a limit"),
        ("hydra/launcher=slurm seed=0,1 slurm.container=an.sif", "slurm.container=an.sif: a sweep's jobs run in .venv"),
        ("hydra/launcher=slurm slurm.partition=a,b", "slurm.partition=a,b: must be one value for all cells of a sweep"),
        ("hydra/launcher=basic,joblib", "hydra/launcher=basic,joblib: must be one value for all cells of a sweep"),
        ("seed=0,1 run_dir=here", "run_dir=here: the cells of a sweep need directories of their own"),
    ],
)
def test_a_wrong_cell_or_launcher_is_one_line(settings: str, expected: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pspo.train", "-m", *settings.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=ENV)
    assert done.returncode == 2
    assert done.stderr.startswith(f"pspo: wrong setting: {expected}") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_slurm_its_launcher_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pspo.train", "-m", "hydra/launcher=slurm", "seed=0,1"]
    env = ENV | {"PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "hydra/launcher=slurm needs sbatch, which is not here" in done.stderr


def test_a_program_without_slurm_settings_cannot_be_swept_on_slurm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pspo.sft", "-m", "hydra/launcher=slurm", "sft.seed=0,1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=ENV)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "hydra/launcher=slurm: is not for this program" in done.stderr


@pytest.mark.parametrize("limit", ["", "0", "1:2:3:4", "-5", "1h", "1-"])
def test_what_is_no_time_limit_is_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.time"):
        minutes(limit)


ASKED = {
    "memory": None, "gpus_per_task": 0, "extra": [], "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 3,
    "container": None,
}  # fmt: skip


def test_what_a_batch_script_is_given() -> None:
    assert batch_lines(ASKED) == "export SRUN_CPUS_PER_TASK=3"
    more = {"memory": "8G", "gpus_per_task": 2, "extra": ["--constraint=a100"], "nodes": 2}
    lines = batch_lines(ASKED | more).splitlines()
    assert lines[:3] == ["#SBATCH --mem=8G", "#SBATCH --gpus-per-task=2", "#SBATCH --constraint=a100"]
    assert [line for line in lines if "MASTER_ADDR" in line]


def test_ranks_meet_at_one_port_however_a_job_was_started(root: Path) -> None:
    """And at none that the system gives out to others, which on Linux begin at 32768."""
    [swept] = re.findall(r"MASTER_PORT=\$\(\((.*?)\)\)", batch_lines(ASKED | {"nodes": 2}))
    [script] = re.findall(r"MASTER_PORT=\$\(\((.*?)\)\)", (root / "slurm/job.sh").read_text())
    assert swept == script
    command = f"for SLURM_JOB_ID in 1 9999 10000 123456789; do echo $(({script})); done"
    ports = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.split()
    assert ports == ["20001", "29999", "20000", "26789"]


# --- programs that only look -----------------------------------------------------------------------------------------


def asked(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, env=ENV)


def test_plans_are_printed_one_after_the_other(root: Path) -> None:
    done = asked(root, "-m", "pspo.plan", "-m", "gpu=rtx4090,h100")
    assert (done.returncode, done.stderr) == (1, "")
    small, large = done.stdout.split("\n\n== gpu=h100\n")
    assert small.startswith("== gpu=rtx4090\n") and "DOES NOT FIT" in small and "fits;" in large
    alone = asked(root, "-m", "pspo.plan", "gpu=h100")
    assert (alone.returncode, alone.stdout) == (0, large)


def test_a_plan_that_cannot_be_made_does_not_stop_the_others(root: Path) -> None:
    done = asked(root, "-m", "pspo.plan", "-m", "model.path=no/such,Qwen/Qwen2.5-0.5B")
    assert done.returncode == 1 and done.stdout.count("==") == 2 and "fits;" in done.stdout
    assert done.stderr.startswith("pspo: model.path=no/such: no/such: its sizes are not known here")
    assert done.stderr.count("\n") == 1


def test_the_doctor_answers_each_cell(root: Path, tmp_path: Path) -> None:
    places = f"models={tmp_path}/models"
    done = asked(root, "-m", "pspo.doctor", "-m", "rollout=hf", places, f"runs={tmp_path}/a,/proc/no")
    assert done.returncode == 1 and done.stdout.count("== runs=") == 2 and "BAD" in done.stdout.split("== ")[2]
    assert "BAD" not in done.stdout.split("== ")[1] and "not complete" not in done.stderr


@pytest.mark.parametrize(
    "command, says",
    [
        ("-m pspo.plan -m hydra/launcher=joblib gpus=1,2", "hydra/launcher=joblib: must be basic: this program"),
        ("-m pspo.plan -m hydra/launcher=slurm gpus=1,2", "hydra/launcher=slurm: must be basic: this program"),
        ("-m pspo.fetch -m to=a,b", "command line=-m: this program has no sweeps"),
        ("experiments/plan.py -m gpu=a100,h100", "command line=-m: this program has no sweeps"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(root: Path, command: str, says: str) -> None:
    done = asked(root, *command.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"pspo: wrong setting: {says}")


# --- whole sweeps ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_joblib_makes_the_runs_that_the_basic_launcher_makes(checkpoint: str, tmp_path: Path) -> None:
    """Side by side in two processes, and one after the other in one: the same bits. A second time nothing is run."""
    found = {}
    for launcher in ("basic", "joblib"):
        place = tmp_path / launcher
        place.mkdir()
        command = [*PROGRAM, f"hydra/launcher={launcher}", f"model.path={checkpoint}", "seed=0,1"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=ENV)
        assert done.returncode == 0, done.stderr
        places = run_dirs(place, checkpoint)
        assert all((run / "DONE").exists() for run in places)
        found[launcher] = [outcome(run) for run in places]
    assert found["basic"] == found["joblib"] and found["basic"][0] != found["basic"][1]
    again = subprocess.run(command, cwd=place, capture_output=True, text=True, env=ENV)
    assert again.returncode == 0 and again.stderr.count(" is complete") == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_cell_that_fails_is_named_and_the_others_are_run(launcher: str, checkpoint: str, tmp_path: Path) -> None:
    first, taken, last = run_dirs(tmp_path, checkpoint, seeds=range(3))
    taken.mkdir(parents=True)
    (taken / "somebody's").touch()
    command = [*PROGRAM, f"hydra/launcher={launcher}", f"model.path={checkpoint}", "seed=0,1,2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert done.returncode == 1
    assert (first / "DONE").exists() and (last / "DONE").exists()
    name = taken.relative_to(tmp_path)
    said = done.stderr.splitlines()
    assert said[-3:] == [
        f"pspo: seed=1: run_dir={name}: is not empty and holds no run; name another directory",
        f"pspo: 1 of 3 runs are not complete: {name}",
        "pspo: the same command goes on with them",
    ]
    assert "Traceback" not in done.stderr


@pytest.fixture
def long_sweep(checkpoint: str, tmp_path: Path):
    """A function that starts a sweep of two runs that would take many minutes, and returns it when each run that the
    launcher has at once is some steps along, with the processes that it has started."""
    started = []

    def start(launcher: str, at_once: int) -> tuple[subprocess.Popen[str], list[psutil.Process], list[Path]]:
        long = ["steps=4000", f"model.path={checkpoint}", "seed=0,1"]
        sweep = subprocess.Popen(
            [*PROGRAM, f"hydra/launcher={launcher}", *long],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            env=ENV,
            start_new_session=True,  # a terminal's, so that its Ctrl-C reaches the whole group and not these tests
        )
        started.append(sweep)
        places = run_dirs(tmp_path, checkpoint, "steps=4000")

        def along() -> bool:
            assert sweep.poll() is None, sweep.stderr and sweep.stderr.read()
            return sum(bool(list(place.glob("checkpoints/step-*"))) for place in places) >= at_once

        wait_for(along, "the runs to save", within=PLENTY)
        return sweep, psutil.Process(sweep.pid).children(recursive=True), places

    yield start
    for sweep in started:
        if sweep.poll() is None:
            sweep.kill()
        sweep.communicate()


def gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, at_once, number, whole_group, status",
    [
        ("basic", 1, signal.SIGINT, True, 130),
        ("joblib", 2, signal.SIGINT, True, 130),
        ("joblib", 2, signal.SIGTERM, False, 75),
    ],
)
def test_a_sweep_that_is_told_to_stop_takes_its_processes_along(
    long_sweep: Callable, launcher: str, at_once: int, number: signal.Signals, whole_group: bool, status: int
) -> None:
    sweep, processes, places = long_sweep(launcher, at_once)
    (os.killpg if whole_group else os.kill)(sweep.pid, number)
    _, said = sweep.communicate(timeout=60)
    assert sweep.returncode == status, said
    assert re.search("pspo: 2 of 2 runs are not complete: ", said) and "Traceback" not in said
    wait_for(gone(processes), "its processes to end", within=30)
    assert not any((place / "DONE").exists() for place in places)


@pytest.mark.slow
def test_runs_of_joblib_stop_when_the_sweep_is_killed(long_sweep: Callable) -> None:
    """They would hold their directories against the next attempt."""
    sweep, processes, _ = long_sweep("joblib", 2)
    os.kill(sweep.pid, signal.SIGKILL)
    wait_for(gone(processes), "its processes to end", within=60)

"""A free-form sweep as a SLURM array through Hydra's launcher and submitit, on a real cluster without accounting."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, wait_for
from known import SETTINGS, make_policy, outcome

from pspo.config import TrainConfig, compose, run_dir_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

PLENTY = 300.0  # seconds for loading and some steps, of which this machine takes a tenth when it does nothing else
RUN = [*SETTINGS, "steps=40", "rollout=hf"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("start") / "checkpoint")


class Sweep:
    """`python -m pspo.train -m hydra/launcher=slurm` over two seeds, as it waits for its jobs."""

    def __init__(self, cluster: Cluster, place: Path, *settings: str) -> None:
        self.cluster, self.place = cluster, place
        command = [sys.executable, "-m", "pspo.train", "-m", "hydra/launcher=slurm", *RUN, "seed=0,1", *settings]
        self.said = place / "said"
        with self.said.open("w") as said:
            env = cluster.env | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, cwd=place, env=env, stderr=said, stdin=subprocess.DEVNULL)
        found = wait_for(self._submitted, "the jobs to be submitted", self.said.read_text, PLENTY)
        self.job = found[1]
        self.runs = [
            place / run_dir_of(compose("train", TrainConfig, [*RUN, *settings, f"seed={seed}"])) for seed in (0, 1)
        ]

    def _submitted(self) -> re.Match[str] | None:
        assert self.process.poll() is None, self.said.read_text()
        return re.search(r"SLURM job (\d+)", self.said.read_text())

    def reach(self, cell: int, step: int) -> None:
        """Returns when a run has saved this step or a later one."""
        wait_for(
            lambda: any(int(path.name[5:]) >= step for path in self.runs[cell].glob("checkpoints/step-*")),
            f"step {step} of cell {cell}",
            lambda: self.log(cell),
            PLENTY,
        )

    def log(self, cell: int) -> str:
        logs = self.place / "runs/.hydra/submitit" / f"{self.job}_{cell}"
        return "\n".join(path.read_text(errors="replace") for path in sorted(logs.glob("*_log.*")))

    def end(self, within: float = PLENTY) -> tuple[int, str]:
        """Exit status, and what the sweep has said."""
        try:
            return self.process.wait(within), self.said.read_text()
        finally:
            self.process.kill()


def test_cells_are_jobs_and_one_that_is_warned_goes_on_where_it_was(
    cluster: Cluster, checkpoint: str, tmp_path: Path
) -> None:
    """SLURM's warning (SIGUSR2) reaches the run, which saves; submitit's handler then puts the job back."""
    sweep = Sweep(cluster, tmp_path, f"model.path={checkpoint}", "slurm.time=00:30:00", "slurm.memory=2G")
    sweep.reach(0, step=2)
    asked = cluster.job(f"{sweep.job}_0")
    assert (asked["TimeLimit"], asked["MinMemoryNode"], asked["Requeue"]) == ("00:30:00", "2G", "1")
    cluster.call("scancel", "--signal=USR2", f"{sweep.job}_0")
    cluster.restart_now(f"{sweep.job}_0")
    status, said = sweep.end()
    assert status == 0, said + sweep.log(0) + sweep.log(1)
    log = sweep.log(0)
    assert log.count("pspo: SIGUSR2: saving after this step") == log.count("goes on after step") == 1
    assert cluster.job(f"{sweep.job}_0")["Restarts"] == "1"
    command = [sys.executable, "-m", "pspo.train", *RUN, f"model.path={checkpoint}", "seed=0"]
    alone = tmp_path / "undisturbed"
    subprocess.run([*command, f"run_dir={alone}"], env=cluster.env | {"OMP_NUM_THREADS": "1"}, check=True)
    assert outcome(sweep.runs[0]) == outcome(alone) != outcome(sweep.runs[1])


def test_a_job_that_fails_and_one_that_is_cancelled_end_the_sweep(
    cluster: Cluster, checkpoint: str, tmp_path: Path
) -> None:
    """The first says why in its log; the second is not waited for without end, although sacct knows nothing here."""
    settings = [f"model.path={checkpoint}", "steps=4000"]
    taken = tmp_path / run_dir_of(compose("train", TrainConfig, [*RUN, *settings, "seed=0"]))
    taken.mkdir(parents=True)
    (taken / "somebody's").touch()
    sweep = Sweep(cluster, tmp_path, *settings)
    sweep.reach(1, step=2)
    wait_for(lambda: "is not empty and holds no run" in sweep.log(0), "the first to say why", lambda: sweep.log(0))
    cluster.call("scancel", f"{sweep.job}_1")
    status, said = sweep.end(within=120)
    assert status == 1 and "Traceback" not in said
    assert f"Job {sweep.job}_1 (task: 0)" in said and "(state: CANCELLED)" in said
    assert "pspo: 2 of 2 runs are not complete: " in said


def test_what_slurm_refuses_is_a_line(cluster: Cluster, checkpoint: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pspo.train", "-m", "hydra/launcher=slurm", *RUN, "seed=0,1"]
    settings = [f"model.path={checkpoint}", "slurm.partition=nowhere"]
    done = subprocess.run([*command, *settings], cwd=tmp_path, env=cluster.env, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pspo: FailedJobError: sbatch: error: invalid partition specified: nowhere" in done.stderr

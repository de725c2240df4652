"""One run on two nodes with the project's own scripts, as it is sent back, loses a node and is warned: in the end it is
bit for bit the run that two ranks under torchrun make undisturbed."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, wait_for
from known import SETTINGS, make_policy, outcome

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

ENGINE = "vllm" if importlib.util.find_spec("vllm") else "hf"
STEPS = 18  # so many that a run is still at work when it has been disturbed twice
RUN = [*SETTINGS, f"steps={STEPS}", "eval.every=4", "eval.validation_problems=8"]
PLENTY = 300  # seconds for loading and some steps, of which this machine takes a tenth when it does nothing else
ENV = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("start") / "checkpoint")


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: str, root: Path, started: Cluster
) -> Callable[[str], dict[str, object]]:
    """A function that gives the outcome of the run with an engine on two ranks, without SLURM."""

    @functools.cache
    def of(engine: str) -> dict[str, object]:
        run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
        settings = [*RUN, f"rollout={engine}", f"model.path={checkpoint}", f"run_dir={run_dir}"]
        done = subprocess.run(
            [*launch, "pspo.train", *settings], cwd=root, env=started.env | ENV, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return outcome(run_dir)

    return of


class OnTwoNodes:
    """The run as a job, submitted as docs/running-on-slurm.md says."""

    def __init__(self, cluster: Cluster, root: Path, place: Path, *settings: str, **env: str) -> None:
        self.cluster, self.dir = cluster, place / "runs/run"
        self.log = place / "runs/logs/run.log"
        asked = ["slurm.nodes=2", "slurm.time=00:30:00", "slurm.warn_s=60"]
        said = cluster.call(
            *(sys.executable, str(root / "experiments/submit.py"), "train"),
            *(*RUN, *settings, *asked, f"runs={place / 'runs'}", f"run_dir={self.dir}"),
            cwd=place,
            **ENV,
            **env,
        )
        self.job = re.findall(r"submitted (\d+)", said)[0]

    def goes_on(self, steps: int) -> None:
        """Returns when so many more steps than now are saved, and the run is still at work."""
        wanted = self.saved() + steps

        def reached() -> bool:
            job = self.cluster.job(self.job)["JobState"]
            assert job in ("PENDING", "RUNNING", "CONFIGURING"), f"job {job}\n{self.said()}"
            return self.saved() >= wanted

        wait_for(reached, f"step {wanted}", self.said, PLENTY)
        assert not (self.dir / "DONE").exists(), "the run has ended before it could be disturbed"

    def saved(self) -> int:
        """The last step of which there is a checkpoint; 0 where there is none."""
        found = self.dir.glob("checkpoints/step-*/manifest.json")
        return max((int(path.parent.name[5:]) for path in found), default=0)

    def end(self, restarts: int) -> dict[str, object]:
        """The outcome when the job has ended; `restarts` is how often it was sent back."""
        try:
            ended = self.cluster.wait_for_job(self.job, "COMPLETED", within=PLENTY)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from error
        assert (ended["NumNodes"], ended["Restarts"]) == ("2", str(restarts))
        assert json.loads((self.dir / "summary.json").read_text())["ranks"] == 2
        assert self.said().count("goes on after step") == restarts  # and did not begin again
        return outcome(self.dir)

    def said(self) -> str:
        log = self.log.read_text() if self.log.exists() else ""
        return f"\n-- output of the job\n{self.cluster.output(self.job)}\n-- log of the run\n{log[-6000:]}"


@pytest.mark.vllm
def test_a_run_that_is_sent_back_in_the_middle(cluster, root, tmp_path, checkpoint, undisturbed) -> None:
    """FSDP2 and an engine on each of two nodes; `scontrol requeue`."""
    run = OnTwoNodes(cluster, root, tmp_path, f"rollout={ENGINE}", f"model.path={checkpoint}")
    run.goes_on(steps=2)
    cluster.call("scontrol", "requeue", run.job)
    cluster.restart_now(run.job)
    assert run.end(restarts=1) == undisturbed(ENGINE)


def test_a_run_that_loses_a_node_and_then_the_slurmd_of_its_first(
    cluster, root, tmp_path, checkpoint, undisturbed
) -> None:
    run = OnTwoNodes(cluster, root, tmp_path, "rollout=hf", f"model.path={checkpoint}")
    run.goes_on(steps=2)
    cluster.kill_node("n2")
    wait_for(lambda: "rank 1 has died" in run.said(), "the first rank to notice", run.said, PLENTY)
    cluster.call("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=killed")  # what SlurmdTimeout brings
    cluster.wait_for_job(run.job, "PENDING", within=PLENTY)
    cluster.start_slurmd("n2")
    cluster.wait_for_nodes()
    cluster.restart_now(run.job)
    run.goes_on(steps=2)
    already = run.said().count("sent back already")
    cluster.kill_slurmd("n1")  # batch script and first rank go on, and nobody can end them
    cluster.call("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=killed")
    cluster.wait_for_job(run.job, "PENDING", within=PLENTY)
    wait_for(lambda: run.said().count("sent back already") > already, "the batch script to end", run.said, PLENTY)
    cluster.start_slurmd("n1")
    cluster.wait_for_nodes()
    cluster.restart_now(run.job)
    assert run.end(restarts=2) == undisturbed("hf")


def test_a_run_under_torchrun_that_is_warned(cluster, root, tmp_path, checkpoint, undisturbed) -> None:
    """The signal reaches the tasks as that of --signal does (test_cluster.py). The job sends itself back."""
    run = OnTwoNodes(cluster, root, tmp_path, "rollout=hf", f"model.path={checkpoint}", PSPO_LAUNCH="torchrun")
    run.goes_on(steps=2)
    cluster.call("scancel", "--signal=USR1", run.job)
    cluster.restart_now(run.job, within=PLENTY)
    said = run.said()
    assert said.count("SIGUSR1: saving after this step") == 2 and f"job {run.job}: sent back to the queue" in said
    assert run.end(restarts=1) == undisturbed("hf")

"""A real SLURM cluster of two virtual nodes on this machine, for tests: `with Cluster(directory) as cluster`.

A node here shares processes, clock and disk with the other one, so two things are not as on a real cluster: what
`kill_slurmd` leaves running can still be seen by the other node's jobs, and `kill_node` closes connections at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from daemons import MESSAGE_TIMEOUT_S, NODES, SLURMD_TIMEOUT_S, Daemons, missing, wait_for

__all__ = ["MESSAGE_TIMEOUT_S", "NODES", "SLURMD_TIMEOUT_S", "Cluster", "started", "wait_for"]

SETTLE_S = 2
"""How long nothing has to be under way before a job that was sent back may start again."""
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE")


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two idle nodes, for a conftest.py to import. Without SLURM its tests skip with the reason; with
    PSPO_NEED_SLURM=1 they fail."""
    if reason := missing():
        if os.environ.get("PSPO_NEED_SLURM") == "1":
            pytest.fail(f"PSPO_NEED_SLURM=1, and {reason}")
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


class Cluster(Daemons):
    """The daemons, and what is done to them and their jobs. Jobs are named by ids, tasks of arrays by `id_index`."""

    def kill_node(self, node: str) -> None:
        """As a power cut: slurmd, slurmstepd and tasks are gone together, and none tells of another's death."""
        self.power_off(node)

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL for slurmd alone. Its slurmstepd and tasks go on; tests/slurm/test_cluster.py shows what follows."""
        slurmd = self.slurmd(node)
        assert slurmd, f"no slurmd of {node} runs"
        slurmd.kill()
        slurmd.wait(timeout=10)

    def sbatch(self, *arguments: str, cwd: Path | None = None, **env: str) -> str:
        """Submits a job; its id. Output goes to `cwd`, by default the cluster's directory."""
        return self.call("sbatch", "--parsable", *arguments, cwd=cwd, **env).strip()

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job, by the names of `scontrol show job`: JobState, Restarts, ExitCode, StdOut."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", job)))

    def output(self, job: str) -> str:
        """What a job has printed so far, over all of its attempts if it appends."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_job(self, job: str, *states: str, within: float = 60) -> dict[str, str]:
        """The job when it is in one of the states; raises AssertionError where it ends in another, or not in time."""

        def there() -> dict[str, str] | None:
            found = self.job(job)
            if found["JobState"] in states:
                return found
            assert found["JobState"] not in FINAL, f"job {job} has ended as {found['JobState']}{self._why(job)}"
            return None

        return wait_for(there, f"job {job} to be {' or '.join(states)}", lambda: self._why(job), within)

    def restart_now(self, job: str, within: float = 60) -> None:
        """Waits until a job is back in the queue, and lets it start; SLURM would hold it back for two minutes.

        Those two minutes keep what is still under way for the earlier attempt from reaching the new one, which has the
        same number: requests to end it, answers of nodes (seen: a task of the new attempt killed a minute later). This
        waits for all of it; a request that a dead node has not taken is tried again after a minute, and goes with the
        controller. A node that was down has to be up again first, or to stay down until the job has ended.
        """
        number = self.wait_for_job(job, "PENDING", within=within)["JobId"]  # of a task of an array, its own
        quiet, fresh = time.monotonic(), False

        def settled() -> bool:
            nonlocal quiet, fresh
            said = self.call("sdiag")
            waiting, sending = (re.search(rf"Agent {what}: *[1-9]", said) for what in ("queue size", "count"))
            if waiting and not fresh:
                self.restart_control()
                fresh = True
            if waiting or sending or any(self._has_step(node, number) for node in NODES if self.slurmd(node)):
                quiet = time.monotonic()
            return time.monotonic() - quiet > SETTLE_S

        wait_for(settled, f"the earlier attempt of job {job} to be over", lambda: self._why(job), 150)
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")

    def _has_step(self, node: str, number: str) -> bool:
        """Does a slurmstepd of this job run on the node?"""
        for process in self.processes(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(part.startswith(f"[{number}.") for part in process.cmdline()):
                    return True
        return False

    def clear(self) -> None:
        """Cancels all jobs and has both nodes idle: what a test does before the next."""
        self.call("scancel", "--user=root")
        wait_for(lambda: not self.call("squeue", "-h"), "jobs to go away", self.logs)
        for node in NODES:
            if self.slurmd(node) is None:
                self.start_slurmd(node)
        self.wait_for_nodes()

    def _why(self, job: str) -> str:
        """What there is to say of a wait for a job that was in vain."""
        return f"\n{self.job(job)}\n-- its output\n{self.output(job)[-3000:]}{self.logs()}"

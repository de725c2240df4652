"""The daemons of a SLURM cluster on this machine: what cluster.py stands on.

Each runs below a machine.py. All files are in one directory and all ports the cluster's own; nothing of a cluster that
this machine belongs to is read or touched. Needs root, and what scripts/slurm.sh installs.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil

T = TypeVar("T")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "sdiag", "scancel")
NODES = ("n1", "n2")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
MACHINE = Path(__file__).with_name("machine.py")

PORTS = range(30000, 32700, 10)
"""Below those that the system gives out by itself: a daemon that is started again finds its own free."""

SLURMD_TIMEOUT_S = 10
"""Seconds without an answer after which a node counts as down, and its jobs go back into the queue."""
MESSAGE_TIMEOUT_S = 5
"""Seconds to wait for an answer; and after a job's end those in which SLURM leaves its tasks alone."""

# One CPU a node, so that a job a node runs at a time. Jobs that have ended are known for an hour, as there is no
# accounting. Scheduling takes place at once where it waits up to a minute by default. Clusters that stand beside each
# other number their jobs apart: slurm/job.sh makes a port of the number.
CONF = """\
ClusterName=tests
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmctldPidFile={place}/slurmctld.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdSpoolDir={place}/%n
SlurmdPidFile={place}/%n.pid
SlurmdLogFile={place}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
SlurmdParameters=config_overrides
SlurmdTimeout={timeouts[0]}
MessageTimeout={timeouts[1]}
KillWait=5
MinJobAge=3600
InactiveLimit=0
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=1 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why a cluster cannot be started here, in one line; "" where it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"SLURM is not installed here (no {', '.join(absent)}): scripts/slurm.sh says why"
    return "" if os.geteuid() == 0 else "a SLURM cluster on one machine needs root"


class Daemons:
    """munged, slurmctld and a slurmd for each node; a context manager. What is started ends with it, or with this
    process, however that ends."""

    def __init__(self, directory: Path) -> None:
        self.place = directory.resolve()
        self._machines: dict[str, list[subprocess.Popen[bytes]]] = {}
        # srun and sbatch take options from variables; those of a job that these tests run in are not theirs.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.env = clean | {"PATH": PATH, "SLURM_CONF": str(self.place / "slurm.conf")}
        self.env.pop("PYTHONDONTWRITEBYTECODE", "")  # or each of many processes compiles torch and vLLM anew

    def __enter__(self) -> Self:
        self.place.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> None:
        (self.place / "state").mkdir(exist_ok=True)
        key, socket_ = self.place / "munge.key", self.place / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports, host = free_ports(3), socket.gethostname().partition(".")[0]
        first, timeouts = (ports[0] - PORTS.start) // PORTS.step * 36 + 1, (SLURMD_TIMEOUT_S, MESSAGE_TIMEOUT_S)
        conf = CONF.format(host=host, place=self.place, ports=ports, first=first, timeouts=timeouts)
        (self.place / "slurm.conf").write_text(conf)
        files = [f"--{name}-file={self.place}/munge.{name}" for name in ("pid", "log", "seed")]
        # --force: directories of tests are closed to other users, which munged takes for a mistake
        self._machine("munge", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_}", *files)
        wait_for(socket_.exists, "munged to listen", self.logs)
        self._machine("control", "slurmctld", "-D", "-i")
        for node in NODES:
            self.start_slurmd(node)
        self.wait_for_nodes()

    def _machine(self, name: str, *command: str) -> None:
        program = shutil.which(command[0], path=PATH)
        assert program, missing()
        argv = [sys.executable, "-IS", str(MACHINE), program, *command[1:]]
        with (self.place / f"{name}.out").open("ab") as out:
            machine = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=self.env,
                cwd=self.place,
                start_new_session=True,
            )
        self._machines.setdefault(name, []).append(machine)

    def stop(self) -> None:
        """Ends all daemons and whatever jobs have left."""
        for name in (*NODES, "control", "munge"):
            self.power_off(name)

    def power_off(self, name: str) -> None:
        """Kills everything that was started on a machine, at one blow."""
        for machine in self._machines.pop(name, []):
            machine.terminate()
            machine.wait(timeout=30)
            if machine.stdin:
                machine.stdin.close()

    def restart_control(self) -> None:
        """Ends slurmctld, which saves what it knows, and starts it again. Nodes and jobs go on meanwhile."""
        pid = int((self.place / "slurmctld.pid").read_text())
        self.call("scontrol", "shutdown", "slurmctld")
        wait_for(lambda: not psutil.pid_exists(pid), "slurmctld to end", self.logs)
        self.power_off("control")
        self._machine("control", "slurmctld", "-D")
        self.wait_for_nodes("IDLE", "ALLOCATED", "COMPLETING", "DOWN", "DOWN*")

    def start_slurmd(self, node: str) -> None:
        """Starts a node's slurmd, at first and after a kill; see `wait_for_nodes`."""
        (self.place / f"{node}.pid").unlink(missing_ok=True)
        self._machine(node, "slurmd", "-D", "-N", node)
        wait_for(lambda: self.slurmd(node), f"slurmd of {node} to start", self.logs)

    def slurmd(self, node: str) -> psutil.Process | None:
        """The node's slurmd, if it runs."""
        path = self.place / f"{node}.pid"
        text = path.read_text().strip() if path.exists() else ""
        return psutil.Process(int(text)) if text and psutil.pid_exists(int(text)) else None

    def processes(self, name: str) -> list[psutil.Process]:
        """All that runs on a machine: of a node slurmd, slurmstepd and tasks."""
        return [p for machine in self._machines.get(name, []) for p in psutil.Process(machine.pid).children(True)]

    def wait_for_nodes(self, *states: str, nodes: Iterable[str] = NODES, within: float = 60) -> None:
        """Returns when each of the nodes is in one of the states, by default IDLE."""
        wanted = states or ("IDLE",)

        def all_are() -> bool:
            found = self.call("sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%T", check=False).upper().split()
            return bool(found) and all(state in wanted for state in found)

        wait_for(all_are, f"nodes to be {' or '.join(wanted)}", self.logs, within)

    def call(self, *command: str, check: bool = True, cwd: Path | None = None, **env: str) -> str:
        """What a client of the cluster prints. Raises AssertionError with its error unless `check` is false."""
        done = subprocess.run(
            command, env=self.env | env, cwd=cwd or self.place, capture_output=True, text=True, timeout=120
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stderr}"
        return done.stdout

    def logs(self) -> str:
        """The ends of all that the daemons have said."""
        files = sorted([*self.place.glob("*.log"), *self.place.glob("*.out")])  # before they open their logs: .out
        ends = [(path.name, path.read_text(errors="replace").splitlines()[-8:]) for path in files]
        return "".join(f"\n-- {name}\n" + "\n".join(lines) for name, lines in ends if lines)


def wait_for(found: Callable[[], T], what: str, why: Callable[[], str] = str, within: float = 60) -> T:
    """What `found` returns once that is true; raises AssertionError after `within` seconds, with what `why` says."""
    deadline = time.monotonic() + within
    while not (result := found()):
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}{why()}"
        time.sleep(0.1)
    return result


def free_ports(count: int) -> list[int]:
    """Consecutive ports that nobody holds, from one of PORTS on."""
    while True:
        first = random.SystemRandom().choice(PORTS)
        held = []
        try:
            for port in range(first, first + count):
                held.append(socket.create_server(("", port)))
            return list(range(first, first + count))
        except OSError:
            continue
        finally:
            for server in held:
                server.close()

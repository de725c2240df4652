"""conf/slurm as options of sbatch; the one place that knows both."""

from __future__ import annotations

from pspo.config.schema import Slurm


def sbatch_options(asked: Slurm, ranks: bool, gpus: bool = True) -> list[str]:
    """What a job asks for: with `ranks` the nodes and tasks of a training run, else one task; `gpus` for either.

    Steps are warned by SIGUSR1 `warn_s` before the time limit. What every job is (--requeue) stands in slurm/*.sh.
    """
    nodes, tasks = (asked.nodes, asked.tasks_per_node) if ranks else (1, 1)
    named = {"partition": asked.partition, "account": asked.account, "qos": asked.qos, "mem": asked.memory}
    return [
        *(f"--{name}={value}" for name, value in named.items() if value is not None),
        f"--time={asked.time}",
        f"--nodes={nodes}",
        f"--ntasks={nodes * tasks}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={asked.cpus_per_task}",
        *([f"--gpus-per-task={asked.gpus_per_task}"] if gpus and asked.gpus_per_task else []),
        f"--signal=USR1@{asked.warn_s}",
        *asked.extra,
    ]

"""One job: `python experiments/submit.py train SETTING...` or `python experiments/submit.py evaluate SETTING...`

The settings are those of pspo.train or eval/evaluate.py, checked here and not when the job begins; among them stands
what to ask of the cluster: slurm.partition=gpu slurm.time=2:00:00 (conf/slurm). A study is submitted with `make slurm`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.options import sbatch_options
from jobs.queue import has_slurm
from pspo.config import EvalConfig, StudyConfig, TrainConfig, compose, run_dir_of
from pspo.config.compose import one_line_errors
from pspo.config.schema import Slurm
from pspo.errors import ConfigError, PspoError
from slurm import sbatch
from studies import group_of


def main() -> None:
    with one_line_errors():
        what, settings = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
        if what not in ("train", "evaluate"):
            raise ConfigError("the first argument", what or "(none)", "must be train or evaluate; its settings follow")
        asked, arguments, name = checked(what, settings)
        if not has_slurm():
            raise PspoError("there is no sbatch here; run it where jobs are submitted")
        out = Path("runs") / "logs" / "slurm" / "%j.out"
        out.parent.mkdir(parents=True, exist_ok=True)
        options = [f"--job-name={name}", f"--output={out}", *sbatch_options(asked, ranks=what == "train")]
        print(f"submitted {sbatch(asked, options, f'{what}.sh', arguments)}: {name}")


def checked(what: str, settings: Sequence[str]) -> tuple[Slurm, list[str], str]:
    """What to ask of the cluster, the settings of the program, and a name for the job."""
    if what == "train":
        run = compose("train", TrainConfig, settings)
        return run.slurm, list(settings), run_dir_of(run).name
    of_the_job = [text for text in settings if group_of(text) == "slurm"]
    rest = [text for text in settings if text not in of_the_job]
    asked = compose("eval", EvalConfig, rest)
    return compose("study", StudyConfig, of_the_job).slurm, rest, f"evaluate-{asked.benchmark}"


if __name__ == "__main__":
    main()

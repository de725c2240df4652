"""python experiments/sweep.py study=alpha scale=cpu: a study over a setting, and accuracy drawn against that setting.

Runs what is missing of the study (reproduce.py, whose settings these are), with whose tables comes the figure
results/<study>/figures/accuracy.{svg,png}; its path is the last line of the output. The figure is of the runs that are
complete also where others failed, and the status is then 1. With launcher=slurm it submits.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pspo.config import StudyConfig, program
from pspo.errors import ConfigError
from studies import STUDIES, load_study


@program("study", StudyConfig)
def main(cfg: StudyConfig) -> None:
    if load_study(cfg.study).curve is None:
        known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.yaml") if load_study(path.stem).curve))
        raise ConfigError("study", cfg.study, f"goes over no setting; must be one of {known}")
    from reproduce import reproduce, say

    status: int | str | None = None
    try:
        reproduce(cfg)
    except SystemExit as failed:
        status = failed.code
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        sys.exit(130)
    if cfg.launcher == "local" and cfg.cell is None and cfg.only in (None, "tables"):
        figures = sorted((Path(cfg.results) / cfg.study / "figures").glob("accuracy*.svg"))
        print("\n".join(map(str, figures)) or "nothing is drawn: no run is complete")
    sys.exit(status)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

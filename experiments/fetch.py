"""Fetches what a study needs from the hub: `python experiments/fetch.py study=main scale=paper`

Models at their pinned revisions and data sets go into the cache of the hub's client (HF_HOME); to be run where there is
a network, with HF_HOME on a disk that the nodes see. Jobs then run with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

from benchmarking import evaluations_of
from pspo.config import StudyConfig, program
from pspo.config.schema import Data
from studies import cells_of, load_study


@program("study", StudyConfig)
def main(cfg: StudyConfig) -> None:
    from pspo.data import load_report
    from pspo.models import local_checkpoint

    study = load_study(cfg.study)
    cells = cells_of(study, cfg)
    for path, revision in {(cell.cfg.model.path, cell.cfg.model.revision): None for cell in cells}:
        if path is not None:
            print(f"{path}: {local_checkpoint(path, revision)}", flush=True)
    wanted: dict[str, Data] = {repr(cell.cfg.data): cell.cfg.data for cell in cells}
    wanted |= {repr(one.data): one.data for cell in cells for one in evaluations_of(cell, study, cfg).values()}
    for data in wanted.values():
        if report := load_report(data, "test"):  # the other part comes with it
            print(f"{data.name}: {report.kept} test problems from {report.source}", flush=True)


if __name__ == "__main__":
    main()

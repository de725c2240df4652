"""python experiments/report.py study=main: tables, figures and report.html from what has been run.

Needs neither a GPU nor torch. Also the last act of reproduce.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from meanwhile import Meanwhile
from pspo.config import StudyConfig, program
from pspo.errors import PspoError
from studies import Cell, Study, cells_of, load_study

MANY = 20
"""Complete runs from which on processes beside this one are worth the seconds in which they start."""


@program("study", StudyConfig)
def main(cfg: StudyConfig) -> None:
    study = load_study(cfg.study)
    cells = cells_of(study, cfg)
    before = Path(cfg.results) / cfg.study / "table_main.md"
    if before.exists() and not any(cell.complete for cell in cells) and any(Path(cfg.runs).glob("*/DONE")):
        raise PspoError(
            f"no run of study {cfg.study} is complete under these settings, and {before} is of some: it stays; "
            "give the settings that they were made with (overrides=[...]), or remove it"
        )
    print(rebuild(study, cells, cfg))


def rebuild(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> str:
    """Writes results/<study>/ (page.py); returns the Markdown table with the table's path as its last line.

    Runs that end while it is at work are not in it.
    """
    from cost import costs_elsewhere

    cells = [replace(cell, finished=cell.complete) for cell in cells]
    with Meanwhile(apart=sum(cell.complete for cell in cells) >= MANY) as meanwhile:
        other_costs = meanwhile.start(costs_elsewhere, study, cfg)
        import page  # scipy and matplotlib take seconds to load: a wrong setting is told before

        return page.write(study, cells, cfg, meanwhile, other_costs)


if __name__ == "__main__":
    main()

"""python experiments/report.py study=main: tables, figures and report.html from what has been run.

Needs neither a GPU nor torch. Also the last act of reproduce.py.
"""

from __future__ import annotations

from pspo.config import StudyConfig, program


@program("study", StudyConfig)
def main(cfg: StudyConfig) -> None:
    from page import rebuild  # matplotlib and scipy come with it: a wrong setting is told before
    from studies import cells_of, load_study

    study = load_study(cfg.study)
    print(rebuild(study, cells_of(study, cfg), cfg))


if __name__ == "__main__":
    main()

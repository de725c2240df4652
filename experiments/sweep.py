"""python experiments/sweep.py study=alpha scale=cpu: a study over one setting, and accuracy drawn against that setting.

Runs what is missing of the study (reproduce.py, whose settings these are), then draws results/<study>/figures/
accuracy.{svg,png}; the path of the SVG is the last line of the output. Figures are drawn of the runs that are complete
also where others failed, and the status is then 1. With launcher=slurm it submits; the same command draws afterwards.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspo.config import StudyConfig, program
from pspo.errors import ConfigError
from studies import Cell, Study, cells_of, load_study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from results import Row


@dataclass(frozen=True)
class Axis:
    """What a study goes over: a number of the training config, and what a reader of the figure calls it."""

    setting: str
    label: str

    def value(self, cell: Cell) -> float:
        found: Any = reduce(getattr, self.setting.split("."), cell.cfg)
        return float(found)


AXES = {"alpha": Axis("surrogate.alpha", "PSPO's alpha (no unit; equally spaced, not to scale)")}


@program("study", StudyConfig)
def main(cfg: StudyConfig) -> None:
    if cfg.study not in AXES:
        raise ConfigError("study", cfg.study, f"goes over no single number; must be one of {', '.join(AXES)}")
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
        study = load_study(cfg.study)
        figures = draw(study, cells_of(study, cfg), cfg)
        print("\n".join(map(str, figures)) if figures else "nothing is drawn: no run is complete")
    sys.exit(status)


def draw(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> list[Path]:
    """A figure for each model and data set with complete runs, a panel a regime; returns the SVG files."""
    import figures  # matplotlib comes with it: a wrong setting is told before
    from results import grouped, rows_of

    folder, written = Path(cfg.results) / cfg.study / "figures", list[Path]()
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(study, cells, cfg)
    for (model, data), complete in grouped([cell for cell in cells if cell.complete], lambda c: (c.model, c.data)):
        here = [row for row in rows if (row.model, row.data) == (model, data)]
        regimes = grouped(complete, lambda cell: cell.regime)
        figure, panels = figures.plt.subplots(
            1, len(regimes), figsize=(4.8 * len(regimes) + 0.4, 3.6), squeeze=False, sharey=True, layout="constrained"
        )
        for panel, (regime, members) in zip(panels[0], regimes, strict=True):
            curve(panel, AXES[cfg.study], members, [row for row in here if row.regime in (None, regime)])
            panel.set_title(regime)
        panels[0][0].set_ylabel("test accuracy, T=0 (%)")
        names = panels[0][0].get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=len(names[0]), frameon=False, fontsize="small")
        suffix = "" if len({(cell.model, cell.data) for cell in cells}) == 1 else f"_{model}_{data}"
        for ending in ("png", "svg"):
            path = folder / f"accuracy{suffix}.{ending}"
            figure.savefig(path, dpi=160, metadata={"Date": None} if ending == "svg" else None)
        figures.plt.close(figure)
        written.append(path)
    return written


def curve(panel: Axes, axis: Axis, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
    """The last checkpoint's mean over seeds with its interval, each seed, and the policy before RL.

    `rows`: of the table. Without two complete seeds a value has no interval.
    """
    from figures import COLOURS
    from records import read_graded

    values = sorted({axis.value(cell) for cell in cells})
    value_of = {cell.arm: axis.value(cell) for cell in cells}
    means = sorted((values.index(value_of[row.arm]), row.last) for row in rows if row.arm in value_of and row.last)
    for cell in cells:
        graded = read_graded(cell.run_dir / "eval" / f"{cell.data}.jsonl").values()
        accuracy = 100 * sum(one.correct for one in graded) / len(graded)
        place = values.index(axis.value(cell)) + 0.16
        panel.plot(place, accuracy, "o", color=COLOURS[1], markersize=4, markeredgewidth=0)
    panel.plot([], [], "o", color=COLOURS[1], markersize=4, markeredgewidth=0, label="each seed")
    low = [100 * (mean.value - (mean.over_seeds or [mean.value])[0]) for _, mean in means]
    high = [100 * ((mean.over_seeds or [mean.value])[-1] - mean.value) for _, mean in means]
    panel.errorbar(
        [place for place, _ in means],
        [100 * mean.value for _, mean in means],
        yerr=[low, high],
        color=COLOURS[5],
        marker="s",
        markersize=5,
        capsize=3,
        linewidth=1.4,
        label="mean, 95% interval over seeds",
    )
    for row in rows:
        if row.arm is None and row.last is not None:
            panel.axhline(100 * row.last.value, color=COLOURS[0], linestyle="--", linewidth=1, label="before RL")
    panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    panel.set_xlabel(axis.label)
    lowest, highest = panel.get_ylim()
    panel.set_ylim(max(lowest, 0), min(highest, 100))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

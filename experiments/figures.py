"""Learning curves of a study as SVG and PNG: one panel a regime, one line a method. Never torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from records import Metrics, read_metrics
from results import grouped
from studies import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008): told apart with any kind of colour vision, and by line style in print.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442")
DASHES = ("-", "--", "-.", ":")

plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pspo", "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class Curve:
    """A figure of one metric by step."""

    name: str
    metric: str
    label: str
    scale: float = 1.0
    log: bool = False


CURVES = (
    Curve("validation_accuracy", "eval/validation_accuracy", "validation accuracy, T=0 (%)", scale=100),
    Curve("reward", "reward/mean", "mean reward of a step (1 = right)"),
    Curve("ratio", "ratio/abs_dev_mean", "mean |r - 1| of a step", log=True),
    Curve("entropy", "policy/entropy", "mean entropy (nats)"),
)


def draw(folder: Path, cells: Sequence[Cell], arms: Sequence[str]) -> list[Path]:
    """Every figure of the complete runs, into a folder; returns the SVG files. None where no run is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    complete = [cell for cell in cells if cell.complete]
    places = grouped(complete, lambda cell: (cell.model, cell.data))
    metrics = {cell.index: read_metrics(cell.run_dir) for cell in complete}
    for (model, data), of_place in places:
        suffix = "" if len({(cell.model, cell.data) for cell in cells}) == 1 else f"_{model}_{data}"
        regimes = grouped(of_place, lambda cell: cell.regime)
        for curve in CURVES:
            figure, axes = plt.subplots(
                1, len(regimes), figsize=(4.5 * len(regimes) + 0.5, 3.4), squeeze=False, layout="constrained"
            )
            for panel, (regime, members) in zip(axes[0], regimes, strict=True):
                for arm, runs in grouped(members, lambda cell: cell.arm):
                    line(panel, curve, arm, arms.index(arm), [metrics[cell.index] for cell in runs])
                panel.set(title=regime, xlabel="training step", ylabel=curve.label)
                if curve.log and panel.lines:
                    panel.set_yscale("log")
            if axes[0][0].lines:
                axes[0][0].legend(frameon=False, fontsize="small")
            for ending in ("svg", "png"):
                path = folder / f"{curve.name}{suffix}.{ending}"
                figure.savefig(path, dpi=160, metadata={"Date": None} if ending == "svg" else None)
            plt.close(figure)
            written.append(folder / f"{curve.name}{suffix}.svg")
    return written


def line(panel: Axes, curve: Curve, arm: str, number: int, runs: Sequence[Metrics]) -> None:
    """The mean over seeds at the steps where every seed has the metric, and the range from least to most."""
    by_run = [
        {step: value * curve.scale for step, found in run.items() if (value := found.get(curve.metric)) is not None}
        for run in runs
    ]
    steps = sorted(set.intersection(*(set(values) for values in by_run)))
    if not steps:
        return
    values = [[run[step] for run in by_run] for step in steps]
    colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    label = f"{arm} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
    panel.plot(steps, [sum(v) / len(v) for v in values], label=label, linewidth=1.6, color=colour, linestyle=dashes)
    low, high = [min(v) for v in values], [max(v) for v in values]
    panel.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)

"""Accuracy against what a study goes over (its `curve`): alpha, epsilon, tau, mu, learning rate. Never torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asked import Asked
from complete import grouped
from figures import COLOURS, DASHES, Figure, Room, grid, legend, plt, save
from pspo.intervals import Estimate
from records import read_graded
from results import Row
from studies import Cell, Curve, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

MARKERS = ("s", "o", "^", "D", "v", "P", "X", "*")


def draw(folder: Path, study: Study, cells: Sequence[Cell], rows: Sequence[Row]) -> list[Path]:
    """accuracy.{svg,png}, one for each model and data set with complete runs; returns the SVG files."""
    curve, written = study.curve, list[Path]()
    if curve is None:
        return written
    folder.mkdir(parents=True, exist_ok=True)
    for (model, data), complete in grouped([cell for cell in cells if cell.complete], lambda c: (c.model, c.data)):
        here = [row for row in rows if (row.model, row.data) == (model, data)]
        figure = draw_panels(curve, list(study.arms), complete, here)
        suffix = "" if len({(cell.model, cell.data) for cell in cells}) == 1 else f"~{model}~{data}"
        written.append(save(figure, folder / f"accuracy{suffix}"))
    return written


def draw_panels(curve: Curve, arms: Sequence[str], complete: Sequence[Cell], rows: Sequence[Row]) -> Drawing:
    """Of one model and data set: its panels beside each other, with one axis of accuracies and one legend."""
    panels = panels_of(curve, complete)
    size = (4.8 * len(panels) + 0.4, 3.8)
    drawing, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for panel, (title, members) in zip(axes[0], panels, strict=True):
        draw_panel(panel, curve, arms, members, rows)
        panel.set_title(title)
    axes[0][0].set_ylabel("test accuracy, T=0 (%)")
    lowest, highest = axes[0][0].get_ylim()  # of all panels
    axes[0][0].set_ylim(max(lowest, 0), min(highest, 100))
    legend(drawing, axes[0], loc="outside lower center", ncols=3)
    return drawing


def draw_by_temperature(folder: Path, study: Study, asked: Sequence[Asked]) -> list[Figure]:
    """Accuracy, pass@k and majority vote of the last checkpoint against the temperature: a figure for each model, data
    set and benchmark that has several, a row of panels for each regime."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Figure] = []
    places: dict[tuple[str, str, str], list[Asked]] = {}
    for row in asked:
        if row.which == "last":
            places.setdefault((row.model, row.data, row.benchmark), []).append(row)
    for (model, data, benchmark), rows in places.items():
        if len({row.temperature for row in rows}) < 2:
            continue
        most = max(row.samples for row in rows)
        regimes, arms = list(dict.fromkeys(row.regime for row in rows)), list(study.arms)
        kinds: dict[str, Callable[[Asked], Estimate]] = {
            "accuracy (%)": lambda row: row.accuracy,
            f"pass@{most} (%)": lambda row: row.pass_at_most,
            "majority vote (%)": lambda row: row.majority,
        }
        drawing, axes = grid(len(regimes), len(kinds), Room(below=0.4))
        for of_regime, regime in zip(axes, regimes, strict=True):
            for panel, (label, value) in zip(of_regime, kinds.items(), strict=True):
                for number, arm in enumerate(arms):
                    # At T=0 there is one completion: its accuracy is in all three.
                    of_arm = [row for row in rows if (row.regime, row.arm) == (regime, arm)]
                    mine = sorted(of_arm, key=lambda row: row.temperature)
                    draw_line(panel, arm, number, [(row.temperature, value(row)) for row in mine])
                panel.set(xlabel="temperature", ylabel=label)
                panel.set_title(regime, y=1.0)
        legend(drawing, axes.flat, loc="lower center", ncols=4)
        path = save(drawing, folder / f"temperature~{model}~{data}~{benchmark}")
        caption = f"{model}, trained on {data}, asked {benchmark}: means over seeds with 95% intervals over seeds."
        written.append(Figure(path, caption))
    return written


def draw_line(panel: Axes, name: str, number: int, points: Sequence[tuple[float, Estimate]]) -> None:
    """Means with their intervals over seeds."""
    bounds = [estimate.over_seeds or (estimate.value, estimate.value) for _, estimate in points]
    panel.errorbar(
        [x for x, _ in points],
        [100 * estimate.value for _, estimate in points],
        yerr=[
            [100 * (estimate.value - low) for (_, estimate), (low, _) in zip(points, bounds, strict=True)],
            [100 * (high - estimate.value) for (_, estimate), (_, high) in zip(points, bounds, strict=True)],
        ],
        color=COLOURS[number % len(COLOURS)],
        linestyle=DASHES[number % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        capsize=3,
        linewidth=1.4,
        label=name,
    )


def panels_of(curve: Curve, cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Title and cells of each panel: a value of curve.panel, or a regime, unless regimes are what x goes over."""
    if curve.panel is not None:
        axis = curve.panel
        found = sorted(grouped(cells, lambda cell: axis.value(cell.cfg)))
        return [(f"{axis.label} {value:g}", members) for value, members in found]
    by_regime = grouped(cells, lambda cell: cell.regime)
    if any(len({curve.x.value(cell.cfg) for cell in members}) > 1 for _, members in by_regime):
        return by_regime
    return [("", list(cells))]


def draw_panel(panel: Axes, curve: Curve, arms: Sequence[str], cells: Sequence[Cell], rows: Sequence[Row]) -> None:
    """The last checkpoint's mean over seeds with its interval over seeds, and the policy before RL.

    A line an arm; where each arm is a single value, one line of them all with a dot for every seed. `rows`: those of
    the table. Without two complete seeds a value has no interval.
    """
    values = sorted({curve.x.value(cell.cfg) for cell in cells})
    by_arm = grouped(cells, lambda cell: cell.arm)
    one_line = all(len({curve.x.value(cell.cfg) for cell in members}) == 1 for _, members in by_arm)
    lines = [("mean, 95% interval over seeds", list(cells))] if one_line else by_arm
    row_of = {(row.regime, row.arm): row for row in rows}
    for number, (name, members) in enumerate(lines):
        which = 0 if one_line else arms.index(name)
        dodge = 0.0 if one_line else 0.08 * (number - (len(lines) - 1) / 2)
        places = {(cell.regime, cell.arm): values.index(curve.x.value(cell.cfg)) for cell in members}
        means = [
            (place + dodge, last)
            for key, place in sorted(places.items(), key=lambda one: one[1])
            if (last := row_of[key].last)
        ]
        draw_line(panel, name, which, means)
    if one_line:
        for cell in cells:
            graded = read_graded(cell.evaluation).values()
            accuracy = 100 * sum(one.correct for one in graded) / len(graded)
            place = values.index(curve.x.value(cell.cfg)) + 0.16
            panel.plot(place, accuracy, "o", color=COLOURS[1], markersize=4, markeredgewidth=0)
        panel.plot([], [], "o", color=COLOURS[1], markersize=4, markeredgewidth=0, label="each seed")
    for row in rows:
        if row.arm is None and row.last is not None:
            panel.axhline(100 * row.last.value, color="#666666", linestyle=":", linewidth=1, label="before RL")
    panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    panel.set_xlabel(curve.x.label)

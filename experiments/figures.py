"""What complete runs of a study did, step by step, as SVG and PNG: curves, distributions of ratios, time. Never torch.

A panel is a regime, a line an arm (method). Colours are told apart with any kind of colour vision, and lines by their
style in print.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from complete import grouped, metrics_of
from pspo.metrics import RATIO_EDGES
from records import Metrics
from studies import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442")  # Okabe, Ito (2008)
DASHES = ("-", "--", "-.", ":")
PHASES = ("rollout", "grade", "check", "learn", "exchange", "sync", "other", "save", "eval")
"""Of a step, as metrics time/<phase>_s."""
COLUMNS = 4
"""Panels beside each other."""
MOST_STEPS = 300
"""Of a line: more than so many points of a run of thousands of steps are not seen, and are megabytes of SVG."""

plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pspo", "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class Figure:
    """A drawing as SVG (beside it a PNG of the same name), and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Curve:
    """A figure of one metric by step."""

    name: str
    metric: str
    label: str
    caption: str
    scale: float = 1.0
    log: bool = False


CURVES = (
    Curve("validation_accuracy", "eval/validation_accuracy", "validation accuracy, T=0 (%)", "Validation.", scale=100),
    Curve("reward", "reward/mean", "mean reward of a step", "What the policy is trained on, as it is sampled."),
    Curve("ratio", "ratio/abs_dev_mean", "mean |r - 1| of a step", "How far ratios leave 1.", log=True),
    Curve(
        "slope_zero",
        "slope/zero_share",
        "tokens without slope (%)",
        "Tokens with an advantage from which the surrogate takes no gradient at all: past clip's bound.",
        scale=100,
    ),
    Curve(
        "slope_small",
        "slope/small_share",
        "tokens with slope < 0.1 A (%)",
        "Tokens with an advantage of which the surrogate passes on less than a tenth: clip's, and the sigmoid's tails.",
        scale=100,
    ),
    Curve("entropy", "policy/entropy", "mean entropy (nats a token)", "Entropy of the policy at completion tokens."),
    Curve("kl", "kl/k3", "KL(old || new) of a step (nats a token)", "How far a step moves the policy (k3).", log=True),
    Curve("grad_norm", "optim/grad_norm", "gradient norm before clipping", "Mean over a step's updates.", log=True),
)
AGAINST = (
    Curve("entropy", "policy/entropy", "mean entropy (nats a token)", ""),
    Curve("kl", "kl/k3", "KL(old || new) of a step (nats a token)", "", log=True),
)
"""What reward is drawn against."""

Runs = Sequence[Metrics]
Place = list[tuple[str, list[tuple[str, Runs]]]]
"""Of a model and data set: regime -> arm -> the metrics of its seeds."""


def draw(
    folder: Path, cells: Sequence[Cell], arms: Sequence[str], start: float = 0.0, end: float = 1.0
) -> list[Figure]:
    """The figures of the complete runs, into a folder; none where no run is complete. `start` and `end`: which part of
    them, as shares of all, so that several processes can draw them."""
    folder.mkdir(parents=True, exist_ok=True)
    complete = [cell for cell in cells if cell.complete]
    metrics = {cell.index: metrics_of(cell) for cell in complete}
    several = len({(cell.model, cell.data) for cell in cells}) > 1
    wanted: list[tuple[str, str, Callable[[], Drawing]]] = []
    for (model, data), of_place in grouped(complete, lambda cell: (cell.model, cell.data)):
        place: Place = [
            (regime, [(arm, [metrics[cell.index] for cell in runs]) for arm, runs in grouped(here, lambda c: c.arm)])
            for regime, here in grouped(of_place, lambda cell: cell.regime)
        ]
        where, suffix = (f"{model}, {data}: ", f"~{model}~{data}") if several else ("", "")
        wanted += [(f"{name}{suffix}", where + caption, drawn) for name, caption, drawn in of_training(place, arms)]
    mine = wanted[round(start * len(wanted)) : round(end * len(wanted))]
    return [Figure(save(drawn(), folder / name), caption) for name, caption, drawn in mine]


def of_training(place: Place, arms: Sequence[str]) -> Iterator[tuple[str, str, Callable[[], Drawing]]]:
    """Name, caption, and what draws it, of every figure of a model and data set."""
    for curve in CURVES:
        yield curve.name, curve.caption, partial(by_regime, place, partial(over_steps, curve, arms))
    for curve in AGAINST:
        caption = f"Reward against {curve.label}: the way of training, mean over seeds; a dot is its end."
        yield f"reward_against_{curve.name}", caption, partial(by_regime, place, partial(against, curve, arms))
    caption = "Shares of completion tokens by their ratio, all updates of a step, mean over seeds; white: none."
    yield "ratio_distribution", caption, partial(distributions, place)
    caption = "Time of a step by phase, median over steps, mean over seeds. Runs may share a machine."
    yield "time", caption, partial(by_regime, place, phases, left=0.25 + 0.08 * max(len(arm) for arm in arms))


def save(drawing: Drawing, path: Path) -> Path:
    """As SVG and PNG, the same bytes for the same data; closes it, and returns the path of the SVG."""
    if drawing.get_layout_engine() is not None:
        drawing.draw_without_rendering()
        drawing.set_layout_engine("none")  # once for both
    for ending in ("png", "svg"):
        target = path.with_name(f"{path.name}.{ending}")
        aside = path.with_name(f".{path.name}.{ending}.{os.getpid()}")
        try:
            drawing.savefig(aside, format=ending, dpi=120, metadata={"Date": None} if ending == "svg" else None)
            aside.replace(target)
        except OSError as error:
            error.filename = str(target)  # a disk that is full does not say
            raise
        finally:
            with contextlib.suppress(OSError):  # of a folder that cannot be written the error above says so
                aside.unlink(missing_ok=True)
    plt.close(drawing)
    return path.with_name(f"{path.name}.svg")


def remove_others(folder: Path, drawn: Sequence[Figure]) -> None:
    """Drawings of an earlier state of the study, or of another scale; and what a process that was killed left."""
    kept = {figure.path.stem for figure in drawn}
    for path in (*folder.glob("*.svg"), *folder.glob("*.png")):
        if path.stem not in kept:
            path.unlink()
    for path in (*folder.glob(".*.svg.*"), *folder.glob(".*.png.*")):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Room:
    """Inches of a panel with what stands around it, and of the strips for a legend beside or below all panels."""

    width: float = 4.3
    height: float = 3.1
    left: float = 0.9
    right: float = 0.15
    top: float = 0.35
    bottom: float = 0.55
    beside: float = 0.0
    below: float = 0.0


def grid(rows: int, columns: int, room: Room) -> tuple[Drawing, NDArray[Any]]:
    """Axes [rows, columns], with places for their labels. By hand: matplotlib takes half a minute to find a layout for
    48 panels, and each time that it draws them it looks for labels that might meet."""
    width, height = columns * room.width + room.beside, rows * room.height + room.below
    inner = room.width - room.left - room.right, room.height - room.top - room.bottom
    drawing = plt.figure(figsize=(width, height))
    axes = np.empty((rows, columns), dtype=object)
    for row, column in np.ndindex(rows, columns):
        x, y = column * room.width + room.left, height - (row + 1) * room.height + room.bottom
        panel = drawing.add_axes((x / width, y / height, inner[0] / width, inner[1] / height))
        panel.xaxis.set_label_coords(0.5, -0.28 / inner[1])
        panel.yaxis.set_label_coords(-(room.left - 0.2) / inner[0], 0.5)
        axes[row, column] = panel
    return drawing, axes


def by_regime(place: Place, fill: Callable[[Axes, list[tuple[str, Runs]]], None], left: float = Room.left) -> Drawing:
    """A panel a regime, filled by `fill`, with one legend for all; `left`: inches for what stands left of each."""
    columns = min(len(place), COLUMNS)
    drawing, axes = grid(-(-len(place) // columns), columns, Room(left=left, below=0.6))
    for panel, (regime, methods) in zip(axes.flat, place, strict=False):
        fill(panel, methods)
        panel.set_title(regime, y=1.0)
    for panel in axes.flat[len(place) :]:
        panel.set_axis_off()
    legend(drawing, axes.flat, loc="lower center", ncols=2 + columns)
    return drawing


def legend(drawing: Drawing, panels: Iterable[Axes], **options: Any) -> None:
    """One for all panels, each label once."""
    names = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if names:
        drawing.legend(names.values(), names.keys(), frameon=False, fontsize="small", **options)


def style_of(arm: str, arms: Sequence[str]) -> dict[str, str]:
    number = arms.index(arm)
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def series(runs: Runs, metric: str, scale: float = 1.0) -> tuple[list[int], NDArray[np.float64]]:
    """The steps at which every seed has the metric, every so many of them, and its values there [S, steps]."""
    steps, [values] = several(runs, [metric])
    return steps, values * scale


def several(runs: Runs, metrics: Sequence[str]) -> tuple[list[int], list[NDArray[np.float64]]]:
    """`series` of each metric, at the steps at which every seed has all of them."""
    known = [run.steps[np.all([np.isfinite(run[metric]) for metric in metrics], axis=0)] for run in runs]
    shared = reduce(np.intersect1d, known)
    steps = shared[:: -(-len(shared) // MOST_STEPS) or 1]
    places = [np.searchsorted(run.steps, steps) for run in runs]
    values = [np.array([run[metric][at] for run, at in zip(runs, places, strict=True)]) for metric in metrics]
    return steps.tolist(), values


def over_steps(curve: Curve, arms: Sequence[str], panel: Axes, methods: list[tuple[str, Runs]]) -> None:
    """The mean over seeds, and a band from the least to the greatest."""
    for arm, runs in methods:
        steps, values = series(runs, curve.metric, curve.scale)
        if not steps:
            continue
        style = style_of(arm, arms)
        panel.plot(steps, values.mean(axis=0), label=arm, linewidth=1.6, **style)
        panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)
    panel.set(xlabel="training step", ylabel=curve.label)
    if curve.log and any((np.asarray(line.get_ydata()) > 0).any() for line in panel.lines):
        panel.set_yscale("log")


def against(curve: Curve, arms: Sequence[str], panel: Axes, methods: list[tuple[str, Runs]]) -> None:
    for arm, runs in methods:
        at, x = series(runs, curve.metric)
        steps, y = series(runs, "reward/mean")
        shared = [step for step in steps if step in at]
        if not shared:
            continue
        xs = x.mean(axis=0)[[at.index(step) for step in shared]]
        ys = y.mean(axis=0)[[steps.index(step) for step in shared]]
        style = style_of(arm, arms)
        panel.plot(xs, ys, label=arm, linewidth=1.2, **style)
        panel.plot(xs[-1:], ys[-1:], "o", color=style["color"], markersize=6)
    panel.set(xlabel=curve.label, ylabel="mean reward of a step")
    if curve.log and panel.lines:
        panel.set_xscale("log")


def distributions(place: Place) -> Drawing:
    """Rows are regimes, columns arms: the share of tokens in each interval of RATIO_EDGES by step, in colours on a
    logarithmic scale, since nearly all ratios are near 1 and it is the others that methods treat differently."""
    widest = max(len(methods) for _, methods in place)
    drawing, axes = grid(len(place), widest, Room(width=2.6, height=2.2, left=0.65, top=0.3, bottom=0.5, beside=1.1))
    norm, shades = LogNorm(1e-5, 1.0), plt.get_cmap("cividis_r")
    for row, (regime, methods) in zip(axes, place, strict=True):
        for panel, (arm, runs) in zip(row, methods, strict=False):
            steps, below = several(runs, [f"ratio/below_{edge:g}_share" for edge in RATIO_EDGES])
            if steps:
                none, all_ = np.zeros(len(steps)), np.ones(len(steps))
                cumulative = np.array([none, *(values.mean(axis=0) for values in below), all_])
                shares = np.ma.masked_less_equal(np.diff(cumulative, axis=0), 0.0)
                span = (steps[0] - 0.5, steps[-1] + 0.5, -0.5, len(shares) - 0.5)
                panel.imshow(shares, shades, norm, aspect="auto", origin="lower", extent=span, interpolation="nearest")
            labels = [f"{edge:g}" if panel is row[0] else "" for edge in RATIO_EDGES]
            panel.set_yticks(np.arange(len(RATIO_EDGES)) + 0.5, labels, fontsize="x-small")
            panel.set_title(f"{arm}" if len(place) == 1 else f"{regime}: {arm}", fontsize="small", y=1.0)
        for panel in row[len(methods) :]:
            panel.set_axis_off()
        row[0].set_ylabel("ratio r")
    for panel in axes[-1]:
        panel.set_xlabel("training step")
    width, height = drawing.get_size_inches()
    bar = drawing.add_axes((1 - 0.95 / width, 0.5 / height, 0.12 / width, 1.4 / height))
    drawing.colorbar(ScalarMappable(norm, shades), bar).set_label("share of tokens", fontsize="small")
    return drawing


def phases(panel: Axes, methods: list[tuple[str, Runs]]) -> None:
    """A bar an arm: seconds of a step, phase by phase; evaluations and checkpoints as their mean over all steps."""
    left = np.zeros(len(methods))
    for number, phase in enumerate(PHASES):
        seconds = np.array([np.mean([step_seconds(run, phase) for run in runs]) for _, runs in methods])
        if not seconds.any():
            continue
        hatch = "//" if number >= len(COLOURS) else None
        colour = COLOURS[(number + 1) % len(COLOURS)]
        places = range(len(methods))
        panel.barh(places, seconds, left=left, label=phase, color=colour, edgecolor="white", linewidth=0.5, hatch=hatch)
        left += seconds
    panel.set_yticks(range(len(methods)), [arm for arm, _ in methods])
    panel.invert_yaxis()
    panel.set_xlabel("seconds a step")


def step_seconds(run: Metrics, phase: str) -> float:
    seconds = run[f"time/{phase}_s"][run.steps > 0]
    if not len(seconds):
        return 0.0
    seconds = np.where(np.isfinite(seconds), seconds, 0.0)
    return float(np.mean(seconds) if phase in ("save", "eval", "check") else np.median(seconds))

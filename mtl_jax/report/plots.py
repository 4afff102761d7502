"""The figures of a report, each a function from numbers to a matplotlib figure, in light and dark colours.

Nothing here needs a display or pyplot's global state.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl_jax.data.lettering.text import shorten
from mtl_jax.data.pictures import DARK, RIGHT, WRONG
from mtl_jax.errors import MtlError
from mtl_jax.report import history
from mtl_jax.report.history import PHASES, Curve

MAX_LABELS = 40
NEUTRAL, BASELINE = "#8a8a8a", "#E69F00"
CHANCE, PRETRAINED = "chance", "pre-training only"
MARKERS = "osD^v*Xp<>"
# Okabe and Ito's palette without black, which a dark page swallows.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#B8A800", "#8a8a8a")
_DARK = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), DARK.paper),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), DARK.ink),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), "#7b848f"),
}


def learning_curves(
    metrics_path: str | Path, wanted: Sequence[str] = tuple(PHASES), *, chance: float | None = None,
    baseline: float | None = None,
) -> Figure:  # fmt: skip
    """Accuracy (above) and loss (below) of each of the `wanted` phases that a metrics.jsonl has, over its steps.

    Training is a line; validation has a marker at each measurement and its CI95 as a band.

    Args:
      metrics_path: the file.
      wanted: the phases.
      chance: the accuracy of guessing on validation tasks.
      baseline: validation accuracy before meta-training, in whose picture it is drawn.

    Raises:
      MtlError: there is no curve in the file.
    """
    found = history.read(metrics_path)
    phases = [phase for phase in wanted if any(name.startswith(f"{phase}/") for name in found)]
    if not phases:
        raise MtlError(f"{metrics_path}: no metrics yet; train for config.runtime.log_every steps at least")
    figure = new_figure(5.2 * len(phases), 5.2)
    grid = figure.subplots(2, len(phases), squeeze=False, sharex="col")
    for column, phase in zip(grid.T, phases, strict=True):
        mine = {name.partition("/")[2]: curve for name, curve in found.items() if name.startswith(f"{phase}/")}
        _draw_phase(column, mine)
        draw_levels(column[0].axhline, chance, baseline if phase == "meta" else None)
        if chance is not None or baseline is not None:
            column[0].legend(frameon=False, fontsize=8)
        column[0].set_title(PHASES[phase])
        column[1].set_xlabel("step")
    return figure


def _draw_phase(axes: Sequence[Axes], found: Mapping[str, Curve]) -> None:
    for axis, name, scale in ((axes[0], "accuracy", 100), (axes[1], "loss", 1)):
        if name in found:
            axis.plot(found[name][0], scale * found[name][1], color=NEUTRAL, label="training")
        if f"val_{name}" in found:
            steps, values = found[f"val_{name}"]
            axis.plot(steps, scale * values, "o-", color=RIGHT, markersize=4, label="validation tasks")
            band = found.get("val_ci95")
            if name == "accuracy" and band is not None and len(band[1]) == len(values):
                low, high = scale * (values - band[1]), scale * (values + band[1])
                axis.fill_between(steps, low, high, color=RIGHT, alpha=0.2, linewidth=0)
        axis.set_ylabel("accuracy, %" if name == "accuracy" else name)
        axis.grid(alpha=0.25)
        if axis.lines:
            axis.legend(frameon=False)


def draw_levels(draw: Callable[..., Any], chance: float | None, baseline: float | None = None) -> None:
    """Lines at the accuracy of guessing, and of pre-training alone; `draw` is an axis's axhline or axvline."""
    if chance is not None:
        draw(100 * chance, color=NEUTRAL, linestyle=":", label=f"{CHANCE} ({100 * chance:.3g} %)")
    if baseline is not None:
        draw(100 * baseline, color=BASELINE, linestyle="--", label=f"{PRETRAINED} ({100 * baseline:.1f} %)")


def accuracy_by_step(
    mean: np.ndarray, ci95: np.ndarray, *, chance: float | None = None, baseline: np.ndarray | None = None
) -> Figure:
    """Mean query accuracy after 0, 1, ... inner steps, [steps + 1], with its CI95 as a band, where it is not NaN.

    `chance` is the accuracy of guessing; `baseline` is [steps + 1] of pre-training alone.
    """
    figure = new_figure(5.2, 3.2)
    axis = figure.subplots()
    steps = np.arange(len(mean))
    axis.plot(steps, 100 * mean, color=RIGHT, label="this network")
    axis.fill_between(steps, 100 * (mean - ci95), 100 * (mean + ci95), color=RIGHT, alpha=0.25, linewidth=0)
    if baseline is not None:
        axis.plot(steps, 100 * baseline, color=BASELINE, linestyle="--", label=PRETRAINED)
    draw_levels(axis.axhline, chance)
    axis.set(xlabel="inner step", ylabel="query accuracy, %")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return figure


def histogram(
    accuracies: np.ndarray, step: float, *, chance: float | None = None, baseline: np.ndarray | None = None
) -> Figure:
    """How many tasks have which accuracy: [T]; `step` is the smallest difference that two tasks can have.

    `chance` is the accuracy of guessing; `baseline` is [T] of pre-training alone on the same tasks.
    """
    figure = new_figure(5.2, 3.2)
    axis = figure.subplots()
    width = step * max(1, round(0.025 / step))
    every = accuracies if baseline is None else np.concatenate([accuracies, baseline])
    # Half a step below the lowest accuracy, so that no accuracy lies on an edge.
    edges = np.arange(every.min() - step / 2, every.max() + width, width)
    mean = accuracies.mean()
    axis.hist(100 * accuracies, bins=100 * edges, color=RIGHT, label=f"this network, mean {100 * mean:.2f} %")
    if baseline is not None:
        label = f"{PRETRAINED}, mean {100 * baseline.mean():.2f} %"
        axis.hist(100 * baseline, bins=100 * edges, histtype="step", color=BASELINE, linewidth=1.5, label=label)
    axis.axvline(100 * mean, color=WRONG, linestyle="--")
    draw_levels(axis.axvline, chance)
    axis.set(xlabel="query accuracy of a task, %", ylabel="tasks")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=7)
    return figure


def class_bars(
    names: Sequence[str], accuracies: Sequence[float], *, chance: float | None = None,
    baseline: Sequence[float] | None = None,
) -> Figure:  # fmt: skip
    """The accuracy of each class, the hardest on top; of many classes the first and the last of them.

    `chance` is the accuracy of guessing; `baseline` has that of each class by pre-training alone.
    """
    names, values = [shorten(name, 24) for name in names], list(accuracies)
    marks = None if baseline is None else list(baseline)
    if len(names) > MAX_LABELS:
        half = MAX_LABELS // 2
        names = [*names[:half], "…", *names[-half:]]
        values = [*values[:half], 0.0, *values[-half:]]
        marks = marks and [*marks[:half], np.nan, *marks[-half:]]
    figure = new_figure(5.2, 0.8 + 0.19 * len(names))
    axis = figure.subplots()
    places = np.arange(len(names))
    axis.barh(places, 100 * np.array(values), color=RIGHT, height=0.7)
    if marks:
        axis.plot(100 * np.array(marks), places, "D", color=BASELINE, markersize=4, label=PRETRAINED)
    draw_levels(axis.axvline, chance)
    if axis.lines:
        figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside upper center", ncols=2)
    axis.set_yticks(places, names, fontsize=7, parse_math=False)
    axis.set(xlabel="accuracy, %", xlim=(0, 100), ylim=(len(names) - 0.3, -0.7))
    axis.grid(axis="x", alpha=0.25)
    return figure


def feature_map(points: np.ndarray, classes: np.ndarray, names: Mapping[int, str], share: np.ndarray) -> Figure:
    """Points [M, 2] of classes [M], each class with a colour and a marker of its own; `share` labels the axes."""
    figure = new_figure(6.2, 4.4)
    axis = figure.subplots()
    for number, (c, name) in enumerate(names.items()):
        style = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
        axis.scatter(*points[classes == c].T, s=16, alpha=0.8, linewidths=0, label=shorten(name, 24), **style)
    axis.set(
        xlabel=f"first principal component, {100 * share[0]:.0f} % of the variance",
        ylabel=f"second, {100 * share[1]:.0f} %",
    )
    legend = axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def mined(found: Mapping[int, Mapping[str, int]], most: int = 20) -> Figure:
    """How often each class was the failure class of a task, by the step after which it was mined."""
    steps = sorted(found)
    totals: dict[str, int] = {}
    for counts in found.values():
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    names = sorted(totals, key=lambda name: (-totals[name], name))[:most]
    columns = np.array_split(np.array(steps), min(len(steps), 40))
    grid = [[sum(found[step].get(name, 0) for step in column.tolist()) for column in columns] for name in names]
    figure = new_figure(6.2, 0.9 + 0.2 * len(names))
    axis = figure.subplots()
    image = axis.imshow(np.array(grid), cmap="viridis", aspect="auto", interpolation="nearest", vmin=0)
    axis.set_yticks(np.arange(len(names)), [shorten(name, 24) for name in names], fontsize=7, parse_math=False)
    shown = np.unique(np.linspace(0, len(columns) - 1, 8).astype(int))
    axis.set_xticks(shown, [str(columns[i][-1]) for i in shown])
    axis.set_xlabel("step")
    figure.colorbar(image, ax=axis, label="times the failure class", ticks=MaxNLocator(integer=True))
    return figure


def both_themes(draw: Callable[[], Figure]) -> tuple[bytes, bytes]:
    """A figure as PNG for light pages and for dark ones; `draw` is called for each."""
    light = png(draw())
    with matplotlib.rc_context(_DARK):
        return light, png(draw())


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches that lays its parts out by itself."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()

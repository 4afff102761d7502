"""The pictures of a report, each as a function from figures to a matplotlib figure, and their light and dark forms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl_jax.report import plots
from mtl_jax.report.plots import NEUTRAL, RIGHT, WRONG, new_figure, shorten

MAX_LABELS = 40
MARKERS = "osD^v*Xp<>"
# Okabe and Ito's palette without black, which a dark page swallows.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#B8A800", "#8a8a8a")
_INK = "#d7dce2"
DARK = {
    "figure.facecolor": "#171b20", "axes.facecolor": "#171b20", "savefig.facecolor": "#171b20", "text.color": _INK,
    "axes.edgecolor": "#7b848f", "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "grid.color": "#7b848f",
}  # fmt: skip


def both_themes(draw: Callable[[], Figure]) -> tuple[bytes, bytes]:
    """A picture as PNG for light pages and for dark ones; `draw` is called for each."""
    light = plots.png(draw())
    with matplotlib.rc_context(DARK):
        return light, plots.png(draw())


def accuracy_by_step(mean: np.ndarray, ci95: np.ndarray) -> Figure:
    """Mean query accuracy after 0, 1, ... inner steps, [steps + 1], with its CI95 as a band, where it is not NaN."""
    figure = new_figure(5.2, 3.2)
    axis = figure.subplots()
    steps = np.arange(len(mean))
    axis.plot(steps, 100 * mean, color=RIGHT)
    axis.fill_between(steps, 100 * (mean - ci95), 100 * (mean + ci95), color=RIGHT, alpha=0.25, linewidth=0)
    axis.set(xlabel="inner step", ylabel="query accuracy, %")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    return figure


def histogram(accuracies: np.ndarray, step: float) -> Figure:
    """How many tasks have which accuracy: [T]; `step` is the smallest difference that two tasks can have."""
    figure = new_figure(5.2, 3.2)
    axis = figure.subplots()
    width = step * max(1, round(0.025 / step))
    edges = np.arange(accuracies.min() - width / 2, accuracies.max() + width, width)
    axis.hist(100 * accuracies, bins=100 * edges, color=RIGHT)
    axis.axvline(100 * accuracies.mean(), color=WRONG, linestyle="--", label=f"mean {100 * accuracies.mean():.2f} %")
    axis.set(xlabel="query accuracy of a task, %", ylabel="tasks")
    axis.legend(frameon=False)
    return figure


def class_bars(names: Sequence[str], accuracies: Sequence[float]) -> Figure:
    """The accuracy of each class, the hardest on top; of many classes the first and the last of them."""
    names, values = [shorten(name, 24) for name in names], list(accuracies)
    if len(names) > MAX_LABELS:
        half = MAX_LABELS // 2
        names = [*names[:half], "…", *names[-half:]]
        values = [*values[:half], 0.0, *values[-half:]]
    figure = new_figure(5.2, 0.8 + 0.19 * len(names))
    axis = figure.subplots()
    places = np.arange(len(names))
    axis.barh(places, 100 * np.array(values), color=RIGHT, height=0.7)
    axis.set_yticks(places, names, fontsize=7, parse_math=False)
    axis.set(xlabel="accuracy, %", xlim=(0, 100), ylim=(len(names) - 0.3, -0.7))
    axis.grid(axis="x", alpha=0.25)
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Rates [C, C] at which a query of the row's class is answered by the column's; classes that never met are blank.

    The diagonal, which would drown the rest, is left out.
    """
    off = np.where(np.eye(len(matrix), dtype=bool), np.nan, 100 * matrix)
    figure = new_figure(6.2, 5.4)
    axis = figure.subplots()
    image = axis.imshow(np.ma.masked_invalid(off), cmap="viridis", interpolation="nearest", vmin=0)
    axis.set(xlabel="answered", ylabel="true class")
    if len(names) <= MAX_LABELS:
        short, places = [shorten(name) for name in names], np.arange(len(names))
        axis.set_xticks(places, short, fontsize=6, rotation=90, parse_math=False)
        axis.set_yticks(places, short, fontsize=6, parse_math=False)
    figure.colorbar(image, ax=axis, label="% of queries, where both classes were in the task")
    return figure


def hardest_pairs(rows: Sequence[tuple[str, np.ndarray, str, np.ndarray]]) -> Figure:
    """A row a pair of classes: name and images [n, H, W, C] of one, then of the other."""
    each = max(max(len(first), len(second)) for _, first, _, second in rows)
    axis = plots.tile_axis(2 * each + 1, len(rows))
    for row, (first_name, first, second_name, second) in enumerate(rows):
        for name, images, start in ((first_name, first, 0), (second_name, second, each + 1)):
            for column, image in enumerate(images, start):
                plots.show(axis, image, column, row)
            said = shorten(name, 28)
            axis.text(start, row * plots.ROW - 0.02, said, fontsize=8, va="bottom", parse_math=False)
    return axis.figure


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
    figure.colorbar(image, ax=axis, label="times the failure class")
    return figure


def scatter(a: np.ndarray, b: np.ndarray, names: tuple[str, str], step: float) -> Figure:
    """The accuracies of two runs on the same tasks, [T] each; points are moved a little so that equal ones are seen."""
    figure = new_figure(4.6, 4.4)
    axis = figure.subplots()
    rng = np.random.default_rng(0)
    moved = [100 * (values + rng.uniform(-0.3, 0.3, len(values)) * step) for values in (a, b)]
    ahead = b > a
    common: dict[str, Any] = {"s": 12, "alpha": 0.5, "linewidths": 0}
    axis.scatter(
        moved[0][ahead], moved[1][ahead], color=RIGHT, marker="o", label="above: the second is better", **common
    )
    axis.scatter(moved[0][~ahead], moved[1][~ahead], color=NEUTRAL, marker="s", label="others", **common)
    ends = [min(part.min() for part in moved) - 2, max(part.max() for part in moved) + 2]
    axis.plot(ends, ends, color=WRONG, linewidth=1, linestyle="--")
    axis.set_xlabel(f"{shorten(names[0], 30)}: accuracy of a task, %", parse_math=False)
    axis.set_ylabel(f"{shorten(names[1], 30)}: accuracy of a task, %", parse_math=False)
    axis.set(xlim=ends, ylim=ends, aspect="equal")
    axis.legend(frameon=False, fontsize=7)
    return figure

"""The figures of a comparison: all runs side by side, and two runs task by task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mtl_jax.data.lettering.text import shorten
from mtl_jax.data.pictures import RIGHT, WRONG
from mtl_jax.report.plots import BASELINE, NEUTRAL, PRETRAINED, draw_levels, new_figure


def runs(
    names: Sequence[str],
    intervals: Sequence[tuple[float, float | None]],
    baselines: Sequence[float | None],
    chance: float,
) -> Figure:
    """The mean accuracy of each run with its CI95, and that of its pre-training alone."""
    figure = new_figure(6.2, 1.3 + 0.35 * len(names))
    axis = figure.subplots()
    places = np.arange(len(names))
    means, widths = (100 * np.array(values, float) for values in zip(*intervals, strict=True))
    axis.errorbar(means, places, xerr=np.nan_to_num(widths), fmt="o", color=RIGHT, capsize=3, label="meta-trained")
    if any(value is not None for value in baselines):
        axis.plot(100 * np.array(baselines, float), places, "D", color=BASELINE, label=PRETRAINED)
    draw_levels(axis.axvline, chance)
    axis.set_yticks(places, [shorten(name, 30) for name in names], parse_math=False)
    axis.set(xlabel="accuracy, %", ylim=(len(names) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return figure


def scatter(
    a: np.ndarray, b: np.ndarray, names: tuple[str, str], step: float, *, chance: float | None = None,
    baselines: tuple[float | None, float | None] = (None, None),
) -> Figure:  # fmt: skip
    """The accuracies of two runs on the same tasks, [T] each; points are moved a little so that equal ones are seen.

    `chance` is the accuracy of guessing; `baselines` are the mean accuracies of each run's pre-training alone.
    """
    figure = new_figure(4.6, 4.4)
    axis = figure.subplots()
    rng = np.random.default_rng(0)
    moved = [100 * (values + rng.uniform(-0.3, 0.3, len(values)) * step) for values in (a, b)]
    ahead = b > a
    common: dict[str, Any] = {"s": 12, "alpha": 0.5, "linewidths": 0}
    axis.scatter(
        moved[0][ahead],
        moved[1][ahead],
        color=RIGHT,
        marker="o",
        label="above: the second is better",
        **common,
    )
    axis.scatter(moved[0][~ahead], moved[1][~ahead], color=NEUTRAL, marker="s", label="other tasks", **common)
    levels = [100 * chance] if chance is not None else []
    ends = [min([*levels, *(part.min() for part in moved)]) - 2, max(part.max() for part in moved) + 2]
    axis.plot(ends, ends, color=WRONG, linewidth=1, linestyle="--")
    draw_levels(axis.axvline, chance)
    for draw, value in zip((axis.axvline, axis.axhline), baselines, strict=True):
        if value is not None:
            draw(100 * value, color=BASELINE, linestyle="--", linewidth=1)
    if chance is not None:
        axis.axhline(100 * chance, color=NEUTRAL, linestyle=":")
    if any(value is not None for value in baselines):
        axis.plot([], [], color=BASELINE, linestyle="--", linewidth=1, label=f"{PRETRAINED}, mean")
    axis.set_xlabel(f"{shorten(names[0], 30)}: accuracy of a task, %", parse_math=False)
    axis.set_ylabel(f"{shorten(names[1], 30)}: accuracy of a task, %", parse_math=False)
    axis.set(xlim=ends, ylim=ends, aspect="equal")
    axis.legend(frameon=False, fontsize=7)
    return figure

"""Pictures of runs and of episodes as matplotlib figures; nothing here needs a display or pyplot's global state."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mtl_jax.errors import MtlError
from mtl_jax.workdir.writers import read_jsonl

PHASES = {"pretrain": "pre-training", "meta": "meta-training"}
# Blue and vermilion, as in Okabe and Ito's palette: people with any common colour blindness tell them apart. Both are
# readable on white and on black.
RIGHT, WRONG, NEUTRAL = "#2b83c4", "#D55E00", "#8a8a8a"
ROW = 1.22  # height of a row of small pictures, in pictures: a line of text is between two
_GAP = 0.03  # around each of them
_LABEL = 14  # characters of a class name beside a small picture

Curve = tuple[np.ndarray, np.ndarray]


def curves(metrics_path: str | Path) -> dict[str, Curve]:
    """Every scalar of a run by name: (steps [n], values [n]).

    Raises:
      MtlError: the file cannot be read, or is not what a run writes.
    """
    found: dict[str, dict[int, float]] = {}
    for record in read_jsonl(metrics_path):
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, {})[record["step"]] = value
    return {name: (np.array(list(by)), np.array(list(by.values()), float)) for name, by in found.items()}


def learning_curves(metrics_path: str | Path, wanted: Sequence[str] = tuple(PHASES)) -> Figure:
    """Accuracy (above) and loss (below) of each of the `wanted` phases that a metrics.jsonl has, over its steps.

    Training is a line; validation has a marker at each measurement and its CI95 as a band.

    Raises:
      MtlError: there is no curve in the file.
    """
    found = curves(metrics_path)
    phases = [phase for phase in wanted if any(name.startswith(f"{phase}/") for name in found)]
    if not phases:
        raise MtlError(f"{metrics_path}: no metrics yet; train for config.runtime.log_every steps at least")
    figure = new_figure(5.2 * len(phases), 5.2)
    grid = figure.subplots(2, len(phases), squeeze=False, sharex="col")
    for column, phase in zip(grid.T, phases, strict=True):
        mine = {name.partition("/")[2]: curve for name, curve in found.items() if name.startswith(f"{phase}/")}
        _draw_phase(column, mine)
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


def episode(
    support: np.ndarray,
    query: np.ndarray,
    query_labels: Sequence[int],
    predictions: Sequence[int],
    class_names: Sequence[str],
    *,
    caption: str = "support images | query images",
) -> Figure:
    """One task: a row a class, its support images, then its query images, with what was predicted for each.

    A right answer has a thin blue frame; a wrong one a thick dashed vermilion frame, a cross, and the name of the class
    that was answered, so the two differ without colour as well.

    Args:
      support: uint8 [N K, H, W, C], class-major.
      query: uint8 [B, H, W, C].
      query_labels: the true classes of `query`, 0..N-1.
      predictions: the predicted ones.
      class_names: N names.
      caption: what the rows are, above them; how many answers are right is added.

    Raises:
      ValueError: sizes that do not belong together.
    """
    labels, predictions = np.asarray(query_labels), np.asarray(predictions)
    way = len(class_names)
    if len(support) % way or not len(query) == len(labels) == len(predictions):
        raise ValueError(f"{way} classes, {len(support)} support images, {len(query)} queries, {len(labels)} labels, "
                         f"{len(predictions)} predictions do not make an episode")  # fmt: skip
    shot = len(support) // way
    columns = shot + 1 + int(np.bincount(labels, minlength=way).max())
    axis = tile_axis(columns, way, left=1.7)
    for c, name in enumerate(class_names):
        axis.text(-0.1, c * ROW + 0.5, shorten(name), ha="right", va="center", fontsize=8, parse_math=False)
        for column, image in enumerate(support[c * shot : (c + 1) * shot]):
            show(axis, image, column, c)
        for column, i in enumerate(np.flatnonzero(labels == c), shot + 1):
            show(axis, query[i], column, c)
            mark(axis, column, c, bool(predictions[i] == c), class_names[predictions[i]])
    right = int((labels == predictions).sum())
    axis.text(0, -0.12, f"{caption}: {right} of {len(labels)} right", fontsize=9, va="bottom")
    return axis.figure


def shorten(name: str, length: int = _LABEL) -> str:
    """A name's end, where all of it does not fit: class names with folders in them differ at their ends."""
    return name if len(name) <= length else "…" + name[1 - length :]


def tile_axis(columns: int, rows: int, *, left: float = 0.1) -> Axes:
    """The one axis of a new figure for small pictures in columns and rows, with room for texts on the left.

    One axis for all of them: laying out an axis for each takes seconds.
    """
    width, height = left + columns + 0.1, rows * ROW + 0.3
    figure = Figure(figsize=(0.78 * width, 0.78 * height))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set(xlim=(-left, columns + 0.1), ylim=(rows * ROW, -0.3), aspect="equal", autoscale_on=False)
    return axis


def show(axis: Axes, image: np.ndarray, column: int, row: int) -> None:
    """Draws an image, uint8 [H, W, C] with C 1 or 3, at its place in a `tile_axis`."""
    pixels = image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)
    extent = (column + _GAP, column + 1 - _GAP, row * ROW + 1 - _GAP, row * ROW + _GAP)
    axis.imshow(pixels, interpolation="nearest" if image.shape[0] < 64 else "antialiased", extent=extent)
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())


def mark(axis: Axes, column: int, row: int, is_right: bool, answer: str) -> None:
    """Frames a shown image as a right or a wrong answer."""
    style: dict[str, Any] = {"edgecolor": RIGHT, "linewidth": 1.0}
    if not is_right:
        style = {"edgecolor": WRONG, "linewidth": 2.5, "linestyle": (0, (3, 1))}
        place = (column + 0.5, row * ROW + 1)
        said = f"✗ {shorten(answer, 11)}"
        axis.text(*place, said, ha="center", va="top", fontsize=6, color=WRONG, parse_math=False)
    side = 1 - 2 * _GAP
    axis.add_patch(Rectangle((column + _GAP, row * ROW + _GAP), side, side, fill=False, **style))


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


def save(figure: Figure, path: str | Path, *, dpi: int = 110) -> None:
    """Writes a figure as PNG, PDF or SVG, as the path's ending says.

    Raises:
      MtlError: it cannot be written there.
    """
    try:
        os.makedirs(Path(path).parent, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:
        raise MtlError(f"{path}: cannot be written: {error}; give a path that ends in .png, .pdf or .svg") from error

"""The pictures of `replay`: tasks, or a batch of pre-training, with names and predictions, in one PNG."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from mtl_jax.data import Split
from mtl_jax.data.pictures import label_font
from mtl_jax.errors import MtlError
from mtl_jax.report import plots
from mtl_jax.workdir import write_bytes_atomic

MAX_TASKS = 16  # in a picture; those that are not finite come first
MAX_IMAGES = 96  # of a batch
_LINE = 18  # pixels of a title


class Drawn(NamedTuple):
    """A figure and the line above it; what is not `fine` is shown first."""

    title: str
    figure: Figure
    fine: bool


def task(
    split: Split, sets: tuple[np.ndarray, np.ndarray], predictions: np.ndarray, number: int, loss: float, fine: bool
) -> Drawn:
    """A task of positions (support [N, K], query [N, Q]) with the predictions [N Q] of its query images."""
    support, query = sets
    names = [split.class_names[split.labels[row[0]]] for row in support]
    labels = np.repeat(np.arange(len(names)), query.shape[1])
    figure = plots.episode(split.images[support.ravel()], split.images[query.ravel()], labels, predictions, names)
    return Drawn(f"task {number}: loss {loss:.6g}{'' if fine else ', not finite'}", figure, fine)


def batch(split: Split, rows: np.ndarray, predictions: np.ndarray, number: int, loss: float, fine: bool) -> Drawn:
    """A batch of pre-training, positions [B] with their predictions [B]: a row a class."""
    shown, answers = rows[:MAX_IMAGES], predictions[:MAX_IMAGES]
    classes, found = np.unique(np.concatenate([split.labels[shown], answers]), return_inverse=True)
    names = [split.class_names[label] for label in classes]
    empty = split.images[:0]
    figure = plots.episode(
        empty, split.images[shown], found[: len(shown)], found[len(shown) :], names, caption="images of the batch"
    )
    of = f", the first {len(shown)} of {len(rows)} images" if len(shown) < len(rows) else ""
    return Drawn(f"batch: loss {loss:.6g}{'' if fine else ', not finite'}{of}", figure, fine)


def save(path: Path, drawn: Sequence[Drawn]) -> Path:
    """Writes the figures below each other as a PNG. Raises MtlError where it cannot be written."""
    shown = sorted(drawn, key=lambda one: one.fine)[:MAX_TASKS]
    images = [Image.open(io.BytesIO(plots.png(one.figure))).convert("RGB") for one in shown]
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height + _LINE for i in images)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for one, image in zip(shown, images, strict=True):
        pen.text((8, top + 2), one.title, fill="black", font=label_font())
        sheet.paste(image, (0, top + _LINE))
        top += image.height + _LINE
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    try:
        write_bytes_atomic(path, buffer.getvalue())
    except OSError as error:
        raise MtlError(f"{path}: cannot be written: {error.strerror}") from error
    return path

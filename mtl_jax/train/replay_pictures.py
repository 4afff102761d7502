"""The picture of a replayed step: its tasks, or its batch of pre-training, with names and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_jax.data import Split, pictures

MAX_TASKS = 16  # in a picture; those that are not finite come first
MAX_IMAGES = 96  # of a batch


class Drawn(NamedTuple):
    """The picture of a task or a batch, and whether its loss and gradient are finite."""

    picture: Image.Image
    finite: bool


def task(
    split: Split, sets: tuple[np.ndarray, np.ndarray], predictions: np.ndarray, number: int, loss: float, finite: bool
) -> Drawn:
    """A task of positions (support [N, K], query [N, Q]) with the predictions [N Q] of its query images."""
    caption = f"task {number}: {_describe(loss, finite)}; support images | query images"
    return Drawn(pictures.task_episode(split, *sets, predictions, caption=caption), finite)


def batch(split: Split, rows: np.ndarray, predictions: np.ndarray, number: int, loss: float, finite: bool) -> Drawn:
    """A batch of pre-training, positions [B] with their predictions [B]: a row for each class."""
    shown, answers = rows[:MAX_IMAGES], predictions[:MAX_IMAGES]
    classes, numbers = np.unique(np.concatenate([split.labels[shown], answers]), return_inverse=True)
    names = [split.class_names[label] for label in classes]
    some = f"the first {len(shown)} of {len(rows)} " if len(shown) < len(rows) else ""
    caption = f"batch: {_describe(loss, finite)}; {some}images"
    labels, answers = numbers[: len(shown)], numbers[len(shown) :]
    picture = pictures.episode(split.images[:0], split.images[shown], labels, answers, names, caption=caption)
    return Drawn(picture, finite)


def _describe(loss: float, finite: bool) -> str:
    return f"loss {loss:.6g}{'' if finite else ', not finite'}"


def save(path: Path, drawn: Sequence[Drawn]) -> Path:
    """Writes the pictures below each other as a PNG file, and returns its path. Raises DataError."""
    shown = sorted(drawn, key=lambda one: one.finite)[:MAX_TASKS]
    pictures.save(pictures.below(*(one.picture for one in shown)), path)
    return path

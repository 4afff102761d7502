"""Temperatures that were measured for the networks of the package; `python -m results confidence` writes the table."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.classify import unknown

TABLE = Path(__file__).parents[1] / "export" / "temperatures.json"


def temperature(network: str, features: np.ndarray, labels: np.ndarray, way: int) -> float | None:
    """The temperature of the default head on a network's features, between the measured numbers of classes and images.

    Classes that look more alike to the network, by `likeness_of_classes`, get a higher one, as measured.

    Args:
      network: a name, as of `FewShotClassifier.from_pretrained`.
      features: of the support images, [S, F].
      labels: of the support images, int [S]; of classes with unequal numbers of images the geometric mean counts.
      way: number of classes.

    Returns:
      None if nothing was measured for that network.
    """
    table = _table().get(str(network))
    if table is None or way < 2:
        return None
    shot = np.log(np.bincount(labels, minlength=way)).mean()
    of_ways = [np.interp(shot, np.log(table["shots"]), np.log(row)) for row in table["temperatures"]]
    likeness = np.clip(likeness_of_classes(features, labels, way), *table["range"])
    alike = table["slope"] * (likeness - table["likeness"])
    return float(np.exp(np.interp(np.log(way), np.log(table["ways"]), of_ways) + alike))


def likeness_of_classes(features: np.ndarray, labels: np.ndarray, way: int) -> float:
    """The mean cosine of two rows of different classes, of rows [S, F] with labels int [S]."""
    rows = unknown.unit(features)
    sums, counts = np.zeros((way, rows.shape[1])), np.bincount(labels, minlength=way)
    np.add.at(sums, labels, rows)
    pairs = len(rows) ** 2 - (counts**2).sum()
    return float(((sums.sum(0) ** 2).sum() - (sums**2).sum()) / pairs)


@functools.cache
def _table() -> Mapping[str, Any]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}

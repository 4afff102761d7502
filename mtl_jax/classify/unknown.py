"""Photographs of none of the classes: how like the support set a photograph is, and when that is too little."""

from typing import Any

import numpy as np

from mtl_jax.errors import ConfigError

AUTO = "auto"


def likeness(features: np.ndarray, support: np.ndarray, labels: np.ndarray, way: int) -> np.ndarray:
    """The cosine of each row with the class that is nearest to it, [B].

    A class is the mean of its support rows, each brought to length 1 first.

    Args:
      features: [B, F].
      support, labels: [S, F], int [S], with rows of every class.
      way: number of classes.
    """
    sums = np.zeros((way, support.shape[1]))
    np.add.at(sums, labels, unit(support))
    return (unit(features) @ unit(sums).T).max(1)


def held_out_likeness(support: np.ndarray, labels: np.ndarray, way: int) -> np.ndarray:
    """The likeness of each support row to the classes without it, [R]. A class's only row is never left out."""
    rows, sums = unit(support), np.zeros((way, support.shape[1]))
    np.add.at(sums, labels, rows)
    rest = np.bincount(labels, minlength=way)[labels] > 1
    rows, labels = rows[rest], labels[rest]
    cosines = rows @ unit(sums).T
    own = unit(sums[labels] - rows)
    cosines[np.arange(len(rows)), labels] = (rows * own).sum(1)
    return cosines.max(1, initial=-1)


def threshold(support: np.ndarray, labels: np.ndarray, way: int, false_alarms: float) -> float:
    """The likeness below which a photograph is unknown: the share `false_alarms` of held-out support rows are.

    Raises:
      ConfigError: no class has two rows, so none can be left out.
    """
    held_out = held_out_likeness(support, labels, way)
    if not len(held_out):
        raise ConfigError(
            "unknown_threshold is 'auto', but no class has a second photograph to choose it on; add one to any class, "
            "or give a probability (--unknown=P)"
        )
    return float(np.quantile(held_out, false_alarms))


def is_unknown(classifier: Any, probabilities: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """Whether rows are unknown to a fitted FewShotClassifier that has an `unknown_threshold`: bool [B].

    Args:
      classifier: with its parameters and its support set.
      probabilities: [B, N].
      scores: the likeness of the rows, [B]; None is enough for a threshold of probabilities.

    Raises:
      ConfigError: no scores where the threshold is of them, or none can be chosen.
    """
    if classifier.unknown_threshold != AUTO:
        return probabilities.max(1) < classifier.unknown_threshold
    if scores is None:
        raise ConfigError("unknown_threshold is 'auto', which probabilities do not tell; call predict")
    support = classifier.support_features_, classifier.support_labels_, len(classifier.classes_)
    return scores < threshold(*support, classifier.false_alarms)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [S, F] brought to length 1, float64; those of zeros stay."""
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)

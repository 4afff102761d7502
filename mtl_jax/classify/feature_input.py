"""Checks of features and labels, with the messages that people know from scikit-learn."""

import warnings
from typing import Any

import numpy as np

from mtl_jax.classify.sklearn_bases import DataConversionWarning


def check_features(x: Any, expected: int | None, name: str) -> np.ndarray:
    """A 2-D array of finite numbers, [B, F], as float64 (float32 stays).

    Args:
      x: what was given.
      expected: F, where it is known from fitting.
      name: the estimator's, for messages.

    Raises:
      ValueError, TypeError: it is not that.
    """
    if hasattr(x, "toarray"):
        raise TypeError("Sparse data was passed for X, but dense data is required; use X.toarray()")
    array = _as_floats(np.asarray(x))
    if array.ndim != 2:
        raise ValueError(
            f"Expected 2D array of features, got {array.ndim}D array instead. Reshape your data with X.reshape(-1, 1) "
            "if it has a single feature or X.reshape(1, -1) if it is a single sample; images are uint8 [B, H, W, C]"
        )
    for axis, what in ((0, "sample(s)"), (1, "feature(s)")):
        if not array.shape[axis]:
            raise ValueError(f"0 {what} (shape={array.shape}) while a minimum of 1 is required.")
    if not np.isfinite(array).all():
        raise ValueError(f"Input X contains {'NaN' if np.isnan(array).any() else 'infinity'}.")
    if expected is not None and array.shape[1] != expected:
        raise ValueError(
            f"X has {array.shape[1]} features, but {name} is expecting {expected} features as input"
        )  # fmt: skip
    return array


def _as_floats(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported")
    if array.dtype in (np.float32, np.float64):
        return array
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise type(error)(f"X cannot be read as numbers: {error}; argument must be a string or a number") from error


def check_labels(y: Any, rows: int) -> np.ndarray:
    """Labels, a text or a whole number each: [rows].

    Raises:
      ValueError: another number of them, or of another kind.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        message = "A column-vector y was passed when a 1d array was expected; change its shape to (n_samples,)"
        warnings.warn(message, DataConversionWarning, stacklevel=3)
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {labels.shape} instead.")
    if len(labels) != rows:
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {[rows, len(labels)]}")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise ValueError(f"Input y contains {'NaN' if np.isnan(labels).any() else 'infinity'}.")
        if (labels != np.round(labels)).any():
            raise ValueError("Unknown label type: continuous. Labels must be texts or whole numbers")
    return labels

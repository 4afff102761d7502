"""Cross-entropy, accuracy, and means with their 95 % confidence intervals."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.errors import ConfigError
from mtl_jax.types import Array
from mtl_jax.words import counted


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % confidence interval: 1.96 σ / sqrt(n), σ with ddof 0; None for n = 1."""

    mean: float
    ci95: float | None


def check_labels(labels: Array, way: int) -> None:
    """Raises ConfigError unless all labels are 0..`way` - 1. Under `jit` their values are unknown and not checked."""
    values = np.zeros(1) if isinstance(labels, jax.core.Tracer) else np.asarray(labels)
    if values.size and (values.min() < 0 or values.max() >= way):
        raise ConfigError(
            f"labels are {values.min()} to {values.max()}, expected 0 to {way - 1} for a head of {way} classes"
        )


def _check_shapes(logits: Array, labels: Array) -> None:
    if jnp.shape(labels) != jnp.shape(logits)[:-1]:
        shapes = f"labels have shape {jnp.shape(labels)} and logits {jnp.shape(logits)}"
        raise ConfigError(f"{shapes}, expected a label for each row of logits, {jnp.shape(logits)[:-1]}")


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of each row: logits [..., N], int labels [...] -> [...]; NaN where a label is not 0..N-1.

    Raises:
      ConfigError: there is not one label for each row.
    """
    _check_shapes(logits, labels)
    labels = jnp.where(labels < 0, logits.shape[-1], labels)  # -1 would be the last class; too large a label gives NaN
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: Array, labels: Array) -> Array:
    """Fraction of rows whose largest logit is the label's: logits [..., B, N], labels [..., B] or [B] -> [...].

    Raises:
      ConfigError: there is not one label for each row.
    """
    _check_shapes(logits[(0,) * (logits.ndim - 2)] if jnp.ndim(labels) == 1 else logits, labels)
    return (logits.argmax(-1) == labels).mean(-1)


def class_accuracy(logits: Array, labels: Array) -> Array:
    """Accuracy of each class of a task: logits [B, N], labels [B] -> [N]; 0 for a class without a row."""
    _check_shapes(logits, labels)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    correct = (logits.argmax(-1) == labels).astype(one_hot.dtype)
    return correct @ one_hot / jnp.maximum(one_hot.sum(0), 1)


def mean_interval(values: np.ndarray, distinct: int | None = None) -> Interval:
    """Mean and 95 % confidence interval of a sample, as both references print them: [n] -> Interval.

    A single value has no interval; neither has one task that was drawn n times. `distinct` is the number of distinct
    tasks among the n, if known.
    """
    values = np.asarray(values, np.float64)
    if min(values.size, distinct or values.size) < 2:
        return Interval(float(values.mean()), None)
    return Interval(float(values.mean()), float(1.96 * values.std() / np.sqrt(values.size)))


def in_percent(mean: float, ci95: float | None, sign: str = "", digits: int = 2) -> str:
    """Fractions as percentages: '51.20 ± 0.43', or '51.20' without an interval. `sign` '+' is for differences."""
    interval = "" if ci95 is None else f" ± {100 * ci95:.{digits}f}"
    return f"{100 * mean:{sign}.{digits}f}{interval}"


def describe_chance(chance: float) -> str:
    """The accuracy of guessing, a fraction, as text: 'chance 20 %'."""
    return f"chance {100 * chance:.3g} %"


def describe_tasks(count: int, distinct: int | None = None) -> str:
    """The number of tasks as text: '600 tasks', or '40 tasks, 12 of them distinct' if some are the same."""
    tasks = counted(count, "task")
    return tasks if distinct in (None, count) else f"{tasks}, {distinct} of them distinct"


def paired_difference(a: np.ndarray, b: np.ndarray, distinct: int | None = None) -> Interval:
    """Mean and 95 % confidence interval of a - b, both [n] on the same tasks, so that hard tasks cancel.

    `distinct` as in `mean_interval`.

    Raises:
      ValueError: a and b have different numbers of tasks.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"paired samples of shapes {np.shape(a)} and {np.shape(b)}")
    return mean_interval(np.asarray(a, np.float64) - np.asarray(b, np.float64), distinct)

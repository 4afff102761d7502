"""The head of a classifier for use: any classes, any and unequal shots, from zero; its probabilities calibrated.

The loss is balanced: sum over rows of cross-entropy / (classes * rows of the class), which for equal shots is the mean.
Its minimiser does not depend on the order of the classes, since all columns start alike.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import base_learner
from mtl_jax.types import Array, Params

TEMPERATURES = np.geomspace(0.05, 20, 241)
LEAVE_ONE_OUT_ROWS = 100  # above it, as many folds as `FOLDS`: leaving one out costs rows**3
FOLDS = 10
DOUBT = 0.5
AUTO_LR = "auto"


def balanced_weights(labels: np.ndarray, way: int) -> np.ndarray:
    """The weight of each row, float32 [S], each class having 1 / (classes with rows) in all; int labels [S]."""
    counts = np.bincount(labels, minlength=way)
    return (1 / (np.count_nonzero(counts) * counts[labels])).astype(np.float32)


def step_size(features: np.ndarray, weights: np.ndarray) -> float:
    """The largest step with which gradient descent on the balanced loss never goes up: 1 / L.

    The Hessian of softmax regression is at most half of the weighted second moment of [z, 1], in the order of
    symmetric matrices (Böhning, 1992), so L = λmax(Σ w [z, 1][z, 1]ᵀ) / 2.

    Args:
      features: [S, F].
      weights: [S].
    """
    rows = np.sqrt(weights)[:, None] * np.hstack([features, np.ones((len(features), 1))])
    return float(2 / max(np.linalg.norm(rows.astype(np.float64), 2) ** 2, 1e-12))


def centre_and_rate(
    features: np.ndarray, labels: np.ndarray, way: int, lr: float | str
) -> tuple[np.ndarray, float]:  # fmt: skip
    """What is taken off the features, [F], and the step size: for a number, nothing and itself.

    For 'auto' the balanced mean, without which the steps would have to be small for its sake, and `step_size`.
    """
    if lr != AUTO_LR:
        return np.zeros(features.shape[1]), float(lr)
    weights = balanced_weights(labels, way)
    centre = weights @ features
    return centre, step_size(features - centre, weights)


def fit_head(features: np.ndarray, labels: np.ndarray, way: int, *, steps: int, lr: float) -> Params:
    """The head after `steps` updates from zero on the balanced loss: {'kernel': [F, N], 'bias': [N]} as NumPy arrays.

    Args:
      features: float32 [S, F].
      labels: int [S], 0..N-1.
      way: N.
      steps: number of updates.
      lr: their size.
    """
    padded = _pad(features, labels, balanced_weights(labels, way)[None])
    head = _adapt(_zero_head(features.shape[1], way), *padded, lr, steps=steps)
    return {name: np.asarray(value, np.float64) for name, value in head.items()}


def held_out_logits(features: np.ndarray, labels: np.ndarray, way: int, *, steps: int, lr: float) -> np.ndarray:
    """The logits of each row by a head that was fitted without it: [S, N].

    Up to `LEAVE_ONE_OUT_ROWS` rows each is left out alone, above that every tenth of them together.
    Arguments as `fit_head`.
    """
    rows = len(labels)
    folds = rows if rows <= LEAVE_ONE_OUT_ROWS else FOLDS
    # Rows of a class are dealt out over the folds, so that none loses a class.
    fold = np.empty(rows, np.int64)
    fold[np.argsort(labels, kind="stable")] = np.arange(rows) % folds
    weights = np.zeros((folds, rows), np.float32)
    for number in range(folds):
        kept = np.flatnonzero(fold != number)
        weights[number, kept] = balanced_weights(labels[kept], way)
    padded_features, padded_labels, padded_weights = _pad(features, labels, weights)
    logits = _held_out(
        _zero_head(features.shape[1], way), padded_features, padded_labels, padded_weights, lr, steps=steps
    )
    return np.asarray(logits, np.float64)[fold, np.arange(rows)]


def calibrate(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T of `TEMPERATURES` with which softmax(logits / T) is most likely; 1 where nothing can be said.

    Rows of classes with a single row say nothing, since without it their class has none. The rows' targets are not 1
    and 0 but smoothed as if `DOUBT` more rows had been seen, spread over the classes: a few rows that were all right do
    not make certainty. (Half a row: with 3 to 10 shots on Omniglot and glyphs the confidence is then within 2 to 10
    points of the accuracy; with Platt's rule, which adds a row a class, it is 13 to 26 points too low.)

    Args:
      logits: [S, N], of rows that the head has not seen.
      labels: int [S].
    """
    way = logits.shape[1]
    counts = np.bincount(labels, minlength=way)
    usable = counts[labels] > 1
    if way < 2 or not usable.any():
        return 1.0
    logits, labels = logits[usable], labels[usable]
    targets = np.full(logits.shape, DOUBT / way / (len(labels) + DOUBT))
    targets[np.arange(len(labels)), labels] += len(labels) / (len(labels) + DOUBT)
    weights = balanced_weights(labels, way)
    losses = [-(weights @ (targets * log_softmax(logits / t)).sum(1)) for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logits [S, N] -> their logarithms of probabilities, without overflow."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _zero_head(features: int, way: int) -> Params:
    return base_learner.init_head(jax.random.key(0), features, way, init="zero")


def _pad(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows of weight 0 up to the next power of two: they change nothing, and few shapes are compiled."""
    missing = (1 << (len(labels) - 1).bit_length()) - len(labels)
    features = np.pad(np.asarray(features, np.float32), ((0, missing), (0, 0)))
    return features, np.pad(np.asarray(labels, np.int32), (0, missing)), np.pad(weights, ((0, 0), (0, missing)))


@functools.partial(jax.jit, static_argnames="steps")
def _adapt(head: Params, features: Array, labels: Array, weights: Array, lr: Array, *, steps: int) -> Params:
    return base_learner.adapt_head(head, features, labels, steps=steps, lr=lr, weights=weights[0])


@functools.partial(jax.jit, static_argnames="steps")
def _held_out(head: Params, features: Array, labels: Array, weights: Array, lr: Array, *, steps: int) -> Array:
    def one_fold(weights):
        return base_learner.adapted_logits(head, features, labels, features, steps=steps, lr=lr, weights=weights)

    # A map, not a vmap: folds share nothing but the Gram matrix, and rows**2 numbers a fold are enough at a time.
    return jax.lax.map(one_fold, jnp.asarray(weights), batch_size=16)

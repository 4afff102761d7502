"""The linear head of FewShotClassifier: fitted from zero on any number of classes and images, then calibrated.

The loss is balanced: the sum over rows of cross-entropy / (number of classes * rows of that class). With equally many
rows per class it is the mean. The columns all start at zero, so the order of the classes does not matter.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import base_learner
from mtl_jax.types import Array, Params

TEMPERATURES = np.geomspace(0.05, 20, 241)
LEAVE_ONE_OUT_ROWS = 100  # with more rows, `FOLDS` folds: leave-one-out costs rows**3
FOLDS = 10
SMOOTHING_ROWS = 0.5
SPREAD = 0.3  # standard deviation of the temperature's logarithm around the measured one
STEPS, AUTO_LR = 100, "auto"


def balanced_weights(labels: np.ndarray, way: int) -> np.ndarray:
    """Weights of rows with labels int [S], float32 [S]: those of one class sum to 1 / (number of classes with rows)."""
    counts = np.bincount(labels, minlength=way)
    return (1 / (np.count_nonzero(counts) * counts[labels])).astype(np.float32)


def step_size(features: np.ndarray, weights: np.ndarray) -> float:
    """The largest step for which gradient descent on the balanced loss never increases it: 1 / L.

    The Hessian of softmax regression is at most half the weighted second moment of [z, 1], in the order of symmetric
    matrices (Böhning, 1992), so L = λmax(Σ w [z, 1][z, 1]ᵀ) / 2.

    Args:
      features: [S, F].
      weights: [S].
    """
    rows = np.sqrt(weights)[:, None] * np.hstack([features, np.ones((len(features), 1))])
    return float(2 / max(np.linalg.norm(rows.astype(np.float64), 2) ** 2, 1e-12))


def centre_and_rate(features: np.ndarray, labels: np.ndarray, way: int, lr: float | str) -> tuple[np.ndarray, float]:
    """The vector to subtract from the features, [F], and the step size.

    If `lr` is a number: zeros and that number. If it is 'auto': the class-balanced mean (a large mean would force small
    steps) and `step_size`.
    """
    if lr != AUTO_LR:
        return np.zeros(features.shape[1]), float(lr)
    weights = balanced_weights(labels, way)
    centre = weights @ features
    return centre, step_size(features - centre, weights)


def fitted(
    features: np.ndarray,
    labels: np.ndarray,
    way: int,
    *,
    steps: int,
    lr: float | str,
    temperature: float | None,
    measured: float | None = None,
) -> dict[str, Any]:
    """The head for features as they are, and its temperature: {'coef': [F, N], 'intercept': [N], 'temperature'}.

    Arguments as of FewShotClassifier; `measured` as in `calibrate`.
    """
    centre, lr = centre_and_rate(features, labels, way, lr)
    head = fit_head(features - centre, labels, way, steps=steps, lr=lr)
    if temperature is None:
        held_out = held_out_logits(features - centre, labels, way, steps=steps, lr=lr)
        temperature = calibrate(held_out, labels, measured)
    intercept = head["bias"] - centre @ head["kernel"]
    return {"coef": head["kernel"], "intercept": intercept, "temperature": temperature}


def fit_head(features: np.ndarray, labels: np.ndarray, way: int, *, steps: int, lr: float) -> Params:
    """The head after `steps` updates from zero on the balanced loss: NumPy arrays {'kernel': [F, N], 'bias': [N]}.

    Args:
      features: float32 [S, F].
      labels: int [S], 0..N-1.
      way: N.
      steps: number of updates.
      lr: step size.
    """
    padded = _pad(features, labels, balanced_weights(labels, way)[None])
    head = _adapt(_zero_head(features.shape[1], way), *padded, lr, steps=steps)
    return {name: np.asarray(value, np.float64) for name, value in head.items()}


def held_out_logits(features: np.ndarray, labels: np.ndarray, way: int, *, steps: int, lr: float) -> np.ndarray:
    """The logits of each row from a head that was fitted without it: [S, N].

    Up to `LEAVE_ONE_OUT_ROWS` rows are left out one at a time; of more, a tenth at a time. Arguments as in `fit_head`.
    """
    fold_of_row, rows = folds(labels), len(labels)
    weights = np.zeros((fold_of_row.max() + 1, rows), np.float32)
    for fold in range(len(weights)):
        kept = np.flatnonzero(fold_of_row != fold)
        weights[fold, kept] = balanced_weights(labels[kept], way)
    padded = _pad(features, labels, weights)
    logits = _held_out(_zero_head(features.shape[1], way), *padded, lr, steps=steps)
    return np.asarray(logits, np.float64)[fold_of_row, np.arange(rows)]


def folds(labels: np.ndarray) -> np.ndarray:
    """The fold of each row, int [S]: with it the row is left out.

    The rows of each class are spread over the folds, so that no fold takes all of a class of two or more rows away.
    """
    rows = len(labels)
    fold_of_row = np.empty(rows, np.int64)
    count = rows if rows <= LEAVE_ONE_OUT_ROWS else FOLDS
    fold_of_row[np.argsort(labels, kind="stable")] = np.arange(rows) % count
    return fold_of_row


def calibrate(logits: np.ndarray, labels: np.ndarray, measured: float | None = None) -> float:
    """The temperature T in `TEMPERATURES` that makes the labels most likely under softmax(logits / T).

    It is `measured`, or else 1, if the rows cannot tell: a class's only row says nothing, since the head that left it
    out did not know the class. Temperatures near `measured` are more likely to begin with. Targets are
    smoothed as if `SMOOTHING_ROWS` more rows had been seen, spread evenly over the classes, because a few correct rows
    are no reason to be certain. (With half a row and 3 to 10 shots of Omniglot or glyphs, the confidence is within 2 to
    10 points of the accuracy. Platt's rule adds a row per class and is 13 to 26 points low.)

    Args:
      logits: [S, N], of rows that the head has not seen.
      labels: int [S].
      measured: the temperature that suited other classes with as many rows, on the same network's features.
    """
    way = logits.shape[1]
    counts = np.bincount(labels, minlength=way)
    usable = counts[labels] > 1
    if way < 2 or not usable.any():
        return measured or 1.0
    logits, labels = logits[usable], labels[usable]
    targets = np.full(logits.shape, SMOOTHING_ROWS / way / (len(labels) + SMOOTHING_ROWS))
    targets[np.arange(len(labels)), labels] += len(labels) / (len(labels) + SMOOTHING_ROWS)
    weights = balanced_weights(labels, way)
    losses = np.array([-(weights @ (targets * log_softmax(logits / t)).sum(1)) for t in TEMPERATURES])
    if measured:
        losses = len(labels) * losses + (np.log(TEMPERATURES / measured) / SPREAD) ** 2 / 2
    return float(TEMPERATURES[int(np.argmin(losses))])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits [S, N], without overflow."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _zero_head(features: int, way: int) -> Params:
    return base_learner.init_head(jax.random.key(0), features, way, init="zero")


def _pad(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Adds rows of weight 0 up to the next power of two: they change nothing, and few shapes are compiled."""
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

    # A map, not a vmap: folds share only the Gram matrix, and each needs rows**2 numbers of memory.
    return jax.lax.map(one_fold, jnp.asarray(weights), batch_size=16)

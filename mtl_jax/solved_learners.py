"""Base-learners that are solved, not stepped: nearest prototypes, ridge regression, logistic regression.

Each is a value: `learner.init(key, features)` is what it meta-learns, `learner(learned, support, labels, query)` the
query logits of one task. Both orders of derivatives are exact for every array, also in `jit` and `vmap`. Rows may come
in any order, and classes may have different numbers of them: labels say which row belongs to which class.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.feature_transform import transform, unit
from mtl_jax.logistic import gram_matrix, minimise
from mtl_jax.metrics import check_labels
from mtl_jax.types import Array, Params

DISTANCES = {"euclidean": 1.0, "cosine": 10.0}  # and the scale that each starts from


class Prototypes(NamedTuple):
    """The class whose mean support feature is nearest wins: -scale |z - c|² (Snell et al. 2017), or scale cos(z, c).

    way: N. distance: 'euclidean' or 'cosine'. scale: where the learned scale starts; None: 1 or, of cosine, 10.
    features: how they are normalised first, see `feature_transform`.
    """

    way: int
    distance: str = "euclidean"
    scale: float | None = None
    features: str = "plain"

    def init(self, key: Array, features: int) -> Params:
        """{'scale': []}. Raises ConfigError if `distance` is unknown."""
        del key, features
        return {"scale": jnp.asarray(_default_scale(self.distance) if self.scale is None else float(self.scale))}

    def __call__(self, learned: Params, support: Array, labels: Array, query: Array) -> Array:
        """Query logits [Q, N] of one task.

        Args:
          learned: from `init`.
          support: features [S, F].
          labels: int [S].
          query: features [Q, F].

        Raises:
          ConfigError: an unknown `distance`, shapes do not fit together, labels are not 0..N-1, or a class has no row.
            Under `jit` labels are unknown: a wrong one, or a class without a row, makes NaN.
        """
        _default_scale(self.distance)
        support, query, targets = _prepare(self, support, labels, query, every_class=True)
        with jax.default_matmul_precision("highest"):
            centre = support.mean(0)  # distances of small numbers, so that their expanded form cancels little
            if self.distance == "euclidean":
                support, query = support - centre, query - centre
            prototypes = targets.T @ support / targets.sum(0)[:, None]
            if self.distance == "cosine":
                return learned["scale"] * (unit(query) @ unit(prototypes).T)
            squares = (query**2).sum(1)[:, None] + (prototypes**2).sum(1)
            return -learned["scale"] * (squares - 2 * query @ prototypes.T)


def _default_scale(distance: str) -> float:
    if distance not in DISTANCES:
        raise ConfigError(f"distance is {distance!r}, expected one of {', '.join(DISTANCES)}")
    return DISTANCES[distance]


class Ridge(NamedTuple):
    """Ridge regression of one-hot labels, in closed form (R2D2, Bertinetto et al. 2019).

    The bias is the weight of a feature that is always 1, so it is regularised as the others are. Logits are the
    predictions times a learned scale; the number that R2D2 adds to all of them changes no probability and is left out.

    way: N. l2: where the learned λ starts, > 0. scale: where the learned scale starts. features: as of `Prototypes`.
    """

    way: int
    l2: float = 1.0
    scale: float = 1.0
    features: str = "plain"

    def init(self, key: Array, features: int) -> Params:
        """{'log_l2': [], 'scale': []}. Raises ConfigError unless `l2` is positive."""
        del key, features
        return {"log_l2": jnp.asarray(_log("l2", self.l2)), "scale": jnp.asarray(float(self.scale))}

    def __call__(self, learned: Params, support: Array, labels: Array, query: Array) -> Array:
        """Query logits [Q, N] of one task, by a linear system of min(S, F + 1) unknowns a class.

        Args:
          learned: from `init`.
          support: features [S, F].
          labels: int [S].
          query: features [Q, F].

        Raises:
          ConfigError: shapes do not fit together, or labels are not 0..N-1. Under `jit` labels are unknown: a wrong one
            makes NaN.
        """
        support, query, targets = _prepare(self, support, labels, query)
        l2 = jnp.exp(learned["log_l2"])
        with jax.default_matmul_precision("highest"):
            rows = jnp.pad(support, ((0, 0), (0, 1)), constant_values=1)
            if len(rows) <= rows.shape[1]:
                weights = rows.T @ _solve(gram_matrix(support) + 1, l2, targets)
            else:
                weights = _solve(rows.T @ rows, l2, rows.T @ targets)
            return learned["scale"] * (query @ weights[:-1] + weights[-1])


def _solve(matrix: Array, l2: Array, right: Array) -> Array:
    """(matrix + l2 I) x = right, for a positive semidefinite matrix."""
    factor = jnp.linalg.cholesky(matrix + l2 * jnp.eye(len(matrix), dtype=matrix.dtype))
    return jax.scipy.linalg.cho_solve((factor, True), right)


class Logistic(NamedTuple):
    """Logistic regression to convergence: the W [F, N] and b [N] that minimise C Σ cross-entropy + |W|² / 2.

    This is scikit-learn's `LogisticRegression(C=c)`, also for two classes, where scikit-learn has one vector of weights
    instead of two and so |W|² has twice the weight.

    way: N. c: where the learned C starts, > 0. features: as of `Prototypes`.
    """

    way: int
    c: float = 1.0
    features: str = "plain"

    def init(self, key: Array, features: int) -> Params:
        """{'log_c': []}. Raises ConfigError unless `c` is positive."""
        del key, features
        return {"log_c": jnp.asarray(_log("c", self.c))}

    def __call__(self, learned: Params, support: Array, labels: Array, query: Array) -> Array:
        """Query logits [Q, N] of one task; those of a row sum to 0.

        Args:
          learned: from `init`.
          support: features [S, F].
          labels: int [S].
          query: features [Q, F].

        Raises:
          ConfigError: shapes do not fit together, labels are not 0..N-1, or a class has no row. Under `jit` labels are
            unknown: a wrong one, or a class without a row, makes NaN.
        """
        support, query, targets = _prepare(self, support, labels, query, every_class=True)
        c = jnp.exp(learned["log_c"]).astype(support.dtype) / (2 if self.way == 2 else 1)
        is_right = (targets.sum(0) > 0).all() & jnp.isfinite(targets).all()
        with jax.default_matmul_precision("highest"):
            centre = support.mean(0)
            rows = support - centre
            coefficients, bias = minimise(rows, jnp.where(is_right, targets, 1 / self.way).T, c)
            weights = coefficients @ rows
            return (query @ weights.T + (bias - weights @ centre)) * jnp.where(is_right, 1, jnp.nan)


def _log(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value}, expected a positive number")
    return math.log(value)


def _prepare(
    learner: Prototypes | Ridge | Logistic, support: Array, labels: Array, query: Array, *, every_class: bool = False
) -> tuple[Array, Array, Array]:
    """Support and query features as the learner sees them, at least float32; one-hot labels [S, N].

    A wrong label makes its row NaN. Raises ConfigError if shapes do not fit together or known labels are wrong.
    """
    (rows, width), way = jnp.shape(support), learner.way
    expected = {"labels": (labels, (rows,)), "query": (query, (*jnp.shape(query)[:1], width))}
    for name, (array, shape) in expected.items():
        if jnp.shape(array) != shape:
            sizes = f"there are {rows} support rows of {width} features"
            raise ConfigError(f"{name} has shape {jnp.shape(array)}, expected {shape}: {sizes}")
    check_labels(labels, way)
    kind = jnp.promote_types(jnp.result_type(support, query), jnp.float32)
    labels = jnp.asarray(labels)
    targets = jax.nn.one_hot(labels, way, dtype=kind)
    is_known = not isinstance(labels, jax.core.Tracer)
    if every_class and is_known and (empty := jnp.nonzero(targets.sum(0) == 0)[0]).size:
        raise ConfigError(f"class {empty[0]} has no support row: each of the {way} classes needs one")
    targets = jnp.where(((labels >= 0) & (labels < way))[:, None], targets, jnp.nan)
    support, query = transform(learner.features, jnp.asarray(support, kind), jnp.asarray(query, kind))
    return support, query, targets

"""Features normalised before the head: scaled to length 1, optionally after subtracting the support set's mean.

Both are inductive: they use a task's support set and one query image at a time. They come before the head, so the inner
loop keeps its span form. SimpleShot (arXiv 1911.04623) uses them for nearest centroids.
"""

import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.types import Array

FEATURES = ("plain", "l2", "centered_l2")
_EPSILON = 1e-12  # under the root, so that the derivative at 0 is finite


def transform(kind: str, support: Array, query: Array) -> tuple[Array, Array]:
    """Support and query features as the head sees them, [S, F] and [Q, F].

    Args:
      kind: 'plain': as they are; 'l2': z / |z|; 'centered_l2': (z - m) / |z - m|, m the mean of the support set.
      support: [S, F].
      query: [Q, F].

    Raises:
      ConfigError: an unknown `kind`.
    """
    if kind not in FEATURES:
        raise ConfigError(f"features is {kind!r}, expected one of {', '.join(FEATURES)}")
    if kind == "plain":
        return support, query
    if kind == "centered_l2":
        centre = support.mean(0)
        support, query = support - centre, query - centre
    return unit(support), unit(query)


def unit(z: Array) -> Array:
    """Rows scaled to length 1: [..., F] -> [..., F]; a row of zeros stays, with a finite derivative."""
    return z / jnp.sqrt((z * z).sum(-1, keepdims=True) + _EPSILON)

"""Features made comparable before the head: each to length 1, after taking off the support set's mean if wished.

Both are functions of a task's support set and of one query image at a time: inductive. They come before the head, so
the inner loop keeps its span form. SimpleShot (arXiv 1911.04623) has them for nearest centroids.
"""

import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.types import Array

FEATURES = ("plain", "l2", "centered_l2")
_LEAST = 1e-12  # under the root, so that the derivative at 0 is finite


def transform(kind: str, support: Array, query: Array) -> tuple[Array, Array]:
    """Support features [S, F] and query features [Q, F] as the head sees them.

    Args:
      kind: 'plain': as they are; 'l2': z / |z|; 'centered_l2': (z - m) / |z - m|, m the mean of the support set.

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
    return _unit(support), _unit(query)


def _unit(z: Array) -> Array:
    return z / jnp.sqrt((z * z).sum(-1, keepdims=True) + _LEAST)

"""Optax chains and schedules, by parameter group."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import ConfigError
from mtl_jax.types import Params


def schedule(
    lr: float, *, decay: str = "constant", every: int = 0, factor: float = 0.5, total: int = 0, floor: float = 0.0
) -> optax.Schedule:
    """A learning rate by the number of updates done before.

    Args:
      lr: the rate at the start.
      decay: 'constant'; 'steps': lr * factor^floor(step / every), never under floor * lr; 'cosine': from lr to
        floor * lr over `total` steps.
      every, factor, total, floor: see `decay`.

    Raises:
      ConfigError: an unknown `decay`.
    """
    if decay == "constant":
        return optax.constant_schedule(lr)
    if decay == "cosine":
        return optax.cosine_decay_schedule(lr, max(total, 1), floor)
    if decay == "steps":
        return lambda step: lr * jnp.maximum(factor ** (step // every), floor)
    raise ConfigError(f"decay is {decay!r}, expected 'constant', 'steps' or 'cosine'")


def sgd(
    lr: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and weight decay added to the gradient, as PyTorch has it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(lr, momentum or None, nesterov=bool(momentum))
    )


def adam(lr: optax.ScalarOrSchedule, *, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam (0.9, 0.999, eps 1e-8) with weight decay added to the gradient, as PyTorch has it.

    Eps is added after the bias correction of the second moment; PyTorch 0.4 and TensorFlow 1 added it before.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(lr)) if weight_decay else optax.adam(lr)


def by_group(
    groups: Mapping[str, optax.GradientTransformation], default: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One transformation per top-level key of the parameter tree.

    Args:
      groups: transformation by key, e.g. {'head': adam(1e-3)}.
      default: for all other keys.
    """

    def labels(params: Params) -> Params:
        names = {key: key if key in groups else "default" for key in params}
        return {key: jax.tree.map(lambda _, name=names[key]: name, inner) for key, inner in params.items()}

    return optax.multi_transform({**groups, "default": default}, labels)

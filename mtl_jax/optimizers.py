"""Optax chains and schedules, by parameter group."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import ConfigError
from mtl_jax.types import Params

ADAM_EPS = ("after", "before")
DECAYS = ("constant", "cosine", "steps")
OVER_ALL_STEPS = ("cosine",)  # whose rate at a step depends on how many steps there are in all


def schedule(
    lr: float, *, decay: str = "constant", every: int = 0, factor: float = 0.5, total: int = 0, floor: float = 0.0,
    delay: int = 0,
) -> optax.Schedule:  # fmt: skip
    """A learning rate as a function of the number of updates so far.

    Args:
      lr: the rate at the start.
      decay: 'constant'. 'steps': lr * factor^floor((step - delay) / every), at least floor * lr. 'cosine': from lr to
        floor * lr over `total` steps.
      every, factor, total, floor, delay: see `decay`.

    Raises:
      ConfigError: an unknown `decay`, or one that needs `every` and has none.
    """
    if decay == "steps" and every <= 0:
        raise ConfigError(f"decay is {decay!r} and decay_every {every}, expected a positive number of steps")
    if decay == "constant":
        return optax.constant_schedule(lr)
    if decay == "cosine":
        return optax.cosine_decay_schedule(lr, max(total, 1), floor)
    if decay == "steps":
        # Not optax.exponential_decay: it computes the rate in float32 where all else is in float64.
        return lambda step: lr * jnp.maximum(factor ** (jnp.maximum(step - delay, 0) // every), floor)
    raise ConfigError(f"decay is {decay!r}, expected one of {', '.join(DECAYS)}")


def decay(weight_decay: float) -> optax.GradientTransformation:
    """Weight decay added to the gradient, as in PyTorch.

    It pulls the scales of the group 'ss' (Φ1) towards 1, so that SS becomes the identity, and all else towards 0.
    """

    def pull(path, gradient, value):
        names = [getattr(key, "key", None) for key in path]
        is_scale = names[:1] == ["ss"] and names[-1] == "scale"
        return gradient + weight_decay * (value - 1 if is_scale else value)

    return optax.stateless(lambda gradients, params: jax.tree_util.tree_map_with_path(pull, gradients, params))


def sgd(
    lr: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and weight decay (see `decay`), as in PyTorch."""
    return optax.chain(decay(weight_decay), optax.sgd(lr, momentum or None, nesterov=bool(momentum)))


def adam(lr: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, eps: str = "after") -> optax.GradientTransformation:
    """Adam (0.9, 0.999, eps 1e-8) with weight decay added to the gradient (see `decay`), as in PyTorch.

    Args:
      lr: the rate, or a schedule.
      weight_decay: factor of the decay; 0: none.
      eps: where eps is added. 'after' the bias correction of the second moment, m̂ / (sqrt(v̂) + eps): Adam's paper and
        optax. 'before' it, m̂ sqrt(1 - 0.999^t) / (sqrt(v) + eps): PyTorch 0.4 and TensorFlow 1.

    Raises:
      ConfigError: an unknown `eps`.
    """
    if eps not in ADAM_EPS:
        raise ConfigError(f"adam_eps is {eps!r}, expected one of {', '.join(ADAM_EPS)}")
    scale = optax.scale_by_adam() if eps == "after" else _scale_by_adam_eps_before()
    decays = [decay(weight_decay)] if weight_decay else []
    return optax.chain(*decays, scale, optax.scale_by_learning_rate(lr))


def _scale_by_adam_eps_before(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with eps added before the bias correction; the state is the same."""
    moments = optax.scale_by_adam(b1, b2, eps)

    def update(gradients, state, params=None):
        _, state = moments.update(gradients, state, params)
        count = state.count.astype(float)
        # 1 - b^t by expm1: the plain difference has only four correct digits in float32 at the first steps
        factor = jnp.sqrt(-jnp.expm1(count * math.log(b2))) / -jnp.expm1(count * math.log(b1))
        return jax.tree.map(lambda m, v: m * factor.astype(m.dtype) / (jnp.sqrt(v) + eps), state.mu, state.nu), state

    return optax.GradientTransformation(moments.init, update)


def by_group(
    groups: Mapping[str, optax.GradientTransformation], default: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One transformation for each top-level key of the parameters.

    Args:
      groups: by key, e.g. {'head': adam(1e-3)}.
      default: for all other keys.
    """

    def labels(params: Params) -> dict[str, str]:
        return {key: key if key in groups else "default" for key in params}

    return optax.multi_transform({**groups, "default": default}, labels)


def keep_schedule(new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """The optimiser's state `new` with the schedules' counters of `old`, as if the rates had not seen the step."""

    def is_schedule(node):
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(lambda n, o: o if is_schedule(n) else n, new, old, is_leaf=is_schedule)

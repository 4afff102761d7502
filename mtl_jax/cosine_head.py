"""A cosine head: logits are `scale` times the cosine of a feature vector and a class's weight vector.

With Z the support features scaled to length 1, the loss depends on the weights W [F, N] only by Z W and by the squared
lengths of W's columns. So gradient descent never leaves the span of its start and Z: W_t = α_t * W_0 + Zᵀ A_t, with
α [N] and A [S, N], and a step takes 2 S S N operations instead of 4 S F N, as the linear head's does.
"""

import jax
import jax.numpy as jnp

from mtl_jax.base_learner import UNROLLED, repeat, row_weights, step_rates
from mtl_jax.feature_transform import unit
from mtl_jax.metrics import cross_entropy
from mtl_jax.types import Array, Params

_EPSILON = 1e-12  # under the roots, so that the derivative at 0 is finite


def logits(head: Params, features: Array) -> Array:
    """features [..., F] -> logits [..., N], of a head {'kernel': [F, N], 'scale': []}."""
    kernel = head["kernel"]
    lengths = jnp.sqrt((kernel * kernel).sum(-2, keepdims=True) + _EPSILON)
    return head["scale"] * unit(features) @ (kernel / lengths)


def adapted_logits(
    head: Params, support_features: Array, support_labels: Array, query_features: Array, *,
    steps: int, lr: float | Array, first_order: bool = True, weights: Array | None = None, trajectory: bool = False,
) -> Array:  # fmt: skip
    """Query logits after `steps` gradient steps on the kernel of a cosine head; its scale does not move.

    Args:
      head: {'kernel': [F, N], 'scale': []}.
      support_features, support_labels, query_features: [S, F], int [S], [Q, F].
      steps, lr, first_order, weights, trajectory: as in `base_learner.adapted_logits`.

    Returns:
      [Q, N], or [steps + 1, Q, N] with `trajectory`.

    Raises:
      ConfigError: as `base_learner.adapt_head`.
    """
    kernel, scale = head["kernel"], head["scale"]
    classes = {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], kernel.dtype)}
    weights, lr = row_weights(classes, support_features, support_labels, weights), step_rates(lr, steps)
    support = unit(support_features)
    inner_scale, start = scale, kernel
    if first_order:
        support, weights, inner_scale, start = jax.lax.stop_gradient((support, weights, scale, kernel))
    gram, product, square = support @ support.T, support @ start, (start * start).sum(0)

    def loss(products, squares):
        cosines = products / jnp.sqrt(squares + _EPSILON)
        return (weights * cross_entropy(inner_scale * cosines, support_labels)).sum()

    def step(state, rate):
        alpha, a = state
        products = alpha * product + gram @ a
        squares = alpha**2 * square + (a * (2 * alpha * product + gram @ a)).sum(0)
        by_product, by_square = jax.grad(loss, (0, 1))(products, squares)
        gradients = 2 * alpha * by_square, 2 * a * by_square + by_product
        if first_order:
            gradients = jax.lax.stop_gradient(gradients)
        return jax.tree.map(lambda p, g: p - rate * g, state, gradients), state

    is_by_step = jnp.ndim(lr) == 1
    initial = jnp.ones_like(square), jnp.zeros_like(product)
    last, before = repeat(step, initial, steps, lr, is_by_step, unroll=UNROLLED)
    if trajectory:
        last = jax.tree.map(lambda stack, final: jnp.concatenate([stack, final[None]]), before, last)
    alpha, a = last
    # In first order the start is reached by the identity, so what the steps added to it is a constant for it.
    moved = kernel + (alpha[..., None, :] - 1) * start + jnp.swapaxes(support, -1, -2) @ a
    return logits({"kernel": moved, "scale": scale}, query_features)

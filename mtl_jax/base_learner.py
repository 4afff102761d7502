"""The base-learner θ: one linear layer from features to the classes of a task, adapted by plain gradient descent.

`adapt_head` is the inner loop as the paper writes it. `adapted_logits` gives the same query logits faster: gradient
descent on a linear layer never leaves the span of its support features, so the loop can run on S x N coefficients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtl_jax.backend import on_cpu, vary_like
from mtl_jax.errors import ConfigError
from mtl_jax.metrics import cross_entropy
from mtl_jax.types import Array, Params

HEAD_INITS = ("he", "xavier", "zero")
UNROLLED = 10  # inner steps in one turn of an accelerator's loop


def init_head(key: Array, features: int, way: int, *, init: str = "he") -> Params:
    """A fresh head {'kernel': [F, N], 'bias': [N]}, bias 0.

    Args:
      key: a JAX key.
      features: F.
      way: N.
      init: 'he': normal with std sqrt(2 / F) (PyTorch); 'xavier': Xavier-uniform (TensorFlow); 'zero'.

    Raises:
      ConfigError: an unknown `init`.
    """
    if init == "he":
        kernel = jax.random.normal(key, (features, way)) * (2 / features) ** 0.5
    elif init == "xavier":
        bound = (6 / (features + way)) ** 0.5
        kernel = jax.random.uniform(key, (features, way), minval=-bound, maxval=bound)
    elif init == "zero":
        kernel = jnp.zeros((features, way))
    else:
        raise ConfigError(f"head init is {init!r}, expected one of {', '.join(HEAD_INITS)}")
    return {"kernel": kernel, "bias": jnp.zeros(way)}


def logits(head: Params, features: Array) -> Array:
    """features [..., F] -> logits [..., N]."""
    return features @ head["kernel"] + head["bias"]


def adapt(
    loss: Callable[[Params], Array],
    params: Params,
    *,
    steps: int,
    lr: float | Array,
    first_order: bool = True,
    remat: bool = False,
) -> Params:
    """Plain gradient descent on any parameters: params <- params - lr * grad(loss), `steps` times.

    The steps are unrolled, because XLA on CPUs computes gradients of convolutions inside a loop 10 to 24 times more
    slowly than outside.

    Args:
      loss: a scalar function of `params`.
      params: any tree.
      steps: number of updates.
      lr: step size β, or a tree of them with the structure of `params`.
      first_order: take the gradients as constants when the result is differentiated (FOMAML).
      remat: recompute each step's activations in the backward pass instead of keeping them.

    Returns:
      The adapted tree.
    """
    rate = lr if jax.tree.structure(lr) == jax.tree.structure(params) else jax.tree.map(lambda _: lr, params)

    def step(params):
        value, gradients = jax.value_and_grad(loss)(params)
        own = vary_like(params, value)
        if own is not params:  # in a shard_map; what was computed above falls away
            gradients = jax.grad(loss)(own)
        if first_order:
            gradients = jax.lax.stop_gradient(gradients)
        return jax.tree.map(lambda p, r, g: p - r * g, params, rate, gradients)

    step = jax.checkpoint(step) if remat else step
    for _ in range(steps):
        params = step(params)
    return params


def adapt_head(
    head: Params,
    features: Array,
    labels: Array,
    *,
    steps: int,
    lr: float | Array,
    first_order: bool = True,
    weights: Array | None = None,
) -> Params:
    """The inner loop: θ <- θ - lr * grad of sum_i weights_i * cross-entropy_i over the support rows, `steps` times.

    Args:
      head: {'kernel': [F, N], 'bias': [N]}.
      features: [S, F] support features.
      labels: int [S].
      steps: number of full-batch updates.
      lr: step size β.
      first_order: the inner gradients are constants for the outer derivative, so that it passes to the initial head
        by the identity and to the support features not at all.
      weights: [S] weight of each row; None for 1 / S each, the mean. (The TensorFlow implementation divides the sum by
        the shot: 1 / K each.)

    Returns:
      The adapted head.
    """
    return _head_trajectory(head, features, labels, steps, lr, first_order, weights)[0]


def _head_trajectory(head, features, labels, steps, lr, first_order, weights):
    """The adapted head, and the heads before each step stacked along axis 0 (unused ones are compiled away)."""
    weights = _row_weights(weights, features)
    head = vary_like(head, (features, labels, weights))

    def loss(head):
        return (weights * cross_entropy(logits(head, features), labels)).sum()

    def step(head, _):
        gradients = jax.grad(loss)(head)
        if first_order:
            gradients = jax.lax.stop_gradient(gradients)
        return jax.tree.map(lambda p, g: p - lr * g, head, gradients), head

    return _repeat(step, head, steps)


def adapted_logits(
    head: Params,
    support_features: Array,
    support_labels: Array,
    query_features: Array,
    *,
    steps: int,
    lr: float | Array,
    first_order: bool = True,
    weights: Array | None = None,
    trajectory: bool = False,
) -> Array:
    """Query logits after the inner loop: the same function as `adapt_head` then `logits`, in the span form.

    With G = Z Zᵀ + 1 (the ones are the bias), L0 = Z W + b and Y one-hot,
    A <- A - lr * weights * (softmax(L0 + G A) - Y) from A = 0 gives the logits Zq W + b + (Zq Zᵀ + 1) A:
    2 S S N operations a step instead of 4 S F N. It is an identity, so derivatives of every order agree.
    In first order it is Zq W + b + (Zq sg(Z)ᵀ + 1) sg(A). Where S >= F the plain loop is cheaper and is used.

    Args:
      head: the initial θ, {'kernel': [F, N], 'bias': [N]}.
      support_features: [S, F].
      support_labels: int [S].
      query_features: [Q, F].
      steps, lr, first_order, weights: as in `adapt_head`.
      trajectory: return the logits after 0, 1, ..., `steps` updates.

    Returns:
      [Q, N], or [steps + 1, Q, N] with `trajectory`.
    """
    rows, width = support_features.shape
    if rows >= width:
        final, before = _head_trajectory(head, support_features, support_labels, steps, lr, first_order, weights)
        if not trajectory:
            return logits(final, query_features)
        heads = jax.tree.map(lambda stack, last: jnp.concatenate([stack, last[None]]), before, final)
        return jax.vmap(logits, (0, None))(heads, query_features)
    initial = jax.lax.stop_gradient(head) if first_order else head
    support = jax.lax.stop_gradient(support_features) if first_order else support_features
    weights = _row_weights(weights, support)
    coefficients, before = _span_loop(initial, support, support_labels, steps, lr, weights)
    if trajectory:
        coefficients = jnp.concatenate([before, coefficients[None]])
    if first_order:
        coefficients = jax.lax.stop_gradient(coefficients)
    return logits(head, query_features) + (query_features @ support.T + 1) @ coefficients


def _span_loop(head, support, labels, steps, lr, weights):
    """The coefficients A [S, N] after the last step, and before each step [steps, S, N]."""
    gram = support @ support.T + 1
    start = logits(head, support)
    targets = jax.nn.one_hot(labels, start.shape[-1], dtype=start.dtype)
    rate = (lr * weights)[:, None]

    def step(a, _):
        return a - rate * (jax.nn.softmax(start + gram @ a) - targets), a

    return _repeat(step, jnp.zeros_like(start), steps)


def _repeat(step, start, steps):
    """`jax.lax.scan` without inputs. An accelerator spends more on a loop's turn than on an inner step."""
    return jax.lax.scan(step, start, length=steps, unroll=1 if on_cpu() else UNROLLED)


def _row_weights(weights: Array | None, features: Array) -> Array:
    rows = features.shape[0]
    return jnp.full(rows, 1 / rows, features.dtype) if weights is None else weights.astype(features.dtype)

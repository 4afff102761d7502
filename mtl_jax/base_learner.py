"""The base-learner θ: a linear layer from features to a task's classes, adapted by plain gradient descent.

`adapt_head` is the inner loop as the paper writes it. `adapted_logits` computes the same query logits faster: gradient
descent on a linear layer never leaves the span of its support features, so the loop can run on S x N coefficients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.metrics import check_labels, cross_entropy
from mtl_jax.parallel import on_cpu, vary_like
from mtl_jax.types import Array, Head, Params

HEAD_INITS = ("he", "xavier", "zero")
UNROLLED = 10  # a head's inner steps in one turn of an accelerator's loop


def init_head(key: Array, features: int, way: int, *, init: str = "he") -> Head:
    """A new head {'kernel': [F, N], 'bias': [N]}; the bias is 0.

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
    lr: float | Array | Params,
    first_order: bool = True,
    remat: bool = False,
) -> Params:
    """Plain gradient descent on any parameters: params <- params - lr * grad(loss), `steps` times.

    On CPUs the steps are unrolled, because there XLA computes gradients of convolutions inside a loop 10 to 24 times
    more slowly than outside. On accelerators they are a `scan`.

    Args:
      loss: a scalar function of `params`.
      params: any tree.
      steps: number of updates.
      lr: step size β; or one for each step, [steps]; or a tree like `params` with numbers, or arrays of the parameters'
        shapes, as leaves.
      first_order: treat the gradients as constants when the result is differentiated (FOMAML).
      remat: recompute each step's activations in the backward pass instead of storing them.

    Returns:
      The adapted tree.

    Raises:
      ConfigError: `lr` has another shape or structure.
    """

    rates, is_by_step = _rate_trees(lr, params, steps)
    params = vary_like(params, jax.eval_shape(loss, params))

    def step(params, rate):
        gradients = jax.grad(loss)(params)
        if first_order:
            gradients = jax.lax.stop_gradient(gradients)
        return jax.tree.map(lambda p, r, g: p - r * g, params, rate, gradients), None

    step = jax.checkpoint(step) if remat else step
    if not on_cpu():  # a loop's state keeps its types
        params = jax.tree.map(lambda p, r: jnp.asarray(p, jnp.result_type(p, r)), params, rates)
        return repeat(step, params, steps, rates, is_by_step, unroll=1)[0]
    for number in range(steps):
        params, _ = step(params, jax.tree.map(lambda r, n=number: r[n], rates) if is_by_step else rates)
    return params


def _rate_trees(lr: Any, params: Params, steps: int) -> tuple[Params, bool]:
    """The rates of each parameter, and whether a rate is [steps], one for each step."""
    by_step: bool = jax.tree_util.all_leaves([lr]) and jnp.shape(lr) == (steps,)
    if by_step and jax.tree_util.all_leaves([params]) and jnp.shape(params) == (steps,):
        raise ConfigError(
            f"lr and params both have shape {(steps,)}, and there are {steps} steps: rates of steps or of elements? "
            "Put params into a dict, and rates of elements into one like it"
        )
    given, expected = jax.tree.structure(lr), jax.tree.structure(params)
    if by_step or given != expected:  # type: ignore[operator]
        lr = step_rates(lr, steps)
        return jax.tree.map(lambda _: lr, params), jnp.ndim(lr) == 1
    for (path, rate), leaf in zip(jax.tree.leaves_with_path(lr), jax.tree.leaves(params), strict=True):
        if jnp.shape(rate) not in ((), jnp.shape(leaf)):
            name, shape = jax.tree_util.keystr(path), jnp.shape(leaf)
            raise ConfigError(
                f"lr{name} has shape {jnp.shape(rate)}, expected a number or that of the parameter, {shape}; "
                "give rates of steps as one array, [steps], not as a tree"
            )
    return lr, False


def step_rates(lr: Any, steps: int) -> Any:
    """A single rate unchanged, a float or an array []; or a rate for each step as an array [steps].

    Raises:
      ConfigError: `lr` is neither.
    """
    if isinstance(lr, list | tuple) and jax.tree_util.all_leaves(lr):
        lr = jnp.asarray(lr)
    if not jax.tree_util.all_leaves([lr]):
        raise ConfigError(
            f"lr is {jax.tree.structure(lr)}, expected a number or [steps] of them; a tree of rates is for `adapt` and "
            "has the structure of its `params`"
        )
    if jnp.shape(lr) not in ((), (steps,)):
        raise ConfigError(f"lr has shape {jnp.shape(lr)}, expected a number, or a rate for each of the {steps} steps")
    return lr


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
      lr: step size β, or one for each step, [steps].
      first_order: treat inner gradients as constants in the outer derivative. It then reaches the initial head by the
        identity, and the support features not at all.
      weights: [S], the weight of each row; None: 1 / S each, the mean. (The TensorFlow implementation divides the sum
        by the shot: 1 / K each.)

    Returns:
      The adapted head.

    Raises:
      ConfigError: shapes do not fit together, or labels are not 0..N-1. Under `jit` labels are unknown: a wrong one
        makes every number NaN.
    """
    options: dict[str, Any] = {"steps": steps, "lr": lr, "first_order": first_order, "weights": weights}
    return _head_trajectory(head, features, labels, **options)[0]


def _head_trajectory(
    head: Params, features: Array, labels: Array, *, steps: int, lr: float | Array, first_order: bool,
    weights: Array | None,
) -> tuple[Params, Params]:  # fmt: skip
    """The adapted head, and the heads before each step along axis 0, which are compiled away if unused."""
    weights, lr = row_weights(head, features, labels, weights), step_rates(lr, steps)
    head = vary_like(head, (features, labels, weights))

    def loss(head):
        return (weights * cross_entropy(logits(head, features), labels)).sum()

    def step(head, rate):
        gradients = jax.grad(loss)(head)
        if first_order:
            gradients = jax.lax.stop_gradient(gradients)
        return jax.tree.map(lambda p, g: p - rate * g, head, gradients), head

    return repeat(step, head, steps, lr, jnp.ndim(lr) == 1, unroll=UNROLLED)


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
    """Query logits after the inner loop: the same function as `adapt_head` and then `logits`, in the span form.

    With G = Z Zᵀ + 1 (the ones are the bias), L0 = Z W + b and Y one-hot,
    A <- A - lr * weights * (softmax(L0 + G A) - Y) from A = 0 gives the logits Zq W + b + (Zq Zᵀ + 1) A:
    2 S S N operations a step instead of 4 S F N. It is an identity, so derivatives of all orders agree.
    In first order it is Zq W + b + (Zq sg(Z)ᵀ + 1) A, where A depends on lr alone. If S >= F, the plain loop is cheaper
    and is used.

    Args:
      head: the initial θ, {'kernel': [F, N], 'bias': [N]}.
      support_features: [S, F].
      support_labels: int [S].
      query_features: [Q, F].
      steps, lr, first_order, weights: as in `adapt_head`.
      trajectory: return the logits after each of 0, 1, ..., `steps` updates.

    Returns:
      [Q, N], or [steps + 1, Q, N] with `trajectory`.

    Raises:
      ConfigError: as `adapt_head`.
    """
    rows, width = support_features.shape
    if rows >= width:
        options: dict[str, Any] = {"steps": steps, "lr": lr, "first_order": first_order, "weights": weights}
        final, before = _head_trajectory(head, support_features, support_labels, **options)
        if not trajectory:
            return logits(final, query_features)
        heads = jax.tree.map(lambda stack, last: jnp.concatenate([stack, last[None]]), before, final)
        return jax.vmap(logits, (0, None))(heads, query_features)
    initial = jax.lax.stop_gradient(head) if first_order else head
    support = jax.lax.stop_gradient(support_features) if first_order else support_features
    weights, lr = row_weights(head, support, support_labels, weights), step_rates(lr, steps)
    if first_order:
        weights = jax.lax.stop_gradient(weights)
    coefficients, before = _span_loop(
        initial, support, support_labels, steps=steps, lr=lr, first_order=first_order, weights=weights
    )
    if trajectory:
        coefficients = jnp.concatenate([before, coefficients[None]])
    return logits(head, query_features) + (query_features @ support.T + 1) @ coefficients


def _span_loop(
    head: Params, support: Array, labels: Array, *, steps: int, lr: Any, first_order: bool, weights: Array
) -> tuple[Array, Array]:
    """The coefficients A [S, N] after the last step, and before each step [steps, S, N]."""
    gram = support @ support.T + 1
    start = logits(head, support)
    targets = jax.nn.one_hot(labels, start.shape[-1], dtype=start.dtype)
    is_by_step = jnp.ndim(lr) == 1
    rates = (lr[:, None] * weights if is_by_step else lr * weights)[..., None]

    def step(a, rate):
        residual = jax.nn.softmax(start + gram @ a) - targets
        return a - rate * (jax.lax.stop_gradient(residual) if first_order else residual), a

    return repeat(step, jnp.zeros_like(start), steps, rates, is_by_step, unroll=UNROLLED)


def repeat(
    step: Callable, start: Params, steps: int, rates: Params, is_by_step: bool, *, unroll: int
) -> tuple[Params, Params]:
    """Scans `step`: (state, rates) -> (state, output). `is_by_step`: rates have an axis of steps first.

    An accelerator does `unroll` steps in one turn of the loop, as a turn takes longer than a head's inner step.
    """
    unroll = 1 if on_cpu() else unroll
    if is_by_step:
        return jax.lax.scan(step, start, rates, length=steps, unroll=unroll)
    return jax.lax.scan(lambda state, _: step(state, rates), start, length=steps, unroll=unroll)


def _check_rows(head, features, labels, weights):
    """Raises ConfigError if shapes do not fit together (JAX might broadcast them) or labels are not 0..N-1."""
    (width, way), rows = jnp.shape(head["kernel"]), jnp.shape(features)[0]
    expected = {
        "features": (features, (rows, width)), "head['bias']": (head["bias"], (way,)), "labels": (labels, (rows,)),
        "weights": (weights, (rows,)),
    }  # fmt: skip
    for name, (array, shape) in expected.items():
        if array is not None and jnp.shape(array) != shape:
            raise ConfigError(
                f"{name} has shape {jnp.shape(array)}, expected {shape}: there are {rows} support rows and a head of "
                f"{width} features and {way} classes"
            )
    check_labels(labels, way)


def row_weights(head: Params, features: Array, labels: Array, weights: Array | None) -> Array:
    """The weight of each support row, after checks; NaN where a label is not 0..N-1."""
    _check_rows(head, features, labels, weights)
    (rows, _), way = jnp.shape(features), jnp.shape(head["bias"])[0]
    weights = jnp.full(rows, 1 / rows, features.dtype) if weights is None else weights.astype(features.dtype)
    labels = jnp.asarray(labels)
    return jnp.where((labels >= 0) & (labels < way), weights, jnp.nan)

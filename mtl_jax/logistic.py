"""Logistic regression to convergence: Newton's method on the span of the rows, and its derivative of any order.

The minimum of C Σ cross-entropy + |W|² / 2 over W [F, N] and b [N] has W = Zᵀ A, with A = C (Y - P) for the
probabilities P, and the columns of A sum to 0. So the S x N coefficients A and b are the unknowns; here A is [N, S], as
products with the Gram matrix K = Z Zᵀ from the right are the faster ones. With D the derivative of softmax, both the
Newton step and the derivative of the solution (by the implicit function) solve

    a + C D (a K + b) = r,        sum over rows of C D (a K + b) = s.

Conjugate gradients do, in the inner product of W = Zᵀ A, where the system is symmetric.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.parallel import vary_like
from mtl_jax.types import Array

BLOCK = 8  # iterations of conjugate gradients between two looks at the residual: a look costs as much as three
NEWTON_STEPS = 100  # a bound; about 5 are taken at C = 1, one more for each factor of e in C where classes separate
SHORTEST = 1e-9  # share of a Newton step
LONGEST = 5.0  # change of a logit in a step: farther away softmax is flat, and its derivative says nothing

Unknowns = tuple[Array, Array]  # a [N, S] and b [N]


@jax.custom_jvp
def minimise(rows: Array, targets: Array, c: Array) -> Unknowns:
    """The coefficients A and biases b at the minimum; biases sum to 0.

    Args:
      rows: features Z [S, F] whose mean is 0 (this keeps float32 exact).
      targets: one-hot labels [N, S], taken as constants by derivatives.
      c: C, a positive number.

    Returns:
      ([N, S], [N]): the logits of features z are z Zᵀ Aᵀ + b.
    """
    gram, exactness = _gram(rows), 8 * jnp.finfo(rows.dtype).eps

    def gradient(a, b):
        p = jax.nn.softmax(gram(a) + b[:, None], axis=0)
        forces = c * (targets - p)
        r, s = forces - a, forces.sum(1)
        return p, r, s, _norm(r, gram(r), s)

    def loss(a, b, ka):
        scores = ka + b[:, None]
        return c * (jax.nn.logsumexp(scores, axis=0) - (targets * scores).sum(0)).sum() + (a * ka).sum() / 2

    first = vary_like((jnp.zeros_like(targets), jnp.zeros_like(targets[:, 0])), (rows, targets, c))
    start = gradient(*first)[-1]

    def unfinished(state):
        number, _, _, norm, before = state
        stuck = (norm > 0.25 * before) & (norm <= 1e-10 * start)  # rounding stops it
        return (number < NEWTON_STEPS) & (norm > exactness**2 * start) & ~stuck

    def step(state):
        number, a, b, before, _ = state
        p, r, s, _ = gradient(a, b)
        share = jnp.clip(jnp.sqrt(before / start), exactness, 1e-2)
        da, db = _conjugate_gradients(gram, c, p, (r, s), share)
        ka, kda = gram(a), gram(da)
        now, slope = loss(a, b, ka), (r * kda).sum() + (s * db).sum()
        slack = exactness * jnp.abs(now)

        def too_long(length):
            new = loss(a + length * da, b + length * db, ka + length * kda)
            return ~(new <= now - 1e-4 * length * slope + slack) & (length > SHORTEST)

        first_length = jnp.minimum(1, LONGEST / jnp.maximum(jnp.abs(kda + db[:, None]).max(), LONGEST))
        length = jax.lax.while_loop(too_long, lambda length: length / 4, first_length)
        a, b = a + length * da, b + length * db
        return number + 1, a, b, gradient(a, b)[-1], before

    a, b = jax.lax.while_loop(unfinished, step, (0, *first, start, start))[1:3]
    return c * (targets - jax.nn.softmax(gram(a) + b[:, None], axis=0)), b


@minimise.defjvp
def _minimise_jvp(primals, tangents):
    (rows, targets, c), (rows_dot, _, c_dot) = primals, tangents
    a, b = minimise(rows, targets, c)
    gram = _gram(rows)
    p = jax.nn.softmax(gram(a) + b[:, None], axis=0)
    scores_dot = (a @ rows_dot) @ rows.T + (a @ rows) @ rows_dot.T
    r = c_dot * (targets - p) - c * _softmax_derivative(p, scores_dot)
    return (a, b), _solve(rows, c, p, (r, r.sum(1)))


def _solve(rows: Array, c: Array, p: Array, right: Unknowns) -> Unknowns:
    """The system's solution, linear in `right`, differentiable by everything else as well."""
    gram, exactness = _gram(rows), 8 * jnp.finfo(rows.dtype).eps

    def solve(_, right):
        a, b = _conjugate_gradients(gram, c, p, right, exactness)
        return right[0] - c * _softmax_derivative(p, gram(a) + b[:, None]), b  # right where K is singular, too

    def solve_transposed(_, right):
        x, y = right
        forces = c * _softmax_derivative(p, x)
        a, negative = solve(None, (forces, forces.sum(1) - y))
        return x - gram(a), -negative

    def system(unknowns):
        return _system(gram, c, p, unknowns)

    return jax.lax.custom_linear_solve(system, right, solve, solve_transposed)


def _system(gram: Callable[[Array], Array], c: Array, p: Array, unknowns: Unknowns) -> Unknowns:
    """The left side. The mean of b, which changes no probability, is added, so that the solution's is 0."""
    a, b = unknowns
    forces = c * _softmax_derivative(p, gram(a) + b[:, None])
    return a + forces, forces.sum(1) + b.mean()


def _conjugate_gradients(gram: Callable, c: Array, p: Array, right: Unknowns, share: Array | float) -> Unknowns:
    """Solves the system until the residual's norm is `share` of the right side's."""
    most = 2 * p.size // BLOCK + 2

    def step(_, state):
        a, b, ka, (r, kr, s), (da, kda, db), norm = state
        forces = c * _softmax_derivative(p, kda + db[:, None])
        ra, rb = da + forces, forces.sum(1) + db.mean()
        curvature = (kda * ra).sum() + (db * rb).sum()
        length = jnp.where(curvature > 0, norm / jnp.where(curvature > 0, curvature, 1), 0)
        a, b, ka = a + length * da, b + length * db, ka + length * kda
        r, s = r - length * ra, s - length * rb
        kr = gram(r)
        new = _norm(r, kr, s)
        turn = jnp.where(norm > 0, new / jnp.where(norm > 0, norm, 1), 0)
        return a, b, ka, (r, kr, s), (r + turn * da, kr + turn * kda, s + turn * db), new

    def block(state):
        return state[0] + 1, jax.lax.fori_loop(0, BLOCK, step, state[1])

    r, s = vary_like(right, p)
    kr = gram(r)
    norm = _norm(r, kr, s)
    zero = vary_like((jnp.zeros_like(r), jnp.zeros_like(s), jnp.zeros_like(r)), p)
    state: Any = 0, (*zero, (r, kr, s), (r, kr, s), norm)
    state = jax.lax.while_loop(lambda state: (state[0] < most) & (state[1][-1] > share**2 * norm), block, state)[1]
    return state[:2]


def _gram(rows: Array) -> Callable[[Array], Array]:
    """The product with K from the right: [N, S] -> [N, S]."""
    if len(rows) > 2 * rows.shape[1]:
        return lambda a: (a @ rows) @ rows.T
    matrix = gram_matrix(rows)
    return lambda a: a @ matrix


def gram_matrix(rows: Array) -> Array:
    """Z Zᵀ [S, S]. XLA multiplies many small matrices by a transposed copy three times as fast on a CPU."""
    return rows @ jax.lax.optimization_barrier(rows.T)


def _softmax_derivative(p: Array, by: Array) -> Array:
    moved = p * by
    return moved - p * moved.sum(0)


def _norm(r: Array, kr: Array, s: Array) -> Array:
    """The square of the length of (Zᵀ r, s)."""
    return jnp.maximum((r * kr).sum() + (s * s).sum(), 0)

"""Testing with an inner loop that moves the backbone's weights as well (fine-tuning, MAML)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.base_learner import adapt
from mtl_jax.embed import Embedder
from mtl_jax.meta import fast_logits, fast_weights, support_loss
from mtl_jax.parallel import on_cpu
from mtl_jax.types import Array, Episode, Params


class Adaptation(NamedTuple):
    """What moves, and what is kept of a task.

    embed: the backbone, in mode 'running' or 'batch'. moves: 'last_block' or 'all' of it. outcome: (query logits
    [N Q, N], labels [N Q]) -> what is kept, [...]. every_step: keep it after each of 0, 1, ..., steps updates.
    """

    embed: Embedder
    moves: str
    outcome: Callable[[Array, Array], Array]
    every_step: bool = False


def adapted_outcomes(
    adaptation: Adaptation, params: Params, batch_stats: Params, head: Params, tasks: Episode, *,
    rates: np.ndarray, weights: Array,
) -> Array:  # fmt: skip
    """The outcomes of T tasks after their inner loops: [T, ...], or [T, steps + 1, ...] with `every_step`.

    On a CPU one compiled inner step is called from Python, task by task: inside a loop, and in groups, convolutions
    have slow gradients there. On accelerators the steps are a `scan`, and the tasks are under `vmap`.

    Args:
      adaptation: what moves and what is kept.
      params: the backbone's, with SS in them.
      batch_stats: BN's averages.
      head: the initial θ.
      tasks: T tasks.
      rates: [steps], the rate of each inner step.
      weights: [S], of the support rows' cross-entropies.
    """
    if not on_cpu():
        return _scanned(adaptation, params, batch_stats, head, tasks, rates, weights)
    each = [jax.tree.map(lambda a, t=t: a[t], tasks) for t in range(len(tasks.support_labels))]
    return jnp.stack([_unrolled(adaptation, params, batch_stats, head, task, rates, weights) for task in each])


def _unrolled(
    adaptation: Adaptation, params: Params, batch_stats: Params, head: Params, task: Episode, rates: np.ndarray,
    weights: Array,
) -> Array:  # fmt: skip
    embed, moves, outcome, every_step = adaptation
    fast, kept = fast_weights(params, head, moves), []
    for rate in rates:
        if every_step:
            kept.append(_outcome(embed, outcome, fast, params, batch_stats, task))
        fast = _inner_step(embed, fast, params, batch_stats, task, weights, rate)
    last = _outcome(embed, outcome, fast, params, batch_stats, task)
    return jnp.stack([*kept, last]) if every_step else last


@functools.partial(jax.jit, static_argnums=0)
def _scanned(
    adaptation: Adaptation, params: Params, batch_stats: Params, head: Params, tasks: Episode, rates: Array,
    weights: Array,
) -> Array:  # fmt: skip
    embed, moves, outcome, every_step = adaptation

    def run(task):
        def step(fast, rate):
            kept = _outcome(embed, outcome, fast, params, batch_stats, task) if every_step else None
            return _inner_step(embed, fast, params, batch_stats, task, weights, rate), kept

        fast, kept = jax.lax.scan(step, fast_weights(params, head, moves), rates)
        last = _outcome(embed, outcome, fast, params, batch_stats, task)
        return jnp.concatenate([kept, last[None]]) if every_step else last

    return jax.vmap(run)(tasks)


@functools.partial(jax.jit, static_argnums=0)
def _inner_step(
    embed: Embedder, fast: Params, params: Params, batch_stats: Params, task: Episode, weights: Array, lr: Array
) -> Params:
    return adapt(lambda fast: support_loss(fast, params, batch_stats, task, weights, embed), fast, steps=1, lr=lr)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outcome(
    embed: Embedder, outcome: Callable, fast: Params, params: Params, batch_stats: Params, task: Episode
) -> Array:
    return outcome(fast_logits(fast, params, batch_stats, task.query, embed)[0], task.query_labels)

"""Testing with an inner loop that moves the backbone's weights as well (fine-tuning, MAML), a task at a time."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.base_learner import adapt, step_rates
from mtl_jax.meta import Embed, Inner, fast_logits, fast_weights, support_loss
from mtl_jax.types import Array, Episode, Params


def adapted_outcome(
    params: Params, head: Params, batch_stats: Params, task: Episode, *,
    embed: Embed, inner: Inner, weights: Array, outcome: Callable[[Array, Array], Array], every_step: bool = False,
) -> Array:  # fmt: skip
    """What `outcome` makes of a task's query logits and labels after the inner loop.

    One compiled inner step is called from Python: on CPUs XLA's gradients of convolutions are slow inside a loop.

    Args:
      params: the backbone's, with SS in them.
      head: the initial θ.
      batch_stats: BN's averages.
      task: one task.
      embed: the backbone, in mode 'running' or 'batch'.
      inner: the inner loop; `adapt` is 'last_block' or 'all'.
      weights: [S], of the support rows' cross-entropies.
      outcome: (logits [N Q, N], labels [N Q]) -> [...].
      every_step: also after 0, 1, ..., steps - 1 updates.

    Returns:
      [...], or [steps + 1, ...] with `every_step`.
    """
    fast, found = fast_weights(params, head, inner.adapt), []
    rates = np.broadcast_to(step_rates(inner.lr, inner.steps), inner.steps)
    for step in range(inner.steps + 1):
        if every_step or step == inner.steps:
            found.append(_outcome(embed, outcome, fast, params, batch_stats, task))
        if step < inner.steps:
            fast = _inner_step(embed, fast, params, batch_stats, task, weights, rates[step])
    return jnp.stack(found) if every_step else found[0]


@functools.partial(jax.jit, static_argnums=0)
def _inner_step(embed, fast, params, batch_stats, task, weights, lr):
    return adapt(lambda fast: support_loss(fast, params, batch_stats, task, weights, embed), fast, steps=1, lr=lr)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outcome(embed, outcome, fast, params, batch_stats, task):
    return outcome(fast_logits(fast, params, batch_stats, task.query, embed)[0], task.query_labels)

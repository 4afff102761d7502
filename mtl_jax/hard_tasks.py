"""Hard tasks: after a round of meta-batches, train on tasks made of the classes that the network failed at.

A task's failure class is the one with the lowest query accuracy after the inner loop. A pool counts the failure classes
of a round, by base class. After the round, K' extra tasks draw their classes from the pool, with new images of those
classes (classes are re-sampled, not the failed images). Then the pool is emptied.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax import episodes, meta, optimizers
from mtl_jax.errors import ConfigError
from mtl_jax.types import Array, ClassTable, Params


def empty_pool(classes: int) -> Array:
    """The pool before a round: int32 [C] zeros, C base classes."""
    return jnp.zeros(classes, jnp.int32)


def failure_classes(classes: Array, class_accuracy: Array) -> Array:
    """The class that each task failed at: the one with the lowest query accuracy.

    A tie goes to the task's first class. A task's classes are in random order, so no class is favoured.

    Args:
      classes: int [T, N], the base classes of each task.
      class_accuracy: [T, N], what `meta.train_step` returns.

    Returns:
      int [T].
    """
    worst = class_accuracy.argmin(-1)
    return jnp.take_along_axis(classes, worst[:, None], -1)[:, 0]


def collect(pool: Array, classes: Array, class_accuracy: Array, *, axis_name: str | None = None) -> Array:
    """Adds the failure classes of a meta-batch to the pool.

    Args:
      pool: int32 [C], the same on every device.
      classes, class_accuracy: as in `failure_classes`, of this device's tasks.
      axis_name: the mapped axis that the meta-batch is spread over; the failure classes of all devices are added.

    Returns:
      int32 [C].
    """
    counts = jnp.zeros_like(pool).at[failure_classes(classes, class_accuracy)].add(1)
    return pool + (jax.lax.psum(counts, axis_name) if axis_name else counts)


def sample_classes(key: Array, pool: Array, way: int) -> Array:
    """`way` distinct classes, in random order: int32 [N].

    They are drawn uniformly from the classes in the pool, however often each was counted. If the pool has fewer than
    `way` classes, all of them are used, and the rest is drawn uniformly from the other base classes.
    """
    rank_key, order_key = jax.random.split(key)
    scores = jax.random.uniform(rank_key, pool.shape) + (pool == 0)  # pooled classes first
    chosen = jnp.argsort(scores)[:way].astype(jnp.int32)
    return jax.random.permutation(order_key, chosen)


def sample_tasks(
    keys: Array, table: ClassTable, pool: Array, *, way: int, shot: int, query: int
) -> tuple[Array, Array]:
    """A hard task for every key: (support int32 [T, N, K], query int32 [T, N, Q]), positions of images.

    Raises:
      DataError: the table has too few classes, or a class too few images; see `episodes.sample_episode`.
      ConfigError: the pool does not have one count for each class of the table.
    """
    episodes.check_sizes(table, way=way, shot=shot, query=query)
    if pool.shape != table.counts.shape:
        raise ConfigError(f"the pool has shape {pool.shape}, expected {table.counts.shape}: one number per class")

    def sample(key):
        class_key, image_key = jax.random.split(key)
        return episodes.sample_images(image_key, table, sample_classes(class_key, pool, way), shot=shot, query=query)

    return jax.vmap(sample)(keys)


def train_step(
    state: meta.MetaState, params: Params, tasks: meta.Episode, **options: Any
) -> tuple[meta.MetaState, dict[str, Array]]:
    """`meta.train_step` on hard tasks, without advancing the step or the learning rate's schedule.

    So runs with and without hard tasks see the same normal tasks at the same rates.
    """
    new, metrics = meta.train_step(state, params, tasks, **options)
    return uncounted(new, state), metrics


def uncounted(new: meta.MetaState, old: meta.MetaState) -> meta.MetaState:
    """The state after an optimiser step, with the step number and schedule from before it."""
    return new._replace(step=old.step, opt_state=optimizers.keep_schedule(new.opt_state, old.opt_state))

"""Stateless sampling of few-shot tasks: a key and a class table in, positions of images out, on device.

Classes are drawn uniformly without replacement from a split, images uniformly without replacement from each class; so
support and query set never share an image. The key alone determines the task.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import DataError
from mtl_jax.types import Array, ClassTable, Episode
from mtl_jax.words import counted


def check_table(
    table: ClassTable, names: Sequence[str], *, way: int, shot: int, query: int, split: str = "this split"
) -> None:
    """Checks that a split has enough classes and images for its tasks. Call it once, outside `jit`.

    Args:
      table: the split's classes.
      names: the class names, in the table's order.
      way, shot, query: classes per task, support images per class, query images per class.
      split: the split's name, for the message.

    Raises:
      DataError: there are fewer classes than `way`, or a class has fewer than `shot + query` images.
    """
    counts = np.asarray(table.counts)
    if len(counts) < way:
        flags = f", or give --config.meta.way={len(counts)} (evaluate.py: --way={len(counts)})"
        raise DataError(
            f"{split} has {counted(len(counts), 'class')}, too few for {way}-way tasks; add classes"
            f"{flags if len(counts) > 1 else ''}"
        )
    small = np.flatnonzero(counts < shot + query)
    if small.size:
        listed = ", ".join(f"{names[i]} ({counts[i]})" for i in small[:5]) + (", ..." if small.size > 5 else "")
        raise DataError(
            f"{split} has {counted(small.size, 'class')} with fewer than {shot} + {query} images (shot + query): "
            f"{listed}; lower shot or query, or add images"
        )


def check_sizes(table: ClassTable, *, way: int, shot: int, query: int) -> None:
    """As `check_table`, without names. Of a traced table only the shape is known and checked.

    Raises:
      DataError: as `check_table`.
    """
    counts: Any = table.counts
    if isinstance(counts, jax.core.Tracer):
        counts = np.full(counts.shape, table.indices.shape[1])
    names = [f"class {number}" for number in range(len(counts))]
    check_table(ClassTable(table.indices, counts), names, way=way, shot=shot, query=query, split="the table")


def sample_episode(key: Array, table: ClassTable, *, way: int, shot: int, query: int) -> tuple[Array, Array]:
    """Draws one task.

    The support images are drawn before the query images, so another `query` keeps the support set of the same key.

    A table that is an argument under `jit` cannot be checked: the positions that a class lacks are then -1, which JAX
    takes for the last image of all. Call `check_table` once, outside `jit`.

    Args:
      key: a JAX key.
      table: the split's classes.
      way, shot, query: N, K, Q.

    Returns:
      (support int32 [N, K], query int32 [N, Q]): positions of images; row n is the task's class n.

    Raises:
      DataError: the table has too few classes, or a class too few images.
    """
    check_sizes(table, way=way, shot=shot, query=query)
    class_key, image_key = jax.random.split(key)
    return sample_images(image_key, table, sample_classes(class_key, table, way), shot=shot, query=query)


def sample_classes(key: Array, table: ClassTable, way: int) -> Array:
    """`way` distinct classes of a table, uniformly and in random order: int32 [N]."""
    return jnp.argsort(jax.random.uniform(key, table.counts.shape))[:way].astype(jnp.int32)


def sample_images(key: Array, table: ClassTable, classes: Array, *, shot: int, query: int) -> tuple[Array, Array]:
    """Draws images of these classes, int [N]: (support [N, K], query [N, Q]), as `sample_episode`."""
    indices, counts = jnp.asarray(table.indices)[classes], jnp.asarray(table.counts)[classes]  # also of NumPy's tables
    width = indices.shape[1]
    absent = jnp.arange(width) >= counts[:, None]
    scores = jax.random.uniform(key, (len(classes), width)) + 2 * absent  # absent ones last
    _, picked = jax.lax.top_k(-scores, shot + query)
    images = jnp.take_along_axis(indices, picked, axis=1)
    return images[:, :shot], images[:, shot:]


def numbered_keys(key: Array, numbers: Array) -> Array:
    """One key for each of `numbers` [T]. It depends on the number alone, so any device computes the same one."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def task_keys(key: Array, step: int | Array, numbers: Array) -> Array:
    """The keys of tasks `numbers` [T] of a step's meta-batch. Task t of step s is the same on any device."""
    return numbered_keys(jax.random.fold_in(key, step), numbers)


def sample_tasks(keys: Array, table: ClassTable, *, way: int, shot: int, query: int) -> tuple[Array, Array]:
    """`sample_episode` for every key: (support int32 [T, N, K], query int32 [T, N, Q])."""
    return jax.vmap(lambda key: sample_episode(key, table, way=way, shot=shot, query=query))(keys)


def count_distinct(support: np.ndarray, query: np.ndarray) -> int:
    """How many of T tasks are distinct: positions [T, N, K] and [T, N, Q] in a split.

    Two tasks are the same if they have the same classes and, for each class, the same support and the same query
    images, in any order.
    """
    rows = np.concatenate([np.sort(support, axis=2), np.sort(query, axis=2)], axis=2)
    order = np.argsort(rows[:, :, 0], axis=1)  # classes share no image, so the first support image names the class
    rows = np.take_along_axis(rows, order[:, :, None], axis=1)
    return len(np.unique(rows.reshape(len(rows), -1), axis=0))


def gather(images: Array, support: Array, query: Array) -> Episode:
    """The episode, or batch of episodes, at sampled positions.

    Args:
      images: [M, ...], the split's images or their features.
      support: int [..., N, K].
      query: int [..., N, Q].

    Returns:
      An Episode with rows in class-major order: [..., N K, ...] and [..., N Q, ...].

    Raises:
      DataError: a position is not one of 0..M-1. Under `jit` this is not checked, and JAX takes another image.
    """
    check_positions(len(images), support, query)
    return Episode(
        images[support.reshape(*support.shape[:-2], -1)], class_major_labels(support),
        images[query.reshape(*query.shape[:-2], -1)], class_major_labels(query),
    )  # fmt: skip


def check_positions(count: int, *positions: Array) -> None:
    """Raises DataError unless all positions are 0..`count` - 1. Under `jit` they are unknown and not checked."""
    for values in (np.asarray(part) for part in positions if not isinstance(part, jax.core.Tracer)):
        if values.size and (values.min() < 0 or values.max() >= count):
            raise DataError(
                f"positions of images are {values.min()} to {values.max()}, expected 0 to {count - 1}: these are tasks "
                "of other images, or of a table that `check_table` would refuse"
            )


def class_major_labels(indices: Array) -> Array:
    """Labels 0..N-1 for sampled positions [..., N, K], in class-major order: int32 [..., N K]."""
    *lead, way, each = indices.shape
    return jnp.broadcast_to(jnp.repeat(jnp.arange(way, dtype=jnp.int32), each), (*lead, way * each))

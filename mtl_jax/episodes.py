"""Stateless sampling of few-shot tasks: a key and a class table in, indices of images out, on device.

Classes are uniform without replacement over a split's classes, images uniform without replacement over a class, so
support and query never share an image. Nothing is remembered from task to task: the key makes the task.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import DataError
from mtl_jax.types import Array, ClassTable, Episode


def check_table(
    table: ClassTable, names: Sequence[str], *, way: int, shot: int, query: int, split: str = "this split"
) -> None:
    """Checks once, outside `jit`, that a split can give the tasks asked for.

    Args:
      table: the split's classes.
      names: the class names, in the table's order.
      way, shot, query: classes, support images a class, query images a class.
      split: the split's name, for the message.

    Raises:
      DataError: fewer classes than `way`, or a class with fewer than `shot + query` images; names split and class.
    """
    counts = np.asarray(table.counts)
    if len(counts) < way:
        raise DataError(f"{split} has {len(counts)} classes, too few for {way}-way tasks; lower way or add classes")
    small = np.flatnonzero(counts < shot + query)
    if small.size:
        listed = ", ".join(f"{names[i]} ({counts[i]})" for i in small[:5]) + (", ..." if small.size > 5 else "")
        raise DataError(
            f"{split} has {small.size} classes with fewer than {shot} + {query} images (shot + query): {listed}; "
            "lower shot or query, or add images"
        )


def check_sizes(table: ClassTable, *, way: int, shot: int, query: int) -> None:
    """`check_table` where a table can be looked at; under tracing, only what its shape tells.

    Raises:
      DataError: as `check_table`.
    """
    counts = table.counts
    if isinstance(counts, jax.core.Tracer):
        counts = np.full(counts.shape, table.indices.shape[1])
    names = [f"class {number}" for number in range(len(counts))]
    check_table(ClassTable(None, counts), names, way=way, shot=shot, query=query, split="the table")


def sample_episode(key: Array, table: ClassTable, *, way: int, shot: int, query: int) -> tuple[Array, Array]:
    """Draws one task.

    The support images are drawn before the query images, so another `query` keeps the support set of the same key.

    A table that is an argument of a function under `jit` cannot be looked at: of a class with too few images the
    missing ones are then -1, which JAX takes for the last image of all. Call `check_table` once, outside.

    Args:
      key: a JAX key.
      table: the split's classes.
      way, shot, query: N, K, Q.

    Returns:
      (support int32 [N, K], query int32 [N, Q]): positions of images, row n holding class n of the task.

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
    """Draws images of the given classes [N]: (support [N, K], query [N, Q]), as `sample_episode`."""
    indices, counts = jnp.asarray(table.indices)[classes], jnp.asarray(table.counts)[classes]  # also of NumPy's tables
    width = indices.shape[1]
    absent = jnp.arange(width) >= counts[:, None]
    scores = jax.random.uniform(key, (len(classes), width)) + 2 * absent  # absent ones last
    _, picked = jax.lax.top_k(-scores, shot + query)
    images = jnp.take_along_axis(indices, picked, axis=1)
    return images[:, :shot], images[:, shot:]


def numbered_keys(key: Array, numbers: Array) -> Array:
    """A key for each of `numbers` [T], a function of the number alone: the same wherever it is computed."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def task_keys(key: Array, step: int | Array, numbers: Array) -> Array:
    """The keys of the tasks `numbers` [T] of the meta-batch of a step: task t of step s is the same on any device."""
    return numbered_keys(jax.random.fold_in(key, step), numbers)


def sample_tasks(keys: Array, table: ClassTable, *, way: int, shot: int, query: int) -> tuple[Array, Array]:
    """`sample_episode` for every key: (support int32 [T, N, K], query int32 [T, N, Q])."""
    return jax.vmap(lambda key: sample_episode(key, table, way=way, shot=shot, query=query))(keys)


def count_distinct(support: np.ndarray, query: np.ndarray) -> int:
    """How many tasks differ, of positions [T, N, K] and [T, N, Q] in a split.

    Two tasks are the same where they have the same classes and, of each class, the same support images and the same
    query images, in whatever order classes and images stand: what is asked is then the same.
    """
    rows = np.concatenate([np.sort(support, axis=2), np.sort(query, axis=2)], axis=2)
    order = np.argsort(rows[:, :, 0], axis=1)  # a class is known by its first support image: classes share none
    rows = np.take_along_axis(rows, order[:, :, None], axis=1)
    return len(np.unique(rows.reshape(len(rows), -1), axis=0))


def gather(images: Array, support: Array, query: Array) -> Episode:
    """The episode, or batch of episodes, of sampled positions.

    Args:
      images: [M, ...] the split's images, or features.
      support: int [..., N, K].
      query: int [..., N, Q].

    Returns:
      An Episode with rows in class-major order: [..., N K, ...] and [..., N Q, ...].

    Raises:
      DataError: positions that are none of an image; under `jit`, where they cannot be looked at, JAX takes another.
    """
    check_positions(len(images), support, query)
    return Episode(
        images[support.reshape(*support.shape[:-2], -1)], class_major_labels(support),
        images[query.reshape(*query.shape[:-2], -1)], class_major_labels(query),
    )  # fmt: skip


def check_positions(count: int, *positions: Array) -> None:
    """Whether positions, where they can be looked at, are those of `count` images. Raises DataError."""
    for found in (np.asarray(part) for part in positions if not isinstance(part, jax.core.Tracer)):
        if found.size and (found.min() < 0 or found.max() >= count):
            raise DataError(
                f"positions of images are {found.min()} to {found.max()}, expected 0 to {count - 1}: these are tasks "
                "of other images, or of a table that `check_table` would refuse"
            )


def class_major_labels(indices: Array) -> Array:
    """Labels 0..N-1 of sampled positions [..., N, K] in class-major order: int32 [..., N K]."""
    *lead, way, each = indices.shape
    return jnp.broadcast_to(jnp.repeat(jnp.arange(way, dtype=jnp.int32), each), (*lead, way * each))

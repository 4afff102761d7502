"""Where a compiled meta-training step gets its tasks from: a split on the devices, or one on the host.

The tasks are the same either way, bit for bit: keys make positions, and positions are looked up on the device or in the
memory map of the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import episodes, hard_tasks, parallel
from mtl_jax.config.recipe import MetaRecipe
from mtl_jax.data import Split
from mtl_jax.data.prefetch import Ahead, gather
from mtl_jax.meta import MetaState
from mtl_jax.types import Array, ClassTable, Episode


class Sizes(NamedTuple):
    """N, K, Q per class; tasks: of a device in a meta-batch; chunk: how many of these a step takes at once."""

    way: int
    shot: int
    query: int
    tasks: int
    chunk: int

    def of_task(self) -> dict[str, int]:
        """The keyword arguments of the samplers."""
        return {"way": self.way, "shot": self.shot, "query": self.query}


class Source(NamedTuple):
    """A stream of tasks.

    draw: inside the step, (device's number, state, chunk's number, *arguments) -> (tasks, their base classes [T, N]).
    arguments: outside it, (state, step, batch) -> arguments for a dispatch from `step`; `batch` counts the meta-batches
    of a round of hard tasks.
    count: how many arguments there are. split: how many of them, the last ones, have a leading axis of devices.
    close: ends the threads that gather images ahead of the steps.
    """

    draw: Callable[..., tuple[Episode, Array]]
    arguments: Callable[[MetaState, int, int], tuple[Any, ...]]
    count: int
    split: int = 0
    close: Callable[[], None] = lambda: None


def positions(sizes: Sizes, hard: bool, state: Any, key: Array, table: ClassTable, batch: Any, numbers: Array) -> Any:
    """The positions of the images of the tasks with these numbers in the meta-batch of a step.

    Args:
      sizes: of a task.
      hard: whether classes are drawn from the pool.
      state: of it `step` is read and, for hard tasks, `pool`.
      key: of the stream.
      table: the split's classes.
      batch: which meta-batch of the round, for hard tasks.
      numbers: int [T].

    Returns:
      (support [T, N, K], query [T, N, Q]).
    """
    if not hard:
        return episodes.sample_tasks(episodes.task_keys(key, state.step, numbers), table, **sizes.of_task())
    keys = episodes.task_keys(jax.random.fold_in(key, state.step), batch, numbers)
    return hard_tasks.sample_tasks(keys, table, state.pool, **sizes.of_task())


def on_device(
    split: Split, devices: Sequence[jax.Device], sizes: Sizes, key: Array, *, hard: bool = False, placed: Any = None
) -> Source:
    """Tasks of a split that lies on every device whole: drawn and gathered inside the step.

    Args:
      split: the train split.
      devices: all devices of the run.
      sizes: of a task and of a device's part of the meta-batch.
      key: of the stream.
      hard: draw classes from the state's pool.
      placed: what `place_split` returned, to be shared between sources.
    """
    images, table, labels = placed or place_split(split, devices)
    key = parallel.replicate(key, devices)

    def draw(
        number: Array,
        state: Any,
        chunk: Array,
        images: Array,
        table: ClassTable,
        labels: Array,
        key: Array,
        batch: Array,
    ) -> tuple[Episode, Array]:
        own = parallel.task_numbers(number, len(devices), len(devices) * sizes.tasks)
        numbers = jax.lax.dynamic_slice_in_dim(own, chunk * sizes.chunk, sizes.chunk)
        support, query = positions(sizes, hard, state, key, table, batch, numbers)
        return episodes.gather(images, support, query), labels[support[:, :, 0]]

    return Source(draw, lambda state, step, batch: (images, table, labels, key, np.int32(batch)), count=5)


def place_split(split: Split, devices: Sequence[jax.Device]) -> Any:
    """(images, class table, labels) of a split, whole on every device."""
    return parallel.replicate((split.images, ClassTable(*split.table()), split.labels), devices)


def on_host(
    split: Split, devices: Sequence[jax.Device], sizes: Sizes, key: Array, *,
    hard: bool = False, repeat: int = 1, steps: int = 0,
) -> Source:  # fmt: skip
    """Tasks of a split that stays in its memory map: drawn and gathered on the host, the normal ones ahead of the step.

    Args:
      split, devices, sizes, key, hard: as in `on_device`. Hard tasks depend on the round before them, so they wait.
      repeat: steps in a dispatch.
      steps: where the stream ends.
    """
    table = ClassTable(*map(jnp.asarray, split.table()))
    own, tasks = parallel.own_numbers(devices), len(devices) * sizes.tasks
    numbers = jnp.concatenate([parallel.task_numbers(number, len(devices), tasks) for number in own])
    draw_positions = jax.jit(lambda state, batch: positions(sizes, hard, state, key, table, batch, numbers))

    def rows_of(states: Sequence[Any], batch: int = 0) -> tuple[np.ndarray, ...]:
        # [own devices, steps, tasks, N K] and [..., N Q]
        drawn = [draw_positions(state, batch) for state in states]
        shape = (len(states), len(own), sizes.tasks, -1)
        return tuple(np.stack(part).reshape(shape).swapaxes(0, 1) for part in zip(*drawn, strict=True))

    def draw(
        number: Array, state: Any, chunk: Array, first: Array, support: Array, query: Array, classes: Array
    ) -> tuple[Episode, Array]:
        step = state.step - first
        task = [
            jax.lax.dynamic_slice_in_dim(a[step], chunk * sizes.chunk, sizes.chunk) for a in (support, query, classes)
        ]
        labels = [
            episodes.class_major_labels(rows[..., 0, 0, 0].reshape(sizes.chunk, sizes.way, -1)) for rows in task[:2]
        ]
        return Episode(task[0], labels[0], task[1], labels[1]), task[2]

    ahead = Ahead(split.images, lambda start: map(rows_of, _dispatches(start, steps, repeat)), steps=repeat)

    def arguments(state, step, batch):
        if hard:
            rows = rows_of([parallel.local(state)], batch)
            images = gather(split.images, rows)
            step = int(parallel.local(state.step))
        else:
            rows, images = ahead.get(step)
        classes = split.labels[rows[0][..., :: sizes.shot]]
        return np.int32(step), *parallel.spread((*images, classes), devices)

    return Source(draw, arguments, count=4, split=3, close=ahead.close)


class _Step(NamedTuple):
    """Stands in for a MetaState: drawing normal tasks reads `step` alone."""

    step: int


def _dispatches(start: int, steps: int, repeat: int) -> Iterator[list[_Step]]:
    return ([_Step(first + i) for i in range(repeat)] for first in range(start, steps, repeat))


def sources(recipe: MetaRecipe, split: Split, devices: Sequence[jax.Device], sizes: Sizes) -> tuple[Source, Source]:
    """The sources of normal and of hard tasks, on the devices where the split fits them."""
    keys = recipe.keys.tasks, recipe.keys.hard_tasks
    if recipe.limits.on_device(split):
        placed = place_split(split, devices)
        return tuple(on_device(split, devices, sizes, key, hard=hard, placed=placed) for hard, key in enumerate(keys))
    steps, repeat = recipe.intervals.steps, recipe.intervals.per_dispatch
    normal = on_host(split, devices, sizes, keys[0], repeat=repeat, steps=steps)
    return normal, on_host(split, devices, sizes, keys[1], hard=True)

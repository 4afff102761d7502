"""Where a compiled meta-training step gets its tasks from: a split on the devices, or one on the host.

The tasks are the same either way, bit for bit: keys make positions, and positions are looked up on the device or in the
memory map of the cache.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import episodes, hard_tasks, parallel
from mtl_jax.config import build
from mtl_jax.data import Split
from mtl_jax.data.prefetch import Ahead, gather
from mtl_jax.meta import MetaState
from mtl_jax.types import Array, ClassTable, Episode


class Sizes(NamedTuple):
    """N, K, Q per class, the tasks of a device, and how many of them are taken at once."""

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

    take: inside the step, (device's number, state, part, *arguments) -> (tasks, their base classes [T, N]); `part` says
    which chunk of the device's tasks.
    arguments: outside it, (state, step, batch) -> arguments for a dispatch from `step`; `batch` counts the meta-batches
    of a round of hard tasks.
    count: how many there are. apart: how many of them, the last ones, lie device by device along their leading axis.
    close: ends what works ahead.
    """

    take: Callable[..., tuple[Episode, Array]]
    arguments: Callable[[MetaState, int, int], tuple[Any, ...]]
    count: int
    apart: int = 0
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
      placed: what `place` returned, to be shared between sources.
    """
    images, table, labels = placed or place(split, devices)
    key = parallel.replicate(key, devices)

    def take(number, state, part, images, table, labels, key, batch):
        mine = parallel.task_numbers(number, len(devices), len(devices) * sizes.tasks)
        numbers = jax.lax.dynamic_slice_in_dim(mine, part * sizes.chunk, sizes.chunk)
        support, query = positions(sizes, hard, state, key, table, batch, numbers)
        return episodes.gather(images, support, query), labels[support[:, :, 0]]

    return Source(take, lambda state, at, batch: (images, table, labels, key, np.int32(batch)), count=5)


def place(split: Split, devices: Sequence[jax.Device]) -> Any:
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
    draw = jax.jit(lambda state, batch: positions(sizes, hard, state, key, table, batch, numbers))

    def find(states: Sequence[Any], batch: int = 0) -> tuple[np.ndarray, ...]:
        # [own devices, steps, tasks, N K] and [..., N Q]
        drawn = [draw(state, batch) for state in states]
        shape = (len(states), len(own), sizes.tasks, -1)
        return tuple(np.stack(part).reshape(shape).swapaxes(0, 1) for part in zip(*drawn, strict=True))

    def take(number, state, part, first, support, query, classes):
        step = state.step - first
        task = [
            jax.lax.dynamic_slice_in_dim(a[step], part * sizes.chunk, sizes.chunk) for a in (support, query, classes)
        ]
        labels = [
            episodes.class_major_labels(rows[..., 0, 0, 0].reshape(sizes.chunk, sizes.way, -1)) for rows in task[:2]
        ]
        return Episode(task[0], labels[0], task[1], labels[1]), task[2]

    ahead = Ahead(split.images, lambda at: map(find, _dispatches(at, steps, repeat)), steps=repeat)

    def arguments(state, at, batch):
        if hard:
            positions = find([parallel.local(state)], batch)
            images = gather(split.images, positions)
            at = int(parallel.local(state.step))
        else:
            positions, images = ahead.get(at)
        classes = split.labels[positions[0][..., :: sizes.shot]]
        return np.int32(at), *parallel.spread((*images, classes), devices)

    return Source(take, arguments, count=4, apart=3, close=ahead.close)


class _At(NamedTuple):
    """As much of a state as normal tasks depend on."""

    step: int


def _dispatches(at: int, steps: int, repeat: int) -> Iterator[list[_At]]:
    return ([_At(first + i) for i in range(repeat)] for first in range(at, steps, repeat))


def source(
    config: Mapping[str, Any], split: Split, devices: Sequence[jax.Device], sizes: Sizes, keys: tuple[Array, Array]
) -> tuple[Source, Source]:
    """The sources of normal and of hard tasks, on the devices where the split fits `data.device_budget_gb`."""
    if build.is_on_device(config, split):
        placed = place(split, devices)
        return tuple(on_device(split, devices, sizes, key, hard=hard, placed=placed) for hard, key in enumerate(keys))
    repeat, steps = config["runtime"]["steps_per_dispatch"], config["meta"]["steps"]
    normal = on_host(split, devices, sizes, keys[0], repeat=repeat, steps=steps)
    return normal, on_host(split, devices, sizes, keys[1], hard=True)

"""Devices: what kind they are, one step on one or many of them, and independent work shared out among them.

Devices may belong to several processes. Each process then calls the same functions in the same order, with the devices
of all processes; what it passes in and gets back lies on its own devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
TASKS_IN_CACHE = 25  # of 8, 25, 50 and 100 tasks the best for most base-learners

Devices = Sequence[jax.Device] | None  # None: JAX's default device, in this process alone
Step = Callable[..., tuple[Any, dict[str, jax.Array]]]


def on_cpu() -> bool:
    """Whether JAX's default devices are CPUs."""
    return jax.default_backend() == "cpu"


def map_tasks(function: Callable[[Any], Any], tasks: Any) -> Any:
    """`function` of every task, as by `jax.vmap`, in the form for JAX's default device.

    On a CPU it takes `TASKS_IN_CACHE` tasks at a time, since what thousands compute at once does not fit into the
    processor's cache (docs/performance.md).

    Args:
      function: of a tree of arrays. tasks: the same tree with a leading axis T.

    Returns:
      What it returns, with a leading axis T.
    """
    if on_cpu() and len(jax.tree.leaves(tasks)[0]) > TASKS_IN_CACHE:
        return jax.lax.map(function, tasks, batch_size=TASKS_IN_CACHE)
    return jax.vmap(function)(tasks)


def own(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices that belong to this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def own_numbers(devices: Sequence[jax.Device]) -> list[int]:
    """The positions in `devices` of those that belong to this process."""
    mine = own(devices)
    return [number for number, device in enumerate(devices) if device in mine]


def processes(devices: Sequence[jax.Device]) -> list[int]:
    """The numbers of the processes that the devices belong to, in order."""
    return sorted({device.process_index for device in devices})


def one_of_each(devices: Devices) -> Devices:
    """The first device of every process, for work that cannot be spread over several."""
    if devices is None:
        return None
    return [next(d for d in devices if d.process_index == process) for process in processes(devices)]


def replicate(tree: Any, devices: Devices) -> Any:
    """Copies every array of a tree to all of this process's devices; None: leaves it where it is.

    `pmap` with `in_axes=None` would copy it at each call. With several processes their trees must be equal.
    """
    return tree if devices is None else jax.device_put(tree, _on_own(devices, PartitionSpec()))


def spread(tree: Any, devices: Devices) -> Any:
    """Splits every array of a tree by its leading axis over this process's devices; None: leaves it where it is."""
    return tree if devices is None else jax.device_put(tree, _on_own(devices, PartitionSpec(AXIS)))


def _on_own(devices: Sequence[jax.Device], spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(own(devices)), (AXIS,)), spec)


def local(tree: Any) -> Any:
    """This process's copy of replicated arrays, on one device. (`x[0]` would compile.)"""
    return jax.tree.map(lambda x: x.addressable_shards[0].data if isinstance(x, jax.Array) else x, tree)


def from_all_processes(array: Any, devices: Sequence[jax.Device]) -> np.ndarray:
    """Gathers one array [...] from each process, all of one shape; every process gets [processes, ...]."""
    array = np.asarray(array)
    if len(processes(devices)) == 1:
        return array[None]
    # As bytes, because JAX would make wider numbers 32 bits wide.
    raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    gathered = multihost_utils.process_allgather(raw)
    return gathered.view(array.dtype).reshape(len(gathered), *array.shape)


def in_chunks(run: Callable[[int, int], Any], total: int, chunk: int, devices: Devices = None) -> np.ndarray:
    """The results of items 0 .. total - 1, computed chunk by chunk; all chunks have one size, so one shape is compiled.

    Args:
      run: (start, count) -> the results of `count` items, [count, ...]; those beyond the last item are thrown away.
      total: how many items there are.
      chunk: how many items to run at once, at most (rounded up to a multiple of this process's devices).
      devices: where `run` spreads a chunk. With several processes each runs its share of the chunks and all of them get
        all results, so all must call this.

    Returns:
      [total, ...].
    """
    rank, count, parts = 0, 1, 1
    if devices is not None:
        members, parts = processes(devices), len(own(devices))
        rank, count = members.index(jax.process_index()), len(members)
    chunk = parts * -(-min(chunk, -(-total // count)) // parts)
    rounds = -(-total // (chunk * count))
    results = np.stack([np.asarray(run((turn * count + rank) * chunk, chunk)) for turn in range(rounds)])
    if devices is not None and count > 1:  # [processes, rounds, chunk, ...] -> [rounds * processes, chunk, ...]
        results = from_all_processes(results, devices).swapaxes(0, 1)
        results = results.reshape(-1, *results.shape[2:])
    return results.reshape(-1, *results.shape[2:])[:total]


def vary_like(tree: Any, reference: Any) -> Any:
    """Marks a tree as differing between the devices of a `shard_map` if `reference` does; otherwise returns the tree.

    Do this to parameters before you differentiate a device's own loss: by parameters that are the same on all devices
    JAX gives the sum of the devices' gradients. `jit`, `vmap`, `pmap` and an unchecked `shard_map` have no such marks.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(reference)))
    return jax.tree.map(lambda leaf: _mark(leaf, axes - _varying_axes(leaf)), tree) if axes else tree


def _varying_axes(x: Any) -> frozenset:
    kind = jax.typeof(x)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # in older JAX, in newer


def _mark(x: Any, axes: frozenset) -> Any:
    if not axes:
        return x
    names = tuple(sorted(axes))
    lax: Any = jax.lax  # pvary is of older versions
    return lax.pcast(x, names, to="varying") if hasattr(lax, "pcast") else lax.pvary(x, names)


def compile_step(
    step: Callable[..., Any], devices: Sequence[jax.Device], *,
    arguments: int, apart: int = 0, repeat: int = 1, spread: Any = None,
) -> Step:  # fmt: skip
    """Compiles `step(number, axis_name, state, *arguments)`: `jit` on one device, `pmap` on many. The state is donated.

    `number` is the device's position in `devices`, `axis_name` the mapped axis; on one device they are 0 and None.
    The state, the results, and all arguments but the last `apart` are the same on all devices.

    Args:
      step: a pure function, to (new state, metrics).
      devices: those of this process, or of all processes.
      arguments: how many arguments follow the state.
      apart: how many of them, the last ones, differ between devices. They have a leading axis of devices, which the
        step does not see.
      repeat: steps in one call, by `scan` (1 on CPUs, where gradients of convolutions are slow inside it); metrics then
        have a leading axis of that length.
      spread: per metric, the axis along which devices' values are concatenated, or None where they are equal:
        (None, {metric: axis}), naming all metrics. None: all are equal. A process gets its own devices' values.

    Returns:
      `call(state, *arguments)`, to (new state, metrics).
    """
    axes = {name: along for name, along in (spread[1] if spread else {}).items() if along is not None}

    def run(number, axis, state, *args):
        if repeat == 1:
            return step(number, axis, state, *args)
        return jax.lax.scan(lambda state, _: step(number, axis, state, *args), state, length=repeat)

    same = arguments - apart
    if len(devices) == 1:

        def alone(state, *args):
            own_parts = jax.tree.map(lambda a: a[0], args[same:])
            return run(0, None, state, *args[:same], *own_parts)

        return jax.jit(alone, donate_argnums=0)

    def split(number, state, *args):
        new, metrics = run(number, AXIS, state, *args)
        # A flat tuple: with several processes pmap takes no dict in `out_axes`.
        different = tuple(metrics[name] for name in axes)
        return new, {name: value for name, value in metrics.items() if name not in axes}, different

    mapped = jax.pmap(
        split, AXIS, in_axes=(0, None, *[None] * same, *[0] * apart), out_axes=(None, None, tuple(axes.values())),
        devices=devices, donate_argnums=1,
    )  # fmt: skip
    numbers = np.array(own_numbers(devices), np.int32)

    def call(state, *args):
        state, equal, different = mapped(numbers, state, *args)
        return state, {**equal, **dict(zip(axes, different, strict=True))}

    return call


def task_numbers(number: jax.Array | int, devices: int, tasks: int) -> jax.Array:
    """The numbers of a device's tasks in the whole meta-batch: `tasks` / `devices` consecutive ones."""
    each = tasks // devices
    return number * each + jax.numpy.arange(each, dtype=jax.numpy.int32)

"""The same step function on one device (`jit`) or on many (`pmap`), which may belong to several processes.

In a run of several processes (`hosts`) each of them calls the same functions in the same order, with the devices of all
processes; what it passes in and gets back lies on its own devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

Step = Callable[..., tuple[Any, dict[str, jax.Array]]]


def own(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of the devices that belong to this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def own_numbers(devices: Sequence[jax.Device]) -> list[int]:
    """The positions, among the devices, of those that belong to this process."""
    here = own(devices)
    return [number for number, device in enumerate(devices) if device in here]


def processes(devices: Sequence[jax.Device]) -> list[int]:
    """The numbers of the processes that the devices belong to, in order."""
    return sorted({device.process_index for device in devices})


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Places every array of a tree on all devices, once: `pmap` with `in_axes=None` would copy it at each call.

    Of several processes each places its own tree on its own devices, so the trees must be equal.
    """
    return jax.device_put(tree, _on_own(devices, PartitionSpec()))


def spread(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Places every array of a tree in equal parts, by its leading axis, on those of the devices that are own."""
    return jax.device_put(tree, _on_own(devices, PartitionSpec(AXIS)))


def _on_own(devices: Sequence[jax.Device], spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(own(devices)), (AXIS,)), spec)


def from_all_processes(array: Any, devices: Sequence[jax.Device]) -> np.ndarray:
    """The equally shaped arrays [...] of the processes that the devices belong to, as [processes, ...] in each."""
    array = np.asarray(array)
    if len(processes(devices)) == 1:
        return array[None]
    # As bytes, since what JAX moves it would first make 32 bits wide.
    raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    found = multihost_utils.process_allgather(raw)
    return found.view(array.dtype).reshape(len(found), *array.shape)


def local(tree: Any) -> Any:
    """This process's copy of replicated arrays, on one device. (`x[0]` would compile.)"""
    return jax.tree.map(lambda x: x.addressable_shards[0].data if isinstance(x, jax.Array) else x, tree)


def compile_step(
    step: Callable[..., Any], devices: Sequence[jax.Device], *,
    arguments: int, apart: int = 0, repeat: int = 1, spread: Any = None,
) -> Step:  # fmt: skip
    """Compiles `step(number, axis_name, state, *arguments)`, whose state is donated.

    `number` is the device's position among `devices` and `axis_name` the mapped axis; on one device they are 0 and None
    and the step is jitted alone. State and arguments are the same on all devices, but for the last `apart` arguments,
    and so must be what is returned.

    Args:
      step: a pure function.
      devices: those of this process, or of all processes, which must then call alike.
      arguments: how many arguments follow the state.
      apart: how many of them, the last ones, lie device by device along a leading axis that the step does not see.
      repeat: steps in one call, by `scan` (on CPUs 1: gradients of convolutions are slow inside it); metrics then have
        a leading axis of that length.
      spread: what of the result differs between devices: None, or (None, {metric: axis along which the devices' parts
        are joined, or None where they are equal}), with all metrics. Of several processes each gets its own devices'.

    Returns:
      `call(state, *arguments)`.
    """
    axes = {name: along for name, along in (spread[1] if spread else {}).items() if along is not None}

    def run(number, axis, state, *args):
        if repeat == 1:
            return step(number, axis, state, *args)
        return jax.lax.scan(lambda state, _: step(number, axis, state, *args), state, length=repeat)

    same = arguments - apart
    if len(devices) == 1:

        def alone(state, *args):
            mine = jax.tree.map(lambda a: a[0], args[same:])
            return run(0, None, state, *args[:same], *mine)

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

"""The same step function on one device (`jit`) or on all local ones (`pmap`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

Step = Callable[..., tuple[Any, dict[str, jax.Array]]]


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Places every array of a tree on all devices, once: `pmap` with `in_axes=None` would copy it at each call."""
    mesh = Mesh(np.array(devices), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def local(tree: Any) -> Any:
    """This process's copy of replicated arrays, on one device. (`x[0]` would compile.)"""
    return jax.tree.map(lambda x: x.addressable_shards[0].data if isinstance(x, jax.Array) else x, tree)


def compile_step(
    step: Callable[..., Any], devices: Sequence[jax.Device], *, arguments: int, repeat: int = 1, spread: Any = None
) -> Step:
    """Compiles `step(number, axis_name, state, *arguments)`, whose state is donated.

    `number` is the device's position among `devices` and `axis_name` the mapped axis; on one device they are 0 and None
    and the step is jitted alone. State and arguments are the same on all devices, and so must be what is returned.

    Args:
      step: a pure function.
      devices: local devices.
      arguments: how many arguments follow the state.
      repeat: steps in one call, by `scan` (on CPUs 1: gradients of convolutions are slow inside it); metrics then have
        a leading axis of that length.
      spread: `out_axes` of the result under pmap, None for leaves that are equal on all devices, 0 for others.

    Returns:
      `call(state, *arguments)`.
    """

    def run(number, axis, state, *args):
        if repeat == 1:
            return step(number, axis, state, *args)
        return jax.lax.scan(lambda state, _: step(number, axis, state, *args), state, length=repeat)

    if len(devices) == 1:
        return jax.jit(lambda state, *args: run(0, None, state, *args), donate_argnums=0)
    mapped = jax.pmap(
        lambda number, state, *args: run(number, AXIS, state, *args),
        AXIS, in_axes=(0, None, *[None] * arguments), out_axes=spread, devices=devices, donate_argnums=1,
    )  # fmt: skip
    numbers = np.arange(len(devices), dtype=np.int32)
    return lambda state, *args: mapped(numbers, state, *args)


def task_numbers(number: jax.Array | int, devices: int, tasks: int) -> jax.Array:
    """The numbers of a device's tasks in the whole meta-batch: `tasks` / `devices` consecutive ones."""
    each = tasks // devices
    return number * each + jax.numpy.arange(each, dtype=jax.numpy.int32)

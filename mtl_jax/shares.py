"""Independent work (images to embed, tasks to adapt) in chunks of one shape, shared by processes and their devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax import parallel

Devices = Sequence[jax.Device] | None  # None: JAX's default device, in this process alone


def in_chunks(run: Callable[[int, int], Any], total: int, chunk: int, devices: Devices = None) -> np.ndarray:
    """The results of items 0 .. total - 1, a whole chunk at a time so that one shape is compiled.

    Args:
      run: (start, count) -> the results of `count` items [count, ...]; beyond the last item anything will do.
      total: how many items.
      chunk: how many at once, at most (rounded up to a multiple of this process's devices).
      devices: where `run` spreads a chunk. Of several processes each runs every so-many-th chunk, and all of them get
        all results; so all must call this.

    Returns:
      [total, ...].
    """
    here, processes, parts = 0, 1, 1
    if devices is not None:
        members, parts = parallel.processes(devices), len(parallel.own(devices))
        here, processes = members.index(jax.process_index()), len(members)
    chunk = parts * -(-min(chunk, -(-total // processes)) // parts)
    rounds = -(-total // (chunk * processes))
    found = np.stack([np.asarray(run((turn * processes + here) * chunk, chunk)) for turn in range(rounds)])
    if processes == 1:
        return found.reshape(-1, *found.shape[2:])[:total]
    every = parallel.from_all_processes(found, devices).swapaxes(0, 1)
    return every.reshape(-1, *every.shape[3:])[:total]


def spread(tree: Any, devices: Devices) -> Any:
    """A chunk's arrays, in equal parts on this process's devices; as they are where it has but one."""
    return tree if devices is None or len(parallel.own(devices)) == 1 else parallel.spread(tree, devices)


def replicate(tree: Any, devices: Devices) -> Any:
    """What all items share, on each of this process's devices; as it is where it has but one."""
    return tree if devices is None or len(parallel.own(devices)) == 1 else parallel.replicate(tree, devices)


def one_of_each(devices: Devices) -> Devices:
    """The first device of every process, for work that cannot be spread over several."""
    if devices is None:
        return None
    return [next(d for d in devices if d.process_index == process) for process in parallel.processes(devices)]

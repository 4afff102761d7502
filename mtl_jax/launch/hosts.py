"""A run of several processes, one or more a host: how they find each other, wait, agree, stop and end together.

Every process runs the same program. All of them step, validate and evaluate with the devices of all; the first one
(number 0) alone writes into the workdir, where the others read checkpoints.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from orbax.checkpoint import multihost

from mtl_jax import parallel
from mtl_jax.errors import ConfigError, MtlError, first_line
from mtl_jax.launch.environment import check_devices
from mtl_jax.launch.signals import StopRequest

FLAGS = ("coordinator_address", "num_processes", "process_id")
HEARTBEAT_SECONDS = 20
"""A process that has been silent for this long is dead: the others then end, well within a minute."""

_LEAVING_SECONDS = 60  # between the ends of a run's first and last process
_LONGEST_WAIT_MS = 24 * 3600 * 1000  # the first process may prepare a large data set; a dead one is noticed anyway
_waits = itertools.count()


class ProcessesError(MtlError):
    """The processes of a run cannot find each other, do not agree, or one of them is gone."""


def define_flags(values: flags.FlagValues) -> None:
    """Defines --coordinator_address, --num_processes, --process_id and --distributed."""
    flags.DEFINE_string(FLAGS[0], None, "HOST:PORT of process 0, in a run of several processes", flag_values=values)
    flags.DEFINE_integer(FLAGS[1], None, "number of processes of the run", flag_values=values)
    flags.DEFINE_integer(FLAGS[2], None, "number of this process, from 0", flag_values=values)
    flags.DEFINE_bool(
        "distributed", None, "find the other processes as JAX does on a cluster; default: only in a SLURM or Open MPI "
        "step of several tasks", flag_values=values,
    )  # fmt: skip


def without_flags(argv: Sequence[str]) -> list[str]:
    """A command line without the three flags that tell the processes of a run apart."""
    names = tuple(f"--{name}=" for name in FLAGS)
    return [word for word in argv if not word.startswith(names)]


def is_cluster_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is one of several tasks that SLURM's srun or Open MPI's mpirun has started."""
    counts = (environment.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(count.isdecimal() and int(count) > 1 for count in counts)


def join(values: flags.FlagValues, environment: Mapping[str, str] = os.environ) -> None:
    """Joins the run's other processes, if the flags or the cluster say that there are any, and finds the devices.

    Call it before JAX has made an array.

    Raises:
      ConfigError: only a part of the three flags was given, they contradict each other, or JAX finds no device.
      ProcessesError: the others could not be found.
    """
    own = {name: values[name].value for name in FLAGS}
    is_distributed = values["distributed"].value
    if _check_flags(own):
        _initialize({**own, "cluster_detection_method": "deactivate"})  # or SLURM would give each process one device
    elif is_distributed or (is_distributed is None and is_cluster_step(environment)):
        _initialize({})
    check_devices()


def _initialize(options: Mapping[str, Any]) -> None:
    # Signals are agreed upon by StopTogether; JAX's own service would swallow SIGTERM where no loop listens to it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **options, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=_LEAVING_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        address = options.get("coordinator_address") or "the address that the cluster gives"
        raise ProcessesError(f"cannot join the other processes at {address}: {first_line(error)}") from error


def _check_flags(own: Mapping[str, Any]) -> bool:
    """Whether the three flags say that there are other processes. Raises ConfigError where they contradict."""
    missing = [name for name, value in own.items() if value is None]
    if missing and len(missing) < len(own):
        raise ConfigError(f"--{missing[0]} is missing; give all of {', '.join(f'--{name}' for name in FLAGS)}, or none")
    if missing:
        return False
    number, count = own["process_id"], own["num_processes"]
    if not 0 <= number < count:
        raise ConfigError(f"--process_id is {number}, expected 0 to {count - 1} (--num_processes - 1)")
    return count > 1


def is_joined() -> bool:
    """Whether `join` has found other processes."""
    return jax.distributed.is_initialized()


def abandon(status: int) -> None:
    """Ends one of several processes at once; does nothing in a run of one.

    A normal exit waits for the others, which wait for this one in a collective operation.
    """
    if is_joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_first() -> bool:
    """Whether this is the process that writes: always so in a run of one."""
    return jax.process_index() == 0


def devices(limit: int = 0) -> list[jax.Device]:
    """The devices of all processes, in order of the processes, the first `limit` of each (0: all)."""
    chosen: list[jax.Device] = []
    for process in range(jax.process_count()):
        chosen += [device for device in jax.devices() if device.process_index == process][: limit or None]
    return chosen


def wait() -> None:
    """Waits until all processes have called it; each must do so as often as the others. Nothing in a run of one."""
    if jax.process_count() == 1:
        return
    try:
        multihost.get_barrier_sync_fn()(key=f"mtl_jax {next(_waits)}", timeout_ms=_LONGEST_WAIT_MS)
    except RuntimeError as error:
        raise ProcessesError(f"another process of this run is gone: {first_line(error)}") from error


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the body before the others do, so that they find what it has put into the cache."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


@contextlib.contextmanager
def own_folder(path: str | Path) -> Iterator[Path]:
    """The folder that this process writes into: `path` for the first one, a temporary folder for the others."""
    if is_first():
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="mtl_jax-") as folder:
        yield Path(folder)


def check_same(what: str, facts: Any) -> None:
    """Checks that `facts`, which JSON can hold, are the same in all processes.

    Raises:
      ProcessesError: in all processes; names `what` and the first process that has another one.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
    digests = parallel.from_all_processes(np.frombuffer(digest, np.uint8), jax.devices())
    other = next((process for process, theirs in enumerate(digests) if (theirs != digests[0]).any()), None)
    if other is not None:
        raise ProcessesError(f"process {other} has a different {what} than process 0; start all processes the same way")


class StopTogether:
    """The stop request of all processes: once one of them gets a signal, it is true in all after the same dispatch.

    After each dispatch one integer is summed over all devices. The sum is fetched after the next dispatch, so that
    nobody waits for a step that has just started.
    """

    def __init__(self, request: StopRequest, devices: Sequence[jax.Device]) -> None:
        """Shares this process's `request` with the processes that `devices` belong to."""
        self._request, self._agreed, self._asked = request, False, None
        self._own = len(parallel.own(devices))
        self._sum = jax.pmap(
            lambda flag: jax.lax.psum(flag, parallel.AXIS), parallel.AXIS, out_axes=None, devices=devices
        )

    def __bool__(self) -> bool:
        return self._agreed

    def poll(self) -> None:
        """Fetches the sum of the last dispatch and starts the next; call it after each dispatch, in all processes."""
        if self._asked is not None:
            self._agreed = self._agreed or int(parallel.local(self._asked)) > 0
        self._asked = self._sum(np.full(self._own, bool(self._request), np.int32))


def stop_together(request: StopRequest, devices: Sequence[jax.Device]) -> StopRequest | StopTogether:
    """`request` itself in a run of one process, else that of all processes."""
    return StopTogether(request, devices) if len(parallel.processes(devices)) > 1 else request


def polling(dispatch: Callable[..., Any], stop: StopRequest | StopTogether) -> Callable[..., Any]:
    """A loop's dispatch that polls `stop` after each call."""
    if not isinstance(stop, StopTogether):
        return dispatch

    def polled(state: Any, step: int) -> Any:
        result = dispatch(state, step)
        stop.poll()
        return result

    return polled

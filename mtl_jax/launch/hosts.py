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
from mtl_jax.errors import ConfigError, MtlError
from mtl_jax.launch.signals import StopRequest

FLAGS = ("coordinator_address", "num_processes", "process_id")
HEARTBEAT_SECONDS = 20
"""A process that has been silent for so long is dead: the others then end, well within a minute."""

_LEAVING_SECONDS = 60  # that the processes of a run may end apart
_LONGEST_WAIT_MS = 24 * 3600 * 1000  # the first process may prepare a large data set; a dead one is noticed anyway
_waits = itertools.count()


class ProcessesError(MtlError):
    """The processes of a run cannot find each other, do not agree, or one of them is gone."""


def define_flags(values: flags.FlagValues) -> None:
    """Defines --coordinator_address, --num_processes, --process_id and --distributed."""
    flags.DEFINE_string(FLAGS[0], None, "HOST:PORT of process 0, in a run of several processes", flag_values=values)
    flags.DEFINE_integer(FLAGS[1], None, "how many processes the run has", flag_values=values)
    flags.DEFINE_integer(FLAGS[2], None, "which of them this is, from 0", flag_values=values)
    flags.DEFINE_bool(
        "distributed", None, "find the other processes as JAX does on this cluster; unset: in a step of SLURM or Open "
        "MPI with several tasks", flag_values=values,
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
    """Joins the run's other processes, if the flags or the cluster say that there are any.

    Call it before JAX has made an array.

    Raises:
      ConfigError: only a part of the three flags was given, or they contradict each other.
      ProcessesError: the others could not be found.
    """
    given = {name: values[name].value for name in FLAGS}
    by_flags = _check_flags(given)
    wanted = values["distributed"].value
    if by_flags:
        detection = {**given, "cluster_detection_method": "deactivate"}  # or SLURM would give each one device alone
    elif wanted or (wanted is None and is_cluster_step(environment)):
        detection = {}
    else:
        return
    # Signals are agreed upon by StopTogether; JAX's own service would swallow SIGTERM where no loop listens to it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **detection, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=_LEAVING_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        place = given["coordinator_address"] or "the address that the cluster gives"
        raise ProcessesError(f"cannot join the other processes at {place}: {_first_line(error)}") from error


def _check_flags(given: Mapping[str, Any]) -> bool:
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ConfigError(f"--{missing[0]} is missing; give all of {', '.join(f'--{name}' for name in FLAGS)}, or none")
    if not missing and not 0 <= given["process_id"] < given["num_processes"]:
        raise ConfigError(
            f"--process_id is {given['process_id']}, expected 0 to {given['num_processes'] - 1} (--num_processes - 1)"
        )
    return not missing and given["num_processes"] > 1


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    found: list[jax.Device] = []
    for process in range(jax.process_count()):
        found += [d for d in jax.devices() if d.process_index == process][: limit or None]
    return found


def wait() -> None:
    """Waits until all processes are here; each must call it as often as the others. Nothing in a run of one."""
    if jax.process_count() == 1:
        return
    try:
        multihost.get_barrier_sync_fn()(key=f"mtl_jax {next(_waits)}", timeout_ms=_LONGEST_WAIT_MS)
    except RuntimeError as error:
        raise ProcessesError(f"another process of this run is gone: {_first_line(error)}") from error


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the body before the others do, so that they find in the cache what it has put there."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


@contextlib.contextmanager
def own_folder(path: str | Path) -> Iterator[Path]:
    """Where this process writes: the first one into `path`, the others into a folder that is thrown away."""
    if is_first():
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="mtl_jax-") as folder:
        yield Path(folder)


def check_same(what: str, facts: Any) -> None:
    """Compares something that JSON can hold with what the other processes have.

    Raises:
      ProcessesError: names `what` and the first process that has another one, in all processes.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
    found = parallel.from_all_processes(np.frombuffer(digest, np.uint8), jax.devices())
    other = next((process for process, theirs in enumerate(found) if (theirs != found[0]).any()), None)
    if other is not None:
        raise ProcessesError(f"process {other} has another {what} than process 0; start all of them alike")


class StopTogether:
    """A stop request of all processes: once one of them gets a signal it is true in all after the same dispatch.

    Each dispatch is followed by a sum of one integer over all devices, which is fetched after the next dispatch, so
    that nobody waits for a step that has just been started.
    """

    def __init__(self, request: StopRequest, devices: Sequence[jax.Device]) -> None:
        """Tells the processes that `devices` belong to of this one's `request`."""
        self._request, self._agreed, self._asked = request, False, None
        self._own = len(parallel.own(devices))
        self._sum = jax.pmap(
            lambda flag: jax.lax.psum(flag, parallel.AXIS), parallel.AXIS, out_axes=None, devices=devices
        )

    def __bool__(self) -> bool:
        return self._agreed

    def poll(self) -> None:
        """Hears what was asked after the last dispatch, and asks anew: once after each dispatch, in all processes."""
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

    def polled(state: Any, at: int) -> Any:
        result = dispatch(state, at)
        stop.poll()
        return result

    return polled

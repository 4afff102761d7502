"""What a program asks of XLA, of the C library and of JAX's compilation cache, and how much memory it has used.

The programs call these before JAX makes its first array. The library sets nothing on import.
"""

import contextlib
import ctypes
import itertools
import os
import platform
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from mtl_jax.errors import ConfigError, first_line
from mtl_jax.words import counted

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

XLA_SWITCH, MALLOC_SWITCH, CACHE_SWITCH = "MTL_JAX_XLA_FLAGS", "MTL_JAX_MALLOC", "MTL_JAX_COMPILATION_CACHE"

# An unknown option aborts the process, so only the versions on which these were tried get them: see
# docs/performance.md, "XLA's options". Up to 0.9.0 XLA's own gradients are as fast.
TESTED_JAXLIBS = "0.9.1", "0.9.2", "0.10.0", "0.10.1", "0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1"
_TESTED = f"{TESTED_JAXLIBS[0]} to {TESTED_JAXLIBS[-1]}"

# XLA's own gradient of a convolution by its kernel runs at a fraction of the machine's rate; this library's does not.
_FUSION, _FUSION_TYPE = "--xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_DOT"
_DETERMINISTIC = "--xla_gpu_deterministic_ops"

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3), in glibc's malloc.h
_MIN_COMPILE_SECONDS = 0.5  # a shorter compilation is not worth a file


def configure_xla(environment: MutableMapping[str, str] | None = None) -> bool:
    """Adds the option for fast training on CPUs to XLA_FLAGS; call it before JAX makes its first array.

    An option that the user has set there stays. The environment variable MTL_JAX_XLA_FLAGS=0 turns this off.

    Returns:
      Whether the option was added.
    """
    environment = os.environ if environment is None else environment
    return environment.get(XLA_SWITCH) != "0" and _add_option(environment, _FUSION, _FUSION_TYPE)


def make_deterministic(environment: MutableMapping[str, str] | None = None) -> bool:
    """Has GPU kernels add up in a fixed order (`runtime.deterministic`); call it before JAX makes its first array.

    CPUs do so anyway. An option that the user has set in XLA_FLAGS stays. Untried versions are left alone, and a line
    on standard error says so.

    Returns:
      Whether the option was added.
    """
    environment = os.environ if environment is None else environment
    added = _add_option(environment, _DETERMINISTIC, "true")
    if _DETERMINISTIC not in environment.get("XLA_FLAGS", ""):
        print(
            f"warning: runtime.deterministic was tested with jaxlib {_TESTED} only, so it has "
            f"no effect with {metadata.version('jaxlib')}; set XLA_FLAGS={_DETERMINISTIC}=true yourself",
            file=sys.stderr,
        )
    return added


def _add_option(environment: MutableMapping[str, str], option: str, value: str) -> bool:
    flags = environment.get("XLA_FLAGS", "")
    if metadata.version("jaxlib") not in TESTED_JAXLIBS or option in flags:
        return False
    environment["XLA_FLAGS"] = f"{flags} {option}={value}".strip()
    return True


def cpu_warning(environment: Mapping[str, str] | None = None) -> str | None:
    """The warning for training on a CPU without the option that `configure_xla` adds; None where none is due."""
    environment = os.environ if environment is None else environment
    version = metadata.version("jaxlib")
    user_decided = _FUSION in environment.get("XLA_FLAGS", "") or environment.get(XLA_SWITCH) == "0"
    if user_decided or _version_numbers(version) < _version_numbers(TESTED_JAXLIBS[0]):
        return None
    slow = "XLA's option for CPUs is not set, so ResNets may train at half the speed"
    if version in TESTED_JAXLIBS:
        return f"{slow}; call mtl_jax.launch.environment.configure_xla() before JAX makes its first array"
    return (
        f"{slow}: it was tested with jaxlib {_TESTED}, and this is {version}. To try, add {_FUSION}={_FUSION_TYPE} to "
        f"XLA_FLAGS; a jaxlib that does not know it aborts"
    )


def _version_numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 0.10.2.dev3 -> (0, 10, 2)."""
    return tuple(map(int, itertools.takewhile(str.isdigit, version.split("."))))


def keep_freed_memory(environment: Mapping[str, str] | None = None) -> bool:
    """Has glibc's `malloc` keep what is freed, in the whole process; call it before JAX makes its first array.

    A step on a CPU takes arrays of many megabytes and frees them. By default the system maps each again, and fills its
    pages with zeros as they are touched, in every step. With this the process stays about as large as it ever was.

    Nothing happens without glibc, with the environment variable MTL_JAX_MALLOC=0, or where the user has set any of
    glibc's own variables (MALLOC_..., GLIBC_TUNABLES).

    Returns:
      Whether glibc took the setting.
    """
    environment = os.environ if environment is None else environment
    user_decided = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment)
    if environment.get(MALLOC_SWITCH) == "0" or user_decided or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def configure_compilation_cache() -> Path | None:
    """Keeps compiled programs between runs, in the user's cache folder; call it before anything is compiled.

    A folder that the user has given to JAX itself (JAX_COMPILATION_CACHE_DIR) stays, and so does
    JAX_ENABLE_COMPILATION_CACHE=false. The environment variable MTL_JAX_COMPILATION_CACHE names another folder; 0 turns
    the cache off. Its files can be deleted at any time.

    Returns:
      The folder that was set, or None.
    """
    chosen = os.environ.get(CACHE_SWITCH, "")
    config: Any = jax.config
    if chosen == "0" or config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(chosen).expanduser() if chosen else base / "mtl_jax" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to costs time, not the run
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    return folder


def check_devices() -> None:
    """Makes JAX find its devices; call it before anything that takes long, and after `hosts.join`.

    Raises:
      ConfigError: the platform of JAX_PLATFORMS is not there, or it has no device.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where CUDA's plugin is not installed
        reason = first_line(error).removeprefix("Unable to initialize backend ").partition(" (set JAX_PLATFORMS")[0]
        reason = f" ({reason})" if str(error) else ""
        config: Any = jax.config
        if asked := config.jax_platforms:
            raise ConfigError(
                f"JAX_PLATFORMS={asked}: JAX finds no such device here{reason}; leave JAX_PLATFORMS unset to use what "
                "is there, or install JAX for that device"
            ) from error
        raise ConfigError(f"JAX finds no device{reason}; set JAX_PLATFORMS=cpu to use the CPU") from error


@contextlib.contextmanager
def naming_missing_devices() -> Iterator[None]:
    """Turns the error of a body for which JAX has no device into that of `check_devices`."""
    try:
        yield
    except (RuntimeError, AssertionError):
        check_devices()
        raise


def device_facts(devices: Sequence[jax.Device] | None = None) -> dict[str, Any]:
    """What is reported of the devices that computed a result: platform ('gpu'), kind ('NVIDIA H100'), number."""
    devices = jax.devices() if devices is None else devices
    return {"device": devices[0].platform, "device_kind": devices[0].device_kind, "num_devices": len(devices)}


def describe_devices(facts: Mapping[str, Any]) -> str:
    """`device_facts` as words: '1 gpu device (NVIDIA H100 80GB HBM3)', '2 cpu devices'."""
    kind = facts["device_kind"]
    named = f" ({kind})" if kind != facts["device"] else ""
    return f"{counted(facts['num_devices'], facts['device'] + ' device')}{named}"


def memory_peaks() -> dict[str, float]:
    """The most memory used so far, in megabytes (10^6 bytes).

    Returns:
      `host_memory_mb` of the process, left out on Windows, and `device_memory_mb` of the fullest device, which is left
      out where JAX does not know it, as on CPUs.
    """
    peaks = {}
    if resource:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
        peaks["host_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in used if peak is not None]
    if known:
        peaks["device_memory_mb"] = max(known) / 1e6
    return {name: round(value, 1) for name, value in peaks.items()}

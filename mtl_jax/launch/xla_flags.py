"""XLA options that the programs set, for speed on CPUs and for fixed sums on GPUs; the library sets none on import."""

import itertools
import os
import sys
from collections.abc import Mapping, MutableMapping
from importlib import metadata

# An unknown option aborts the process, so only versions on which these have been tried get them: see
# docs/performance.md, "XLA's options". Up to 0.9.0 XLA's own gradients are as fast.
TESTED_JAXLIBS = "0.9.1", "0.9.2", "0.10.0", "0.10.1", "0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1"
_TESTED = f"{TESTED_JAXLIBS[0]} to {TESTED_JAXLIBS[-1]}"
SWITCH = "MTL_JAX_XLA_FLAGS"

# XLA's own gradient of a convolution by its kernel runs at a fraction of the machine's rate; this library's does not.
_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
_VALUE = "LIBRARY_FUSION_TYPE_DOT"
_DETERMINISTIC = "--xla_gpu_deterministic_ops"


def configure(environment: dict[str, str] | None = None) -> bool:
    """Adds the options to XLA_FLAGS; call it before JAX makes its first array.

    What the user has set there is not overridden. The environment variable MTL_JAX_XLA_FLAGS=0 turns it off.

    Returns:
      Whether the options were added.
    """
    environment = os.environ if environment is None else environment
    return environment.get(SWITCH) != "0" and _add(environment, _FUSION, _VALUE)


def cpu_warning(environment: Mapping[str, str] | None = None) -> str | None:
    """What to tell who trains on a CPU without the option that `configure` adds; None: nothing."""
    environment = os.environ if environment is None else environment
    version = metadata.version("jaxlib")
    chosen = _FUSION in environment.get("XLA_FLAGS", "") or environment.get(SWITCH) == "0"
    if chosen or _numbers(version) < _numbers(TESTED_JAXLIBS[0]):
        return None
    slow = "XLA's option for CPUs is not set, so ResNets may train at half the speed"
    if version in TESTED_JAXLIBS:
        return f"{slow}; call mtl_jax.xla_flags.configure() before JAX makes its first array"
    return (
        f"{slow}: it was tried with jaxlib {_TESTED}, and this is {version}. To try, add {_FUSION}={_VALUE} to "
        f"XLA_FLAGS; a jaxlib that does not know it aborts"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 0.10.2.dev3 -> (0, 10, 2)."""
    leading = itertools.takewhile(str.isdigit, version.split("."))
    return tuple(map(int, leading))


def make_deterministic(environment: dict[str, str] | None = None) -> bool:
    """Has GPU kernels add up in a fixed order (`runtime.deterministic`); call it before JAX makes its first array.

    CPUs do so anyway. What the user has set in XLA_FLAGS is not overridden, and untried versions are left alone, with a
    line on standard error that says so.

    Returns:
      Whether the option was added.
    """
    environment = os.environ if environment is None else environment
    added = _add(environment, _DETERMINISTIC, "true")
    if _DETERMINISTIC not in environment.get("XLA_FLAGS", ""):
        print(
            f"warning: runtime.deterministic was tried with jaxlib {_TESTED} alone, so it does "
            f"nothing with {metadata.version('jaxlib')}; set XLA_FLAGS={_DETERMINISTIC}=true yourself",
            file=sys.stderr,
        )
    return added


def _add(environment: MutableMapping[str, str], option: str, value: str) -> bool:
    flags = environment.get("XLA_FLAGS", "")
    if metadata.version("jaxlib") not in TESTED_JAXLIBS or option in flags:
        return False
    environment["XLA_FLAGS"] = f"{flags} {option}={value}".strip()
    return True

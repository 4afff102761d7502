"""XLA options that the programs set, for speed on CPUs and for fixed sums on GPUs; the library sets none on import."""

import os
import sys
from collections.abc import MutableMapping
from importlib import metadata

# An unknown option aborts the process, so only versions on which these have been tried get them.
TESTED_JAXLIBS = ("0.10.2",)
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
            f"warning: runtime.deterministic was tried with jaxlib {', '.join(TESTED_JAXLIBS)} alone, so it does "
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

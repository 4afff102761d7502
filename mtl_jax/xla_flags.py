"""XLA options that the programs set for speed on CPUs; the library never sets them on import."""

import os
from importlib import metadata

# An unknown option aborts the process, so only versions on which these have been tried get them.
TESTED_JAXLIBS = ("0.10.2",)
SWITCH = "MTL_JAX_XLA_FLAGS"

# XLA's own gradient of a convolution by its kernel runs at a fraction of the machine's rate; this library's does not.
_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
_VALUE = "LIBRARY_FUSION_TYPE_DOT"


def configure(environment: dict[str, str] | None = None) -> bool:
    """Adds the options to XLA_FLAGS; call it before JAX makes its first array.

    What the user has set there is not overridden. The environment variable MTL_JAX_XLA_FLAGS=0 turns it off.

    Returns:
      Whether the options were added.
    """
    environment = os.environ if environment is None else environment
    flags = environment.get("XLA_FLAGS", "")
    tested = metadata.version("jaxlib") in TESTED_JAXLIBS
    if environment.get(SWITCH) == "0" or not tested or _FUSION in flags:
        return False
    environment["XLA_FLAGS"] = f"{flags} {_FUSION}={_VALUE}".strip()
    return True

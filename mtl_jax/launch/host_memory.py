"""What the programs ask of the C library: to keep the memory that a step has freed for the next one."""

import ctypes
import os
import platform
from collections.abc import Mapping

SWITCH = "MTL_JAX_MALLOC"
# From glibc's malloc.h: mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep(environment: Mapping[str, str] | None = None) -> bool:
    """Has glibc's `malloc` keep what is freed, for the whole process; call it before JAX makes its first array.

    A step on a CPU takes arrays of many megabytes and frees them. By default each is mapped anew, and its pages are
    filled with zeros as they are touched, in every step. The process then stays about as large as it ever was. Another
    `malloc` than glibc's is not touched.

    Nothing happens without glibc, with the environment variable MTL_JAX_MALLOC=0, or where the user has set any of
    glibc's own (MALLOC_..., GLIBC_TUNABLES).

    Returns:
      Whether glibc was asked to.
    """
    environment = os.environ if environment is None else environment
    chosen = [name for name in environment if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if environment.get(SWITCH) == "0" or chosen or platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(_MMAP_MAX, 0) and set_option(_TRIM_THRESHOLD, -1))

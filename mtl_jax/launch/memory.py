"""The most memory that this process has used so far."""

import resource
import sys

import jax


def peaks() -> dict[str, float]:
    """Peaks in megabytes (10^6 bytes): `host_memory_mb` of the process, `device_memory_mb` of the fullest device.

    The latter is left out where JAX does not know it, as on CPUs.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    found = {"host_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in used if peak is not None]
    if known:
        found["device_memory_mb"] = max(known) / 1e6
    return {name: round(value, 1) for name, value in found.items()}

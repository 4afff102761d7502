"""The machine: its name and versions, and its own rate of matrix products, the limit that rows are held against."""

import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import accelerator
from benchmarks.worker import Measured, Work, timed

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "pillow")
# Rows and columns: large enough for the full rate, far beyond caches; on an accelerator whose product takes no time.
SIDE, ACCELERATORS_SIDE = 3072, 8192


def facts() -> dict[str, Any]:
    """What a reader needs to know of the machine and of the versions."""
    from mtl_jax.launch.environment import configure_xla

    environment = dict(os.environ)
    configure_xla(environment)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "xla_flags": environment.get("XLA_FLAGS", ""),
        "commit": _commit(),
        "load": os.getloadavg()[0],
        "accelerator": accelerator.name(),
        "dtype": accelerator.dtype(),
        "times": accelerator.times(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1] for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return names[0].strip() if names else platform.processor()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:
        return ""


def _side(quick: bool, on_cpu: bool) -> int:
    return 256 if quick else SIDE if on_cpu else ACCELERATORS_SIDE


def jax_matmul(row: str, folder: Path, quick: bool) -> Work:
    """A square product of matrices, by JAX."""
    import jax

    from mtl_jax.parallel import on_cpu

    n = _side(quick, on_cpu())
    a = jax.random.normal(jax.random.key(0), (n, n), accelerator.dtype())
    product = jax.jit(lambda a: a @ a)
    return Work({"": lambda: _several(lambda: product(a), jax.block_until_ready)}, facts={"flops": 2.0 * n**3})


def torch_matmul(row: str, folder: Path, quick: bool) -> Work:
    """The same by PyTorch."""
    import torch

    from benchmarks.torch_settings import DEVICE, use, wait

    use(threads=0)
    n = _side(quick, DEVICE == "cpu")
    a = torch.randn(n, n, device=DEVICE, dtype=getattr(torch, accelerator.dtype()))
    return Work({"": lambda: _several(lambda: a @ a, lambda _: wait())}, facts={"flops": 2.0 * n**3})


def _several(product: Callable[[], Any], wait_for: Callable[[Any], Any], times: int = 8) -> Measured:
    return timed(lambda: wait_for([product() for _ in range(times)]), times)

"""What differs where an accelerator does the work: precision, sizes, and whose memory counts.

Both choices reach the workers in environment variables, which `python -m benchmarks --dtype=... --times=...` sets.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

DTYPE, TIMES = "MTL_JAX_BENCH_DTYPE", "MTL_JAX_BENCH_TIMES"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of both choices; `choose` makes them."""
    dtypes = "float32", "bfloat16"
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="of the networks in a, b and c")
    parser.add_argument("--times", type=int, default=1, help="times as many tasks in a and b, and images in c")


def choose(flags: argparse.Namespace) -> None:
    """Has this process and the workers that it starts compute as the flags say."""
    os.environ.update({DTYPE: flags.dtype, TIMES: str(flags.times)})


def dtype() -> str:
    """Of the networks' computation in rows a, b and c and of the limit's matrix product: float32 or bfloat16."""
    return os.environ.get(DTYPE, "float32")


def times() -> int:
    """How often rows a and b have their tasks, and row c its images."""
    return int(os.environ.get(TIMES, "1"))


def name() -> str:
    """Of the first GPU, by its driver's tool; empty without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return lines[0].strip() if lines else ""


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Products of float32 in float32 on accelerators, too, which by default round their operands to fewer digits."""
    if torch := sys.modules.get("torch"):
        with _exact_torch(torch):
            yield
    elif (jax := sys.modules.get("jax")) and jax.default_backend() != "cpu":
        with jax.default_matmul_precision("highest"):
            yield
    else:
        yield


@contextlib.contextmanager
def _exact_torch(torch: Any) -> Iterator[None]:
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def peak_memory() -> int | None:
    """The most memory of the accelerator that this process has taken, in bytes; None on a CPU.

    The rival's process has imported JAX, too, which then must not touch the device.
    """
    if torch := sys.modules.get("torch"):
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    jax = sys.modules.get("jax")
    stats = jax.local_devices()[0].memory_stats() if jax else None
    return stats["peak_bytes_in_use"] if stats else None

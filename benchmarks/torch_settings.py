"""How the PyTorch side runs: device, threads, memory format."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import accelerator
from benchmarks.worker import Measured, Work, queued

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = True  # as JAX has it by default; convolutions are allowed it anyway


class Setting(NamedTuple):
    """threads: of PyTorch's operations; 0: one a core. channels_last: the memory format of images and kernels."""

    threads: int = 0
    channels_last: bool = False

    def __str__(self) -> str:
        return f"{self.threads or _cores()} threads, {'channels last' if self.channels_last else 'channels first'}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use(threads: int) -> None:
    """Sets the number of threads; 0: one a core."""
    torch.set_num_threads(threads or _cores())


def wait() -> None:
    """Returns when the device has done all it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def autocast() -> torch.autocast:
    """PyTorch's own mixed precision, where the run is to compute in bfloat16."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=accelerator.dtype() == "bfloat16")


def fastest(settings: Iterable[Setting], run: Callable[[Setting], Any], calls: int = 1) -> Setting:
    """The setting under which the last of `calls` calls of `run` is the fastest, put into force."""
    seconds = {}
    for setting in settings:
        use(setting.threads)
        for _ in range(calls - 1):
            run(setting)
        wait()
        start = time.perf_counter()
        run(setting)
        wait()
        seconds[setting] = time.perf_counter() - start
    best = min(seconds, key=seconds.get)
    use(best.threads)
    return best


def fastest_work(
    settings: Iterable[Setting],
    step: Callable[[Setting], Any],
    made: dict[Setting, Any],
    numbers: Callable[[], dict[str, np.ndarray]],
    calls: int = 1,
) -> Work:
    """Work whose warm-up finds the fastest setting of `step` and forgets what `step` has `made` for the others."""
    facts: dict[str, str] = {}

    def warm() -> None:
        best = fastest(settings, step, calls)
        facts["setting"] = str(best)
        for setting in [*made]:
            if setting != best:
                del made[setting]

    def run() -> Measured:
        (setting,) = made
        return queued(lambda: step(setting), wait, on_cpu=DEVICE == "cpu")

    return Work({"": run}, numbers, warm, facts)


def placed(tensor: torch.Tensor, setting: Setting) -> torch.Tensor:
    """A tensor on the device; images and kernels, which have four axes, in the setting's memory format."""
    tensor = tensor.to(DEVICE)
    if tensor.ndim != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last if setting.channels_last else torch.contiguous_format)

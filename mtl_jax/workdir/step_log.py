"""The metrics of steps: their means over windows, and which steps were left out as not finite."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.errors import NotFiniteError
from mtl_jax.words import counted
from mtl_jax.workdir.writers import Writer

_logger = logging.getLogger(__name__)


class Skipped:
    """Counts the steps that were left out, since their loss or a gradient was not finite."""

    def __init__(self, phase: str, allowed: int, count: int) -> None:
        self._phase, self.allowed = phase, allowed
        self.count = count  # part of a checkpoint

    def add(self, step: int) -> None:
        """Counts a step (from 1, as metrics.jsonl has it). Raises NotFiniteError where it is one too many."""
        if self.count >= self.allowed:
            left_out = f" ({counted(self.count, 'other')} skipped: config.runtime.skip_nonfinite)" if self.count else ""
            raise NotFiniteError(
                f"{self._phase} step {step}: the loss or a gradient is not finite{left_out}; the parameters are still "
                f"those of before it. The same command with --replay={self._phase}:{step} shows its images and "
                "gradients; lower the learning rate, or set config.runtime.skip_nonfinite"
            )
        self.count += 1
        _logger.warning("%s step %d is not finite: skipped, as %d before it", self._phase, step, self.count - 1)


class Log:
    """Means of a step's metrics over windows of `every` steps, written as they fill up.

    Values that are not finite are left out of the means. Where steps may be skipped, a line has how many were so far.
    """

    def __init__(
        self, prefix: str, every: int, writers: list[Writer], window: dict[str, list[float]], skipped: Skipped
    ) -> None:
        self._prefix, self._every, self._writers, self._skipped = prefix, every, writers, skipped
        self.window = window  # what has been seen since the last line; part of a checkpoint

    def add(self, step: int, metrics: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
        """Takes the metrics of the steps before `step`; returns those that are finite."""
        finite = {name: [float(v) for v in np.atleast_1d(value) if np.isfinite(v)] for name, value in metrics.items()}
        for name, values in finite.items():
            self.window.setdefault(name, []).extend(values)
        if step % self._every == 0:
            skipped = {"skipped": self._skipped.count} if self._skipped.allowed else {}
            means = {name: float(np.mean(values)) for name, values in self.window.items() if values}
            self.write(step, means | skipped)
            self.window.clear()
        return finite

    def kept(self) -> dict[str, Any]:
        """What a checkpoint carries, so that the lines after it are those of a run that was not stopped."""
        return {"window": self.window, "skipped": self._skipped.count}

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars under the phase's name."""
        for writer in self._writers:
            writer(step, {f"{self._prefix}/{name}": value for name, value in scalars.items()})

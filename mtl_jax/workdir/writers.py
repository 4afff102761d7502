"""Where scalars go: JSON lines, identical for identical runs, TensorBoard, and any function of yours."""

import errno
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mtl_jax.errors import MtlError
from mtl_jax.workdir.workdir import writing

Writer = Callable[[int, Mapping[str, Any]], None]
"""The one-function hook: `write(step, {'meta/loss': 1.2, ...})`; `train(config, workdir, hooks=[write])` calls it."""

_logger = logging.getLogger(__name__)
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_LINE = 1 << 20
_SCALARS = bool, int, float, str  # that TensorBoard takes as hyperparameters


class JsonlWriter:
    """Appends one JSON object a line, each written by one system call; `write` is a `Writer`.

    A line is `{"step": 3, "meta/accuracy": 0.5, ...}`: the step, then the scalars by name, floats as Python's shortest
    repr of the double that equals them. NaN and the infinities are the strings "NaN", "Infinity" and "-Infinity", since
    JSON has no such numbers; `read_jsonl` turns them back.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens for appending; what a kill left of a last line is cut off."""
        self.path = Path(path)
        with writing(self.path, "give another --workdir"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115, closed by close()
        self._cut(self._size())

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends a line. Raises MtlError where the disk does not take it."""
        if "step" in scalars:
            raise ValueError("'step' is the line's own key, not a scalar's name")
        fields = {"step": int(step)} | {name: _plain(scalars[name]) for name in sorted(scalars)}
        line = json.dumps(fields, allow_nan=False).encode() + b"\n"
        with writing(self.path, "free space and start again"):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "the disk took half a line")

    def position(self) -> int:
        """The file's size in bytes, all of it on disk: what a checkpoint records for `truncate`."""
        os.fsync(self._file.fileno())
        return self._size()

    def truncate(self, position: int) -> None:
        """Drops all lines after a recorded position, so that a resumed run appends what it would have written anyway.

        Where the file is shorter, or the position is not the end of a line, somebody has changed the file: a warning
        says so, and the lines that are whole and before it stay.
        """
        kept = self._cut(position)
        if kept != position:
            _logger.warning("%s: has changed since the checkpoint: %d bytes kept of %d", self.path, kept, position)

    def close(self) -> None:
        """Closes the file; further writes raise."""
        self._file.close()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _cut(self, position: int) -> int:
        end = min(position, self._size())
        while end > 0:
            start = max(0, end - _MAX_LINE)
            last = os.pread(self._file.fileno(), end - start, start).rfind(b"\n")
            if last >= 0:
                end = start + last + 1
                break
            end = start
        os.ftruncate(self._file.fileno(), end)
        return end


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a `JsonlWriter`'s file, one by one; a last line without its end (a kill) is left out.

    Raises:
      MtlError: no such file, or a line that is not a JSON object; the message has its number.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE):
                number += 1
                if line.endswith(b"\n"):
                    yield _record(line, f"{path}, line {number}")
                elif len(line) == _MAX_LINE:
                    raise MtlError(f"{path}, line {number}: longer than {_MAX_LINE} bytes: not a file of metrics")
    except OSError as error:
        raise MtlError(f"{path}: cannot be read: {error.strerror}") from error


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MtlError(f"{where}: not JSON; delete the line, or the file") from error
    if not isinstance(fields, dict):
        raise MtlError(f"{where}: a JSON object was expected; delete the line, or the file")
    return {name: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    number = value if isinstance(value, bool | int | float) else np.asarray(value).item()
    if not isinstance(number, float) or math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


class TensorBoard:
    """TensorBoard events by tensorboardX; `write` is a `Writer`. Open it with `open_tensorboard`."""

    def __init__(self, summary_writer: Any) -> None:
        self._writer = summary_writer

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers as scalars; texts are left out."""
        for name, value in scalars.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, float(value), step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image [H, W, C] (C 1 or 3), uint8 or float in 0..1."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def hparams(self, config: dict[str, Any], metrics: Mapping[str, float]) -> None:
        """Writes a run's config, its groups as dotted names, and its results for the comparison of runs."""
        flat = {key: v if isinstance(v, _SCALARS) else str(v) for key, v in flatten_dict(config, sep=".").items()}
        self._writer.add_hparams(flat, {k: float(v) for k, v in metrics.items()}, name="hparams")

    def close(self) -> None:
        """Writes what is still queued."""
        self._writer.close()


def open_tensorboard(directory: str | Path, *, purge_step: int | None = None) -> TensorBoard | None:
    """A TensorBoard writer into `directory`, or None where the extra `mtl_jax[tensorboard]` is not installed.

    Args:
      purge_step: a resumed run's first step: TensorBoard then hides what the run before wrote from that step on. It
        goes by step alone, so each phase needs a directory of its own.
    """
    try:
        import tensorboardX
    except ImportError:
        _logger.info("no TensorBoard events: tensorboardX is not installed (pip install 'mtl_jax[tensorboard]')")
        return None
    return TensorBoard(tensorboardX.SummaryWriter(str(directory), purge_step=purge_step, flush_secs=30))

"""An array that takes long to compute, kept on disk: written a part at a time, gone on with after a stop."""

import io
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data.cache import locks
from mtl_jax.data.cache.writer import NO_ROOM, no_room
from mtl_jax.data.damage import DAMAGE
from mtl_jax.errors import DataError

PART = 1024  # rows that are computed, and brought to the disk, at a time

log = logging.getLogger(__name__)


def kept(
    path: Path, shape: Sequence[int], dtype: np.dtype | type, compute: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """Returns an array as a read-only memory map of a .npy file, which the first call writes.

    A call that is stopped leaves its parts for the next one; the file has its name only once it is whole. Of two
    processes one computes and the other waits. A damaged file is named in a warning, and written anew.

    Args:
        path: of the file; beside it lies .partial-NAME while it is written.
        shape: of the array, rows first.
        dtype: of the array.
        compute: (first row, row after the last) -> these rows.

    Raises:
        DataError: it cannot be written.
    """
    if (array := _opened(path, shape, dtype)) is not None:
        return array
    unfinished = path.with_name(f".partial-{path.name}")
    try:
        with locks.locked(unfinished):
            if (array := _opened(path, shape, dtype)) is None:
                _write(unfinished / "rows.npy", shape, dtype, compute)
                os.replace(unfinished / "rows.npy", path)
            unfinished.rmdir()
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(path.parent) from None
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); set another place with data.cache_dir"
        ) from None
    if (array := _opened(path, shape, dtype)) is None:
        raise DataError(f"{path}: damaged as soon as it was written; check the disk")
    return array


def _opened(path: Path, shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray | None:
    """Returns the array of a file, None if there is none or it is damaged."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if (array.shape, array.dtype) == (tuple(shape), dtype):
            return array
        fault = f"{array.dtype} {list(array.shape)} where {np.dtype(dtype)} {list(shape)} is expected"
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        fault = str(error)
    log.warning("%s: damaged (%s), so it is computed anew", path, fault)
    return None


def _write(path: Path, shape: Sequence[int], dtype: np.dtype | type, compute: Callable[[int, int], np.ndarray]) -> None:
    """Writes the rows that a file does not have yet."""
    header = io.BytesIO()
    facts = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, facts)
    length, row = len(header.getvalue()), int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    with open(path, "a+b") as file:
        # What was written last before a stop may not have come to the disk.
        parts = max(0, (file.tell() - length) // (row * PART) - 1)
        file.seek(0)
        if file.read(length) != header.getvalue():
            parts = 0
        file.truncate(parts and length + parts * PART * row)
        if not parts:
            file.write(header.getvalue())
        free, needed = shutil.disk_usage(path.parent).free, (shape[0] - parts * PART) * row
        if free < needed:
            raise no_room(path.parent, needed, free)
        for start in range(parts * PART, shape[0], PART):
            rows = compute(start, min(start + PART, shape[0]))
            file.write(np.ascontiguousarray(rows, dtype).data)
            file.flush()
            os.fsync(file.fileno())

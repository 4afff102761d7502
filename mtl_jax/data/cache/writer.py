"""Writes a folder of the cache, whole or not at all.

It is written under a temporary name and renamed when it is whole. So readers never see half of one, and two processes
that prepare the same data do not disturb each other: the second to finish throws its own away.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data.cache import locks
from mtl_jax.data.cache.blocks import ClassBlock
from mtl_jax.data.cache.reader import VARIABLE, VERSION, write_index
from mtl_jax.data.dataset import fingerprint
from mtl_jax.errors import DataError

TEMPORARY = ".tmp-"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArrayFile:
    """A .npy file that grows by appending, for arrays that do not fit in memory; a context manager.

    Its header is written first with the number of rows that is `expected`, and again at the end with the true one.
    """

    def __init__(self, path: Path, dtype: np.dtype, shape: Sequence[int], expected: int) -> None:
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        self.count = 0
        self.file = open(path, "wb")  # noqa: SIM115 - closed on exit
        self.file.write(self._header(expected))

    def _header(self, count: int) -> bytes:
        """Returns a header of 128 bytes for `count` rows."""
        facts = f"{{'descr': {self.dtype.str!r}, 'fortran_order': False, 'shape': {(count, *self.shape)}, }}"
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + facts.ljust(117).encode() + b"\n"

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.count += len(rows)

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self.file:
            if error is None:
                self.file.seek(0)
                self.file.write(self._header(self.count))
                self.file.flush()
                os.fsync(self.file.fileno())


class Writer:
    """Writes one folder of the cache; a context manager, which leaves nothing behind unless `commit` was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unfinished = folder.parent / f"{TEMPORARY}{folder.name}-{uuid.uuid4().hex[:8]}"
        self.scratch = self.unfinished / "scratch"  # for files of the source; not kept
        self.index: dict = {"version": VERSION, "splits": {}, "skipped": []}
        self.exits = contextlib.ExitStack()

    def __enter__(self) -> "Writer":
        try:
            self.exits.enter_context(locks.locked(self.unfinished))
            self.scratch.mkdir()
            locks.remove_abandoned(self.folder.parent, f"{TEMPORARY}*")
        except OSError as error:
            raise DataError(
                f"{self.folder.parent}: the cache cannot be written there ({error.strerror}); "
                f"set another place with data.cache_dir or ${VARIABLE}"
            ) from None
        return self

    def __exit__(self, kind, error, trace) -> None:
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.exits.close()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise no_room(self.folder.parent) from None

    def check_room(self, size: int) -> None:
        """Raises DataError unless the disk has `size` bytes left."""
        free = shutil.disk_usage(self.unfinished).free
        if free < size:
            raise no_room(self.folder.parent, size, free)

    def write_split(
        self,
        split: str,
        class_names: Sequence[str],
        blocks: Generator[ClassBlock, None, None],
        expected: int,
        shape: Sequence[int],
    ) -> None:
        """Writes the classes of a split.

        Args:
            split: its name.
            class_names: sorted.
            blocks: one for each class, in the same order.
            expected: the number of images, if none is left out.
            shape: [H, W, C] of every image.
        """
        names: list[bytes] = []
        counts = []
        with (
            contextlib.closing(blocks),
            ArrayFile(self.unfinished / f"{split}.npy", np.uint8, shape, expected) as images,
            ArrayFile(self.unfinished / f"{split}.digests.npy", np.uint8, (16,), expected) as digests,
        ):
            for block in blocks:
                for chunk in block.chunks():
                    images.append(chunk)
                digests.append(block.digests)
                names.extend(name.encode() for name in block.names)
                counts.append(len(block.order))
                self.index["skipped"].extend(block.skipped)
        np.save(self.unfinished / f"{split}.names.npy", np.asarray(names, np.bytes_))
        self.index["splits"][split] = {"class_names": list(class_names), "counts": counts, "shape": list(shape)}

    def commit(self, facts: Mapping[str, object]) -> None:
        """Adds `facts` to the index, and gives the folder its name; if another process was first, its folder stays."""
        shutil.rmtree(self.scratch)
        self.index.update(facts)
        self.index["fingerprint"] = self._fingerprint()
        write_index(self.unfinished, self.index)
        try:
            self.unfinished.rename(self.folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _fingerprint(self) -> str:
        by_class = {}
        for split, facts in self.index["splits"].items():
            digests = np.load(self.unfinished / f"{split}.digests.npy", mmap_mode="r")
            by_class[split] = np.split(digests, np.cumsum(facts["counts"])[:-1])
        return fingerprint(by_class)


def no_room(path: Path, needed: int = 0, free: int = 0) -> DataError:
    """Returns the error for a full disk; `needed` and `free` are bytes, 0 if unknown."""
    amount = f" ({needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free)" if needed else ""
    return DataError(
        f"{path}: no room on the disk for the cache{amount}; make room, or set data.cache_dir or ${VARIABLE}"
    )

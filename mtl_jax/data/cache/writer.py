"""Writing a folder of the cache, whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data.cache import locks
from mtl_jax.data.cache.blocks import ClassBlock
from mtl_jax.data.cache.reader import INDEX, VARIABLE, VERSION
from mtl_jax.data.dataset import SPLITS
from mtl_jax.errors import DataError

TEMPORARY = ".tmp-"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArrayFile:
    """A .npy file that grows by appending, for arrays that do not fit in memory; a context manager.

    The header is written twice, the second time, at the end, with the true number of rows.
    """

    def __init__(self, place: Path, dtype: np.dtype, shape: Sequence[int], expected: int) -> None:
        self.place, self.dtype, self.shape = place, np.dtype(dtype), tuple(shape)
        self.count = 0
        self.file = open(place, "wb")  # noqa: SIM115 - closed on exit
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
    """Writes one folder of the cache; a context manager that leaves nothing behind unless `commit` was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder.parent / f"{TEMPORARY}{folder.name}-{uuid.uuid4().hex[:8]}"
        self.scratch = self.place / "scratch"  # for readers' own files; not kept
        self.index: dict = {"version": VERSION, "splits": {}, "skipped": []}
        self.exits = contextlib.ExitStack()

    def __enter__(self) -> "Writer":
        try:
            self.exits.enter_context(locks.locked(self.place))
            self.scratch.mkdir()
            remove_abandoned(self.folder.parent)
        except OSError as error:
            raise DataError(
                f"{self.folder.parent}: the cache cannot be written there ({error.strerror}); "
                f"set another place with data.cache_dir or ${VARIABLE}"
            ) from None
        return self

    def __exit__(self, kind, error, trace) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.exits.close()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise no_room(self.folder.parent) from None

    def check_room(self, size: int) -> None:
        """Raises DataError where the disk has less than `size` bytes left."""
        free = shutil.disk_usage(self.place).free
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
        """Writes the classes of a split, one block each, in the order of `class_names`; `shape` is that of an image."""
        names: list[bytes] = []
        counts = []
        with (
            contextlib.closing(blocks),
            ArrayFile(self.place / f"{split}.npy", np.uint8, shape, expected) as images,
            ArrayFile(self.place / f"{split}.digests.npy", np.uint8, (16,), expected) as digests,
        ):
            for block in blocks:
                for chunk in block.chunks():
                    images.append(chunk)
                digests.append(block.digests)
                names.extend(name.encode() for name in block.names)
                counts.append(len(block.order))
                self.index["skipped"].extend(block.skipped)
        np.save(self.place / f"{split}.names.npy", np.asarray(names, np.bytes_))
        self.index["splits"][split] = {"class_names": list(class_names), "counts": counts, "shape": list(shape)}

    def commit(self, facts: Mapping[str, object]) -> None:
        """Makes the folder visible under its name; another process's finished one is kept instead of this."""
        shutil.rmtree(self.scratch)
        self.index.update(facts)
        self.index["fingerprint"] = self.fingerprint()
        with open(self.place / INDEX, "w", encoding="utf-8") as file:
            json.dump(self.index, file)
            file.flush()
            os.fsync(file.fileno())
        (self.place / locks.LOCK).unlink()
        try:
            self.place.rename(self.folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def fingerprint(self) -> str:
        """Returns the fingerprint of the content written so far (see `Dataset`)."""
        classes = {}
        for split, facts in self.index["splits"].items():
            digests = np.load(self.place / f"{split}.digests.npy", mmap_mode="r")
            classes[split] = np.split(digests, np.cumsum(facts["counts"])[:-1])
        return fingerprint(classes)


def fingerprint(classes: Mapping[str, Sequence[np.ndarray]]) -> str:
    """Returns a digest of the digests: split -> for each class uint8 [n, 16]; neither order nor names matter."""
    state = hashlib.sha256()
    for split in SPLITS:
        if split in classes:
            parts = [hashlib.sha256(b"".join(sorted(bytes(row) for row in rows))).digest() for rows in classes[split]]
            state.update(split.encode() + hashlib.sha256(b"".join(sorted(parts))).digest())
    return state.hexdigest()[:32]


def no_room(place: Path, needed: int = 0, free: int = 0) -> DataError:
    """Returns the error for a disk without room."""
    amount = f" ({needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free)" if needed else ""
    return DataError(
        f"{place}: no room on the disk for the cache{amount}; make room, or set data.cache_dir or ${VARIABLE}"
    )


def remove_abandoned(root: Path) -> None:
    """Removes what processes that no longer run have left half-written."""
    for place in root.glob(f"{TEMPORARY}*"):
        if locks.is_abandoned(place):
            shutil.rmtree(place, ignore_errors=True)

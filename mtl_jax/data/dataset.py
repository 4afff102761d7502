"""A prepared data set: uint8 images in memory maps, sorted by class, and the facts about them."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.errors import DataError
from mtl_jax.types import ClassTable

SPLITS = ("train", "val", "test")


class Overlap(NamedTuple):
    """Classes or images that are in two splits, or twice in one: how many, and a line for each of the first few."""

    count: int
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split.

    name: 'train', 'val' or 'test'.
    images: uint8 [N, H, W, C], a read-only memory map. The images of a class are contiguous. Classes are in the order
        of `class_names`, the images of a class in the order of the digests of their decoded pixels.
    labels: int32 [N], positions in `class_names`, ascending.
    class_names: sorted.
    counts: int32 [classes], the number of images of each class.
    file_names: bytes [N], UTF-8, where each image came from within its source; empty if it had no name.
    digests: uint8 [N, 16], BLAKE2b of the decoded pixels, before resizing.
    repeats: int [R], positions of images whose pixels occur earlier in the split too; tasks do not draw these.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    counts: np.ndarray
    file_names: np.ndarray
    digests: np.ndarray
    repeats: np.ndarray | tuple[()] = ()

    def table(self) -> ClassTable:
        """Returns the images that tasks draw, all but `repeats`, as NumPy arrays.

        indices: int32 [classes, M], positions of each class's images, padded with -1. counts: int32 [classes].
        """
        drawn = np.delete(np.arange(len(self.labels)), np.asarray(self.repeats, int))
        counts = np.bincount(self.labels[drawn], minlength=len(self.counts))
        column = np.arange(counts.max(initial=0))
        indices = np.full((len(counts), len(column)), -1, np.int32)
        indices[column < counts[:, None]] = drawn
        return ClassTable(indices, counts.astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    name: what was asked for, e.g. 'miniimagenet'.
    format: the form it was found in, e.g. 'class folders'.
    fingerprint: identifies the content; see `fingerprint`.
    splits: by name; a data set for evaluation only has just 'test'.
    skipped: a line for each image that was left out as corrupt.
    cache: the folder with the memory maps.
    overlaps: by kind, see `overlaps.KINDS`.
    caveats: a sentence for each kind of overlap that was accepted; show them beside every result.
    """

    name: str
    format: str
    fingerprint: str
    splits: Mapping[str, Split]
    skipped: tuple[str, ...] = ()
    cache: str = ""
    overlaps: Mapping[str, Overlap] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    def split(self, name: str) -> Split:
        """Returns a split by name. Raises DataError if there is none."""
        if name not in self.splits:
            raise DataError(f"the data set has no {name} split, it has {', '.join(self.splits)}; give --split")
        return self.splits[name]


def fingerprint(digests: Mapping[str, Sequence[np.ndarray]]) -> str:
    """Returns 32 hexadecimal digits for a data set's content: which images are together in which class of which split.

    Names, the order of files and classes, the format, and the size the images are stored at make no difference.

    Args:
        digests: split -> for each class uint8 [n, 16]; see `Split`.
    """
    state = hashlib.sha256()
    for split in SPLITS:
        if split in digests:
            parts = [hashlib.sha256(b"".join(sorted(bytes(row) for row in rows))).digest() for rows in digests[split]]
            state.update(split.encode() + hashlib.sha256(b"".join(sorted(parts))).digest())
    return state.hexdigest()[:32]

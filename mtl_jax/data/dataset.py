"""What a prepared data set is: uint8 images in memory maps, sorted by class, with the facts that belong to them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.errors import DataError
from mtl_jax.types import ClassTable

SPLITS = ("train", "val", "test")


class Overlap(NamedTuple):
    """Classes or images that stand where they should not: how many, and the first few, a line each."""

    count: int
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split.

    name: 'train', 'val' or 'test'.
    images: uint8 [N, H, W, C], a read-only memory map. The images of a class are contiguous, the classes in the order
        of `class_names`, the images of a class in the order of the digests of their decoded pixels.
    labels: int32 [N], positions in `class_names`, ascending.
    class_names: sorted.
    counts: int32 [classes], images of each class.
    file_names: bytes [N], UTF-8, where each image came from within its source; empty strings where it had no name.
    digests: uint8 [N, 16], BLAKE2b of the decoded pixels, before resizing.
    repeats: int [R], positions of images whose pixels stand earlier in the split too, which tasks do not draw.
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
        """Returns which images of which class tasks draw, as NumPy arrays: indices [C, M] padded with -1, counts [C].

        These are all images but `repeats`.
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
    format: how it was found, e.g. 'class folders'.
    fingerprint: hexadecimal digest of the content: which images stand together in which class of which split. It
        depends on neither names, nor the order of files, nor the format, nor the size the images are stored at.
    splits: by name; a set for evaluation alone has only 'test'.
    skipped: images that were left out as corrupt, one line each.
    cache: the folder with the memory maps.
    overlaps: by kind (see `overlaps.KINDS`), what stands in two splits, or twice in one.
    caveats: a sentence for each kind that was let through: no figure on this data set should be shown without them.
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
        """A split by name. Raises DataError where there is none."""
        if name not in self.splits:
            raise DataError(f"the data set has no {name} split, it has {', '.join(self.splits)}; give --split")
        return self.splits[name]

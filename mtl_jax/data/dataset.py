"""What a prepared data set is: uint8 images in memory maps, sorted by class, with the facts that belong to them."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mtl_jax.types import ClassTable

SPLITS = ("train", "val", "test")


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
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    counts: np.ndarray
    file_names: np.ndarray
    digests: np.ndarray

    def table(self) -> ClassTable:
        """Returns which images belong to which class, as NumPy arrays: indices [C, M] padded with -1, counts [C]."""
        starts = np.cumsum(self.counts) - self.counts
        column = np.arange(self.counts.max(initial=0))
        indices = np.where(column < self.counts[:, None], starts[:, None] + column, -1)
        return ClassTable(indices.astype(np.int32), self.counts.astype(np.int32))


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
    """

    name: str
    format: str
    fingerprint: str
    splits: Mapping[str, Split]
    skipped: tuple[str, ...] = ()
    cache: str = ""

"""Decodes one class, and puts its images in the order of their digests."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtl_jax.data import decode
from mtl_jax.data.damage import quiet
from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.source import Images
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

IN_MEMORY = 128 << 20  # bytes; a larger class is decoded into a file
CHUNK = 16 << 20  # bytes written at once


@dataclasses.dataclass(frozen=True)
class Work:
    """What is the same for the decoding of every class.

    transform: as the source has settled it; channels = 0 means here that all images are grey.
    shape: [H, W, C] of a stored image.
    skip_corrupt: leave out damaged images.
    scratch: a folder for classes over `IN_MEMORY`.
    kept: the folder of finished classes (see `resume`), None if they are not kept.
    """

    transform: Transform
    shape: tuple[int, int, int]
    skip_corrupt: bool
    scratch: Path
    kept: Path | None = None


@dataclasses.dataclass(frozen=True)
class ClassBlock:
    """One class, ready to be written.

    images: uint8 [n, H, W, C], in the order of reading.
    order: [n], their positions in the final order.
    names, digests: n names and uint8 [n, 16], in the final order.
    skipped: a line for each image that was left out.
    """

    images: np.ndarray
    order: np.ndarray
    names: list[str]
    digests: np.ndarray
    skipped: list[str]

    def chunks(self) -> Iterator[np.ndarray]:
        """Yields the images in their final order, a few at a time."""
        rows = max(1, CHUNK // max(1, self.images[:1].nbytes))
        for start in range(0, len(self.order), rows):
            yield self.images[self.order[start : start + rows]]


@quiet  # for all of the class: entering it again for each image would cost a few microseconds
def class_block(split: str, name: str, images: Images, work: Work) -> ClassBlock:
    """Decodes a class and sorts its images by the digests of their decoded pixels.

    Raises:
        DataError: an image is damaged, unusual, or of another shape than the others; or none is left.
    """
    stored, digests, names, skipped = empty_array((len(images), *work.shape), work.scratch), [], [], []
    for index in range(len(images)):
        try:
            pixels, digest = decode.load(images, index, work.transform)
        except CorruptImage as error:
            if not work.skip_corrupt:
                raise
            skipped.append(decode.reason(error))
            continue
        if pixels.shape != work.shape:
            raise unlike(pixels.shape, work.shape, images.where(index))
        stored[len(digests)] = pixels
        digests.append(digest)
        names.append(images.name(index))
    if not digests:
        raise DataError(
            f"class {name!r} of split {split} has no readable image; add some, or move it elsewhere ({skipped[0]})"
        )
    order = sorted(range(len(digests)), key=lambda i: (digests[i], names[i]))
    rows = np.frombuffer(b"".join(digests[i] for i in order), np.uint8).reshape(-1, 16)
    return ClassBlock(stored[: len(digests)], np.asarray(order), [names[i] for i in order], rows, skipped)


def empty_array(shape: tuple[int, ...], scratch: Path) -> np.ndarray:
    """Returns an uninitialized array, uint8: in memory, or over `IN_MEMORY` in a file that goes away with it."""
    size = int(np.prod(shape))
    if size <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # without it, a full disk kills the process when a page is written
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, np.uint8, "r+", shape=shape)


def unlike(own_shape: tuple[int, int, int], shape: tuple[int, int, int], where: str) -> DataError:
    """Returns the error for an image of another size than the others, or in colour where they are grey."""
    if own_shape[2] != shape[2]:
        return DataError(
            f"{where}: in colour where the first image of every class is grey; set data.channels to 3 or 1"
        )
    return unequal((shape[:2], "the first image"), (own_shape[:2], where))


def unequal(one: tuple[tuple[int, int], str], other: tuple[tuple[int, int], str]) -> DataError:
    """Returns the error for two images, each ((height, width), name), of different sizes."""
    (height, width), where = other
    (first_height, first_width), first = one
    return DataError(
        f"{where}: {width} x {height} pixels where {first} has {first_width} x {first_height}; "
        "set data.image_size to bring all to one size"
    )

"""Turns images of any size and kind into one uint8 array, and checks labels and repeated photographs.

A photograph with two labels contradicts itself and is refused; one that is there twice with the same label counts
twice, so there is a warning.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mtl_jax.data import decode, transforms
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError


class Source(NamedTuple):
    """Where a row of the support set came from.

    digest: of the image's decoded pixels; b'' if the row was given as features. name: for messages.
    """

    digest: bytes
    name: str


UNKNOWN_SOURCE = Source(b"", "")


class Loaded(NamedTuple):
    """A batch of images, uint8 [B, H, W, C], and the source of each."""

    images: np.ndarray
    sources: list[Source]


def is_images(x: Any) -> bool:
    """Whether `x` is a batch of images rather than a 2-D array of features."""
    if isinstance(x, np.ndarray) and x.dtype != object:
        return x.ndim in (3, 4) or (x.ndim == 1 and x.dtype.kind in "US")
    if not isinstance(x, Sequence | np.ndarray) or isinstance(x, str | bytes) or not len(x):
        return False
    first = x[0]
    return isinstance(first, str | os.PathLike | Image.Image) or (isinstance(first, np.ndarray) and first.ndim > 1)


def refuse_single(x: Any) -> None:
    """Raises DataError if `x` is one image or an iterator instead of a batch."""
    is_file = isinstance(x, str | os.PathLike | Image.Image)
    if is_file or (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] in (3, 4)):
        raise DataError("X is a single image; give a list of images: [image]")
    if isinstance(x, Iterator):
        raise DataError(f"X is an iterator ({type(x).__name__}); give a list of images")


def load_images(images: Any, transform: Transform) -> Loaded:
    """Decodes, converts and resizes a batch.

    Args:
      images: an array, uint8 [B, H, W] or [B, H, W, C], or a sequence of paths, Pillow images and arrays uint8 [H, W]
        or [H, W, C]. Sizes may differ if `transform` has an `image_size`.
      transform: how each image is prepared.

    Raises:
      DataError: no images; or one that cannot be read, is not uint8 or differs in size, named by file or position.
    """
    if not len(images):
        raise DataError("X is empty; give at least one image")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes without the GIL
        loaded = list(pool.map(lambda pair: _load(*pair, transform), enumerate(images)))
    first = loaded[0][0].shape
    for pixels, source in loaded:
        if pixels.shape != first:
            raise DataError(
                f"{source.name}: an image of {list(pixels.shape)}, the first is {list(first)}; "
                "bring them to one size and number of channels, or give image_size and channels"
            )
    return Loaded(np.stack([pixels for pixels, _ in loaded]), [source for _, source in loaded])


def _load(position: int, image: Any, transform: Transform) -> tuple[np.ndarray, Source]:
    name = str(image) if isinstance(image, str | os.PathLike) else f"image {position}"
    try:
        pixels = _decode(image, name, transform)
    except decode.CorruptImage as error:
        raise DataError(f"{decode.reason(error)}; replace it, or leave it out") from None
    return transforms.store(pixels, transform), Source(decode.digest(pixels), name)


def _decode(image: Any, name: str, transform: Transform) -> np.ndarray:
    if isinstance(image, Image.Image):
        decode.refuse_unusual(image, name, transform.convert)
        return decode.to_pixels(image, transform)
    if isinstance(image, str | os.PathLike):
        try:
            content = Path(image).read_bytes()
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
        return decode.decode(content, name, transform)
    array = np.asarray(image)
    if array.dtype.kind == "f" and array.ndim > 1:
        raise DataError(
            f"{name}: an array of {array.dtype}; pixels are uint8, 0..255. If yours are in 0..1, give "
            "(255 * image).round().astype('uint8')"
        )
    return decode.decode(array, name, transform)


def check_labels(labels: np.ndarray) -> None:
    """Raises ValueError for labels that are neither text nor whole numbers."""
    # Not scikit-learn's check_classification_targets: it warns if most classes have one image.
    if labels.dtype.kind == "f" and (labels != np.round(labels)).any():
        raise ValueError("Unknown label type: continuous. Labels must be text or whole numbers")


def check_copies(sources: Sequence[Source], labels: Sequence[Any]) -> None:
    """Refuses a photograph under two labels, and warns of one that is there twice under the same label.

    Raises:
      DataError: names both images and both labels.
    """
    first: dict[bytes, tuple[Source, Any]] = {}
    copies = []
    for source, label in zip(sources, labels, strict=True):
        if not source.digest:
            continue
        original, original_label = first.setdefault(source.digest, (source, label))
        if original_label != label:
            raise DataError(
                f"{source.name}: the same image as {original.name}, but labelled {str(label)!r} instead of "
                f"{str(original_label)!r}; keep it under one label"
            )
        if original is not source:
            copies.append(f"{source.name} is the same image as {original.name}")
    if copies:
        more = f" (and {len(copies) - 1} more)" if len(copies) > 1 else ""
        warnings.warn(f"{copies[0]}{more}: a copy counts twice and makes the classifier overconfident", stacklevel=3)

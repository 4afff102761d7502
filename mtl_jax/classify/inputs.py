"""Turns images of any size and kind into one uint8 array, and checks labels and repeated photographs.

A photograph with two labels contradicts itself and is refused; one that is there twice with the same label counts
twice, so there is a warning.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.utils.validation import check_consistent_length

from mtl_jax.data import decode, transforms
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import ConfigError, DataError


class Source(NamedTuple):
    """Where a row of the support set came from.

    digest: of the image's decoded pixels; b'' if the row was given as features. name: for messages.
    """

    digest: bytes
    name: str


UNKNOWN_SOURCE = Source(b"", "")
ERRORS = ("raise", "skip")
ADVICE = "; replace it, or leave it out"


class Loaded(NamedTuple):
    """A batch of images.

    images: uint8 [K, H, W, C]; K is B, or less where images are left out.
    sources: of each, [K].
    positions: of each in what was given, int [K], 0..B-1.
    left_out: for each image left out, why.
    """

    images: np.ndarray
    sources: list[Source]
    positions: np.ndarray
    left_out: list[str]


def is_images(x: Any) -> bool:
    """Whether `x` is a batch of images rather than a 2-D array of features."""
    if isinstance(x, np.ndarray) and x.dtype != object:
        return x.ndim in (3, 4) or (x.ndim == 1 and x.dtype.kind in "US")
    if not isinstance(x, Sequence | np.ndarray) or isinstance(x, str | bytes) or not len(x):
        return False
    first = x[0]
    return isinstance(first, str | os.PathLike | Image.Image) or (isinstance(first, np.ndarray) and first.ndim > 1)


def check_errors(errors: str) -> None:
    """Raises ConfigError for another word than 'raise' and 'skip'."""
    if errors not in ERRORS:
        raise ConfigError(f"errors is {errors!r}, expected one of {', '.join(ERRORS)}")


def refuse_no_batch(x: Any) -> None:
    """Raises DataError if `x` is one image or an iterator instead of a batch, or has no images."""
    is_file = isinstance(x, str | os.PathLike | Image.Image)
    if is_file or (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] in (3, 4)):
        raise DataError("X is a single image; give a list of images: [image]")
    if isinstance(x, Iterator):
        raise DataError(f"X is an iterator ({type(x).__name__}); give a list of images")
    if (x.ndim not in (0, 2) if isinstance(x, np.ndarray) else isinstance(x, Sequence)) and not len(x):
        raise DataError("X is empty: no images")


def load_images(images: Any, transform: Transform, errors: str = "raise") -> Loaded:
    """Decodes, converts and resizes a batch.

    Args:
      images: an array, uint8 [B, H, W] or [B, H, W, C], or a sequence of paths, Pillow images and arrays uint8 [H, W]
        or [H, W, C]. Sizes may differ if `transform` has an `image_size`.
      transform: how each image is prepared.
      errors: 'raise', or 'skip' to leave out images that cannot be read.

    Raises:
      DataError: an image cannot be read (unless skipped), is not uint8, or differs in size, named by file or position.
    """

    def read(position: int) -> tuple[np.ndarray, Source] | DataError:
        try:
            return _load(position, images[position], transform)
        except DataError as error:
            if errors == "raise":
                raise
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes without the GIL
        results = list(pool.map(read, range(len(images))))
    loaded = [result for result in results if not isinstance(result, DataError)]
    left_out = [_without_advice(result) for result in results if isinstance(result, DataError)]
    positions = np.array([i for i, result in enumerate(results) if not isinstance(result, DataError)], np.int64)
    if not loaded:
        return Loaded(np.zeros((0, 0, 0, 1), np.uint8), [], positions, left_out)
    first = loaded[0][0].shape
    for pixels, source in loaded:
        if pixels.shape != first:
            raise DataError(
                f"{source.name}: an image of {list(pixels.shape)}, the first is {list(first)}; "
                "bring them to one size and number of channels, or give image_size and channels"
            )
    stacked = np.stack([pixels for pixels, _ in loaded])
    return Loaded(stacked, [source for _, source in loaded], positions, left_out)


def _without_advice(error: DataError) -> str:
    return str(error).removesuffix(ADVICE)


def _load(position: int, image: Any, transform: Transform) -> tuple[np.ndarray, Source]:
    name = str(image) if isinstance(image, str | os.PathLike) else f"image {position}"
    try:
        pixels = _decode(image, name, transform)
    except decode.CorruptImage as error:
        raise DataError(f"{decode.reason(error)}{ADVICE}") from None
    return transforms.store(pixels, transform), Source(decode.digest(pixels), name)


def _decode(image: Any, name: str, transform: Transform) -> np.ndarray:
    if isinstance(image, Image.Image):
        decode.refuse_unusual(image, name, transform.convert)
        return decode.to_pixels(image, transform)
    if isinstance(image, str | os.PathLike):
        return decode.read_image(image, transform)
    array = np.asarray(image)
    if array.dtype.kind == "f" and array.ndim > 1:
        raise DataError(
            f"{name}: an array of {array.dtype}; pixels are uint8, 0..255. If yours are in 0..1, give "
            "(255 * image).round().astype('uint8')"
        )
    return decode.decode(array, name, transform)


def labels_of_loaded(loaded: Loaded, x: Sequence[Any], y: Sequence[Any]) -> np.ndarray:
    """The labels of the images that were loaded from the batch `x` with labels `y`, [K].

    Raises:
      DataError: no image of a class could be read.
      ValueError: not as many labels as images.
    """
    check_consistent_length(x, y)
    labels = np.asarray(y)
    kept = labels[loaded.positions]
    lost = np.setdiff1d(labels, kept)
    if len(lost):
        raise DataError(f"no image of class {str(lost[0])!r} can be read; left out: {'; '.join(loaded.left_out)}")
    return kept


def warn_of_left_out(left_out: Sequence[str]) -> None:
    """One warning that counts and names what is left out, if anything is."""
    if left_out:
        files = "1 file" if len(left_out) == 1 else f"{len(left_out)} files"
        warnings.warn(f"{files} left out: {'; '.join(left_out)}", stacklevel=4)


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

"""Images as people have them (arrays, files, Pillow images, of any size) to one uint8 array [B, H, W, C]."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mtl_jax.classify.support_copies import Known
from mtl_jax.data import decode, transforms
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError


def is_images(x: Any) -> bool:
    """Whether `x` is a batch of images rather than a 2-D array of features."""
    if isinstance(x, np.ndarray) and x.dtype != object:
        return x.ndim in (3, 4) or (x.ndim == 1 and x.dtype.kind in "US")
    if not isinstance(x, Sequence | np.ndarray) or isinstance(x, str | bytes) or not len(x):
        return False
    first = x[0]
    return isinstance(first, str | os.PathLike | Image.Image) or (isinstance(first, np.ndarray) and first.ndim > 1)


class Loaded(NamedTuple):
    """A batch: uint8 [B, H, W, C], and for each image what a message calls it and the digest of its decoded pixels."""

    images: np.ndarray
    known: list[Known]


def load_images(images: Any, transform: Transform) -> Loaded:
    """Decodes, converts and resizes a batch.

    Args:
      images: an array, uint8 [B, H, W] or [B, H, W, C]; or a sequence of any of: paths, Pillow images, arrays uint8
        [H, W] or [H, W, C]. Their sizes may differ where `transform` has an `image_size`.
      transform: what they are brought to.

    Raises:
      DataError: names the image (by its file or its position) that is none, is not uint8, or is of another size.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes without the GIL
        found = list(pool.map(lambda pair: _load(*pair, transform), enumerate(images)))
    shapes = [image.shape for image, _ in found]
    for position, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise DataError(
                f"{_where(position, images[position])}: an image of {list(shape)}, the first is {list(shapes[0])}; "
                "bring them to one size and number of channels, or give image_size and channels"
            )
    return Loaded(np.stack([image for image, _ in found]), [known for _, known in found])


def refuse_single(x: Any) -> None:
    """Raises DataError for one image where a batch is wanted, and for an iterator."""
    one = isinstance(x, str | os.PathLike | Image.Image)
    if one or (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] in (3, 4)):
        raise DataError("X is a single image; give a list of images: [image]")
    if isinstance(x, Iterator):
        raise DataError(f"X is an iterator ({type(x).__name__}); give a list of images")


def _load(position: int, image: Any, transform: Transform) -> tuple[np.ndarray, Known]:
    where = _where(position, image)
    try:
        pixels = _decoded(image, where, transform)
    except decode.CorruptImage as error:
        raise DataError(f"{decode.reason(error)}; replace it, or leave it out") from None
    return transforms.store(pixels, transform), Known(decode.digest(pixels), where)


def _decoded(image: Any, where: str, transform: Transform) -> np.ndarray:
    if isinstance(image, Image.Image):
        decode.refuse_unusual(image, where, transform.convert)
        return decode.to_pixels(image, transform)
    if isinstance(image, str | os.PathLike):
        return decode.decode(_read(Path(image)), where, transform)
    return decode.decode(_as_uint8(image, where), where, transform)


def _where(position: int, image: Any) -> str:
    return str(image) if isinstance(image, str | os.PathLike) else f"image {position}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _as_uint8(image: Any, where: str) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype.kind == "f" and array.ndim > 1:
        raise DataError(
            f"{where}: an array of {array.dtype}; pixels are uint8, 0..255: give (255 * image).round().astype('uint8') "
            "where it is in 0..1"
        )
    return array

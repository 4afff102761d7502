"""A photograph as a page holds it, read from what a file holds. What is no image is refused, whatever its name."""

import io
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_jax.data import decode, transforms
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

MAX_NAME = 100  # characters
THUMBNAIL = Transform(192, interpolation="bicubic")


class Decoded(NamedTuple):
    """A decoded file: uint8 [H, W, C] as the network takes it, the digest of its pixels, a thumbnail as JPEG."""

    stored: np.ndarray
    digest: bytes
    thumbnail: bytes


class Photograph(NamedTuple):
    """A photograph: its file's name, the digest of its pixels, a thumbnail as JPEG, its features [F]."""

    name: str
    digest: bytes
    thumbnail: bytes
    features: np.ndarray


def read(file: bytes | Path, name: str, transform: Transform) -> Decoded:
    """Decodes a file's content, or a file.

    Args:
      file: the content, or the path.
      name: what messages call it.
      transform: how the network wants it.

    Raises:
      DataError: it is no image, a damaged one, or too large.
    """
    try:
        pixels = decode.read_image(file, transform) if isinstance(file, Path) else decode.decode(file, name, transform)
    except decode.CorruptImage as error:
        raise DataError(decode.reason(error)) from None
    small, buffer = transforms.store(pixels, THUMBNAIL), io.BytesIO()
    Image.fromarray(small[:, :, 0] if small.shape[2] == 1 else small).save(buffer, "JPEG", quality=85)
    return Decoded(transforms.store(pixels, transform), decode.digest(pixels), buffer.getvalue())


def file_name(path: str) -> str:
    """The name of a file as it is shown, without the folders before it; see `in_one_line`."""
    return in_one_line(re.split(r"[/\\]", path)[-1]) or "a photograph"


def in_one_line(name: str) -> str:
    """A name as it is shown: one line without control characters, of at most `MAX_NAME` characters."""
    printable = "".join(c if c.isprintable() else " " for c in unicodedata.normalize("NFC", name))
    return " ".join(printable.split())[:MAX_NAME].strip()

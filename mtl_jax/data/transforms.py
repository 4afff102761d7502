"""Resizes and crops 8-bit images, bit for bit as torchvision's transforms do Pillow images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax.errors import DataError

MAX_PIXELS = 250_000_000  # telephones take 200 million
# An image of more than `FULL_PIXELS` is read at 1/2, 1/4 or 1/8 of its width and height: the most that has at most
# `REDUCED_PIXELS`. That depends on nothing but the image, so that its digest does not either.
FULL_PIXELS, REDUCED_PIXELS = 48_000_000, 16_000_000
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Transform:
    """How decoded images become stored ones.

    image_size: side of the stored square in pixels; 0 keeps the native size, which must then be the same for all.
    resize: length of the shorter side before the centre crop to `image_size`; 0 is the same as `image_size`.
    channels: 1 or 3; 0 is as many as the source has.
    convert: take images of unusual kinds (16-bit, CMYK, palette, alpha, rotated by EXIF, animated) instead of refusing.
    upright: with `convert`, rotate images as their EXIF orientation says.
    interpolation: of the resize, 'bilinear' or 'bicubic', both antialiased.
    squash: resize the whole image to the square by Lanczos, whatever its proportions, and crop nothing.
    max_pixels: an encoded image with more is refused.
    """

    image_size: int = 0
    resize: int = 0
    channels: int = 0
    convert: bool = False
    upright: bool = True
    squash: bool = False
    max_pixels: int = MAX_PIXELS
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.channels not in (0, 1, 3):
            raise DataError(f"data.channels: {self.channels}; it must be 1 or 3, or 0 for what the source has")
        if self.max_pixels <= 0:
            raise DataError(f"data.max_pixels: {self.max_pixels}; it must be positive")
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"data.interpolation: {self.interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}"
            )
        if self.image_size < 0 or self.resize < 0:
            raise DataError(f"data.image_size: {self.image_size}, data.resize: {self.resize}; neither can be negative")
        if self.resize and self.resize < self.image_size:
            raise DataError(f"data.resize: {self.resize} is under data.image_size: {self.image_size}; it must not be")
        if self.resize and not self.image_size:
            raise DataError(f"data.resize: {self.resize} without data.image_size; say what to crop to")


def reduction(size: tuple[int, int]) -> int:
    """Returns by what an image's width and height are divided when it is read: 1, 2, 4 or 8; see `FULL_PIXELS`."""
    pixels = size[0] * size[1]
    if pixels <= FULL_PIXELS:
        return 1
    return next((factor for factor in (2, 4) if pixels <= REDUCED_PIXELS * factor**2), 8)


def resize(image: Image.Image, size: int, interpolation: str = "bilinear") -> Image.Image:
    """Resizes the shorter side to `size` pixels with antialiasing, as torchvision's `Resize(size)`.

    The longer side becomes `int(size * longer / shorter)`. An image whose shorter side is right is returned as it is.
    """
    width, height = image.size
    if min(width, height) == size:
        return image
    new = tuple(size if side == min(width, height) else int(size * side / min(width, height)) for side in image.size)
    return image.resize(new, INTERPOLATIONS[interpolation])


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cuts out the central square; odd margins are rounded half to even, as torchvision's `CenterCrop(size)`."""
    width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def resize_and_crop(image: Image.Image, resize_to: int, crop_to: int, interpolation: str = "bilinear") -> Image.Image:
    """Returns the central `crop_to` square of `image` with its shorter side resized to `resize_to`."""
    return center_crop(resize(image, resize_to, interpolation), crop_to)


def of_network(settings: Mapping[str, Any], image_shape: Sequence[int]) -> Transform:
    """Returns how any image is prepared for a network.

    Args:
        settings: 'resize' and 'interpolation', as in the config's `data` group; older files have no 'interpolation'.
        image_shape: [H, W, C] of the images that it takes.
    """
    height, _, channels = image_shape
    interpolation = settings.get("interpolation", "bilinear")
    return Transform(height, settings["resize"], channels, convert=True, interpolation=interpolation)


def store(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """Returns decoded pixels, uint8 [H, W, C], at the size they are stored at."""
    size = transform.image_size
    resize_to = transform.resize or size
    if not size or (pixels.shape[:2] == (size, size) and resize_to == size):
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if transform.squash:
        result = image.resize((size, size), Image.Resampling.LANCZOS)
    else:
        result = resize_and_crop(image, resize_to, size, transform.interpolation)
    return np.asarray(result).reshape(size, size, pixels.shape[2])

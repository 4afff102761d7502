"""Batched image transforms on device: uint8 or float images [B, H, W, C] in, float images out.

Random transforms take one key per image, so it makes no difference how a batch is split over devices.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.types import Array

PADS = ("edge", "zero")


def normalize(images: Array, *, mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32) -> Array:
    """(x / 255 - mean) / std per channel: uint8 [..., C] -> `dtype` [..., C]; `mean` and `std` on the 0..1 scale."""
    scale = 1 / (255 * jnp.asarray(std, dtype))
    offset = -jnp.asarray(mean, dtype) / jnp.asarray(std, dtype)
    return images.astype(dtype) * scale + offset


def center_crop(images: Array, size: int) -> Array:
    """The middle `size` x `size` pixels of images [..., H, W, C]; size 0: the whole images.

    Offsets are rounded half to even, as torchvision does.

    Raises:
      ConfigError: the images are smaller than `size`.
    """
    if not size:
        return images
    if size > min(images.shape[-3:-1]):
        sides = " x ".join(map(str, images.shape[-3:-1]))
        raise ConfigError(f"a crop of {size} pixels cannot be taken from images of {sides}; lower it")
    top, left = (round((length - size) / 2) for length in images.shape[-3:-1])
    return images[..., top : top + size, left : left + size, :]


def random_flip(keys: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability 1/2: keys [B], images [B, H, W, C]."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_shift(keys: Array, images: Array, pixels: int, pad: str = "edge") -> Array:
    """Shifts each image by up to `pixels` in both directions: keys [B], images [B, H, W, C].

    pad: what moves in: 'edge': the edge pixels, repeated; 'zero': black (torchvision's RandomCrop with padding).
    """
    if not pixels:
        return images
    margins = (0, 0), (pixels, pixels), (pixels, pixels), (0, 0)
    padded = jnp.pad(images, margins, "edge" if pad == "edge" else "constant")
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * pixels + 1))(keys)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def color_jitter(keys: Array, images: Array, strength: float) -> Array:
    """Changes brightness, contrast and saturation at random, in a random order (torchvision's ColorJitter).

    Each change is a blend f x + (1 - f) y, clipped to 0..255, with f uniform within 1 +- `strength`. y is black, the
    image's mean grey, or the image in grey.

    Args:
      keys: [B].
      images: [B, H, W, 3] on the 0..255 scale.
      strength: 0 to 1, for all three; 0 changes nothing.

    Returns:
      float [B, H, W, 3].
    """
    if not strength:
        return images
    to_grey = jnp.array([0.299, 0.587, 0.114])

    def jitter(key, image):
        order_key, factor_key = jax.random.split(key)
        order = jax.random.permutation(order_key, 3)
        factors = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
        image = image.astype(jnp.float32)
        for kind, factor in zip(order, factors, strict=True):
            grey = (image * to_grey).sum(-1, keepdims=True)
            other = jnp.select([kind == 0, kind == 1], [jnp.zeros_like(grey), jnp.full_like(grey, grey.mean())], grey)
            image = jnp.clip(factor * image + (1 - factor) * other, 0, 255)
        return image

    return jax.vmap(jitter)(keys, images)


def all_rotations(images: Array) -> Array:
    """Square images rotated by 0, 90, 180 and 270 degrees: [B, H, H, C] -> [4 B, H, H, C], all by 0 first."""
    return jnp.concatenate([jnp.rot90(images, turns, axes=(1, 2)) for turns in range(4)])


def turned(images: Array, turns: Array) -> Array:
    """Rotates each square image of [B, H, H, C] by its own number of right angles: `turns`, int [B], 0 to 3."""
    turns = turns[:, None, None, None]
    images = jnp.where(turns % 2 == 1, jnp.rot90(images, axes=(1, 2)), images)
    return jnp.where(turns >= 2, images[:, ::-1, ::-1], images)


def random_resized_crop(
    keys: Array,
    images: Array,
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """A random crop of each image, resized to `size` x `size`: bilinear, antialiased (torchvision's RandomResizedCrop).

    Args:
      keys: [B].
      images: [B, H, W, C].
      size: output pixels.
      scale: range of the crop's area, as a fraction of the image's.
      ratio: range of the crop's width / height, uniform in its logarithm.

    Returns:
      float32 [B, size, size, C]. The crop is the first of ten random ones that fits into the image, or else the largest
      central one with an allowed ratio. Pixels outside of it have no effect.
    """
    height, width = images.shape[1:3]

    def crop(key, image):
        y, x, h, w = _random_box(key, height, width, scale, ratio)
        rows, columns = _resize_weights(y, h, height, size), _resize_weights(x, w, width, size)
        exact = jax.lax.Precision.HIGHEST  # accelerators round a product's factors otherwise
        return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(jnp.float32), precision=exact)

    return jax.vmap(crop)(keys, images)


def _resize_weights(start: Array, length: Array, pixels: int, size: int) -> Array:
    """The weight [size, pixels] of each input pixel of a line in each output: bilinear resize of a part, antialiased.

    Weights are a triangle around each output's centre in the part. It is one pixel wide to each side, or as wide as
    the distance between outputs, whichever is more.
    """
    zoom = length / size
    centre = start + (jnp.arange(size) + 0.5) * zoom - 0.5
    position = jnp.arange(pixels)
    weights = jnp.maximum(0, 1 - jnp.abs(position - centre[:, None]) / jnp.maximum(zoom, 1))
    weights = jnp.where((position >= start) & (position < start + length), weights, 0)
    return weights / weights.sum(1, keepdims=True)


def _random_box(
    key: Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Array, ...]:
    """Top, left, height and width of the first of ten random boxes that fits, as floats of whole pixels."""
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (10,), minval=scale[0], maxval=scale[1])
    log_low, log_high = jnp.log(jnp.asarray(ratio))
    aspect = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=log_low, maxval=log_high))
    w, h = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits)
    h, w = h[first], w[first]
    y, x = jnp.floor(jax.random.uniform(corner_key, (2,)) * jnp.stack([height - h + 1, width - w + 1]))
    middle_h, middle_w = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    middle = (height - middle_h) // 2, (width - middle_w) // 2, middle_h, middle_w
    return tuple(jnp.where(fits[first], drawn, other) for drawn, other in zip((y, x, h, w), middle, strict=True))

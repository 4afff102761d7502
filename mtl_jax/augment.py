"""Batched image transforms on device: uint8 or float images [B, H, W, C] in, float images out.

Random ones take one key per image: how a batch is split over devices makes no difference.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtl_jax.types import Array


def normalize(images: Array, *, mean: Sequence[float], std: Sequence[float], dtype=jnp.float32) -> Array:
    """(x / 255 - mean) / std per channel: uint8 [..., C] -> `dtype` [..., C]; `mean` and `std` on the 0..1 scale."""
    scale = 1 / (255 * jnp.asarray(std, dtype))
    offset = -jnp.asarray(mean, dtype) / jnp.asarray(std, dtype)
    return images.astype(dtype) * scale + offset


def center_crop(images: Array, size: int) -> Array:
    """The middle `size` x `size` pixels of [..., H, W, C], offsets rounded half to even as torchvision does; 0: all."""
    if not size:
        return images
    top, left = (round((length - size) / 2) for length in images.shape[-3:-1])
    return images[..., top : top + size, left : left + size, :]


def random_flip(keys: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability 1/2: keys [B], images [B, H, W, C]."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_shift(keys: Array, images: Array, pixels: int) -> Array:
    """Moves each image by up to `pixels` in both directions, repeating the edge: keys [B], images [B, H, W, C]."""
    if not pixels:
        return images
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), "edge")
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * pixels + 1))(keys)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def random_resized_crop(
    keys: Array,
    images: Array,
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """A random part of each image, resized to `size` x `size`, bilinear with antialiasing (torchvision's transform).

    Args:
      keys: [B].
      images: [B, H, W, C].
      size: output pixels.
      scale: range of the part's area as a fraction of the image's.
      ratio: range of width / height, drawn uniformly in its logarithm.

    Returns:
      float32 [B, size, size, C]. The first of ten draws that fits into the image is taken, or else the middle of it.
    """
    height, width = images.shape[1:3]

    def crop(key, image):
        y, x, h, w = _random_box(key, height, width, scale, ratio)
        zoom = jnp.stack([size / h, size / w])
        shift = -jnp.stack([y, x]) * zoom
        shape = (size, size, image.shape[-1])
        return jax.image.scale_and_translate(image.astype(jnp.float32), shape, (0, 1), zoom, shift, "linear")

    return jax.vmap(crop)(keys, images)


def _random_box(key, height, width, scale, ratio):
    """Top, left, height and width of the first of ten random boxes that fits, as floats of whole pixels."""
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (10,), minval=scale[0], maxval=scale[1])
    log_low, log_high = jnp.log(jnp.asarray(ratio))
    aspect = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=log_low, maxval=log_high))
    w, h = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits)
    h, w = jnp.where(fits[first], h[first], height), jnp.where(fits[first], w[first], width)
    corner = jax.random.uniform(corner_key, (2,)) * jnp.stack([height - h + 1, width - w + 1])
    y, x = jnp.floor(corner)
    return jnp.where(fits[first], y, 0), jnp.where(fits[first], x, 0), h, w

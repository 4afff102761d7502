"""Drawings to drop on a page: stripes, a class for each angle."""

import io

import numpy as np
from PIL import Image

ANGLES = {"flat": 0.0, "steep": np.pi / 2, "slanted": np.pi / 4}  # of the stripes of each class


def drawing(name, number, side=64):
    """A Pillow image: coloured stripes at the angle of a class, each with its own noise."""
    rng = np.random.default_rng((list(ANGLES).index(name), number))
    y, x = np.mgrid[:side, :side] * 64 / side + rng.uniform(0, 20)
    waves = np.sin((y * np.cos(ANGLES[name]) + x * np.sin(ANGLES[name])) * rng.uniform(0.5, 0.6))[..., None]
    pixels = 128 + 90 * waves * rng.uniform(0.6, 1, 3) + rng.normal(0, 12, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image, kind="PNG", **options):
    """The bytes of a Pillow image's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()

"""Further views of the support images of a test task: mirror images and random parts, which join the support set."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import augment, episodes
from mtl_jax.errors import ConfigError


class View(NamedTuple):
    """How an image is seen: mirrored, or cut at random to at least the fraction `area` of it, by the key `number`."""

    flip: bool = False
    area: float = 1.0
    number: int = 0


PLAIN = View()


def further(flips: bool, crops: int, area: float) -> tuple[View, ...]:
    """The views that a protocol adds to the images themselves."""
    parts = (View(area=area, number=number) for number in range(crops))
    return (*([View(flip=True)] if flips else []), *parts)


def check_crops(crops: int, adapt: str, batch_statistics: str) -> None:
    """Raises ConfigError where random parts are wanted of images whose features tasks cannot share."""
    if crops and (adapt != "head" or batch_statistics == "batch"):
        raise ConfigError(
            f"config.evaluate.crops is {crops}, which needs features that tasks share, but config.inner.adapt is "
            f"{adapt!r} and config.meta.batch_norm {batch_statistics!r}; set evaluate.crops to 0"
        )


def see(view: View, images: np.ndarray, start: int) -> np.ndarray:
    """Images [B, H, W, C] in a view; `start` is the number of the first one in its split.

    Raises ConfigError for parts of images that are no squares.

    A part is drawn by the image's number: it depends neither on the task nor on how images are put into batches.
    """
    if view.area < 1:
        if images.shape[1] != images.shape[2]:
            raise ConfigError(
                f"config.evaluate.crops: images are {images.shape[1]} x {images.shape[2]} pixels, and only parts of "
                "squares are taken: set data.image_size when training, or evaluate.crops to 0"
            )
        keys = episodes.numbered_keys(jax.random.key(view.number), start + jnp.arange(len(images)))
        images = np.asarray(_crop(keys, images, view.area))
    return images[:, :, ::-1] if view.flip else images


@functools.partial(jax.jit, static_argnames="area")
def _crop(keys, images, area):
    return augment.random_resized_crop(keys, images, images.shape[1], scale=(area, 1.0))

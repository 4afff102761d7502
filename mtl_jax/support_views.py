"""Further views of a test task's support images: mirror images and random crops, added to the support set."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import augment, episodes
from mtl_jax.errors import ConfigError
from mtl_jax.types import Episode


class View(NamedTuple):
    """A view of an image: mirrored, or a random crop of at least the fraction `area` of it, drawn by key `number`."""

    flip: bool = False
    area: float = 1.0
    number: int = 0


PLAIN = View()


def further(flips: bool, crops: int, area: float) -> tuple[View, ...]:
    """The views that a protocol adds to the images themselves: the mirror image, `crops` crops."""
    random = (View(area=area, number=number) for number in range(crops))
    return (*([View(flip=True)] if flips else []), *random)


def check_crops(crops: int, adapt: str, batch_statistics: str) -> None:
    """Raises ConfigError if crops are wanted of images whose features tasks cannot share."""
    if crops and (adapt != "head" or batch_statistics == "batch"):
        raise ConfigError(
            f"config.evaluate.crops is {crops}, which needs features that tasks share, but config.inner.adapt is "
            f"{adapt!r} and config.meta.batch_norm {batch_statistics!r}; set evaluate.crops to 0"
        )


def see(view: View, images: np.ndarray, start: int) -> np.ndarray:
    """Images [B, H, W, C] in a view; `start` is the position of the first one in its split.

    A crop is drawn by the image's position: it depends neither on the task nor on how images are batched.

    Raises:
      ConfigError: crops of images that are not square.
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


def with_flips(tasks: Episode) -> Episode:
    """Tasks [T, S, H, W, C] with the mirror images of their support sets added: [T, 2 S, H, W, C]."""
    support: Any = np.concatenate([tasks.support, tasks.support[..., ::-1, :]], axis=1)
    return tasks._replace(support=support, support_labels=jnp.tile(tasks.support_labels, 2))


@functools.partial(jax.jit, static_argnames="area")
def _crop(keys, images, area):
    return augment.random_resized_crop(keys, images, images.shape[1], scale=(area, 1.0))

"""Maps of a run's frozen trunk in place of its images: computed once, kept in the cache's folder.

`runtime.cache_trunk` asks for it. It is done where nothing below the last block is learned, so that one file serves
all runs that differ above it: head, SS, weights of the last block, on the same pre-trained network.
"""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config import build
from mtl_jax.config.recipe import MetaRecipe, image_shape
from mtl_jax.data import Split
from mtl_jax.data.cache import reader, rows
from mtl_jax.data.load import UNSAFE
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation import Model
from mtl_jax.launch import hosts
from mtl_jax.launch.signals import Stopped
from mtl_jax.meta import Frozen
from mtl_jax.pretrain import init_backbone
from mtl_jax.scale_shift import last_block
from mtl_jax.trunk import Rest, Trunk
from mtl_jax.types import Params
from mtl_jax.words import counted
from mtl_jax.workdir.console import duration

DTYPE = np.float16  # half the disk of float32
_EVERY = 60  # seconds between lines of the log
_IMAGES = ("image_size", "resize", "interpolation", "channels", "rotations", "convert", "max_pixels")
_logger = logging.getLogger(__name__)

Config = Mapping[str, Any]


def applies(config: Config) -> bool:
    """Whether maps take the place of images: it is asked for, and all below the last block is frozen."""
    meta = config["meta"]
    is_frozen = meta["learn"] in ("none", "head") or meta["blocks"] == "last"
    is_above = config["inner"]["adapt"] != "all" and meta["batch_norm"] == "running"
    return bool(config["runtime"]["cache_trunk"] and is_frozen and is_above)


def folder(config: Config) -> Path:
    """Where maps are kept: beside the data sets."""
    return reader.directory(config["data"]["cache_dir"])


def rest(config: Config, params: Params, stored: tuple[int, ...]) -> Rest:
    """The network from its last block on; `params` may be shapes, stored images are [H, W, C]."""
    embed = build.embedding(config)
    return Rest(embed, last_block(params), image_shape(embed.prepare, stored))


def planned(config: Config, recipe: MetaRecipe, split: Split) -> tuple[MetaRecipe, Split]:
    """What meta-training will run on, from shapes alone: the images of the split are not to be read."""
    if not applies(config):
        return recipe, split
    stored = split.images.shape[1:]
    seen = image_shape(recipe.embed.prepare, stored)
    variables = jax.eval_shape(lambda: init_backbone(jax.random.key(0), recipe.embed.module, seen))
    params, batch_stats = variables["params"], variables["batch_stats"]
    whole = len(split.images), *_shape(Trunk(recipe.embed, last_block(params)), params, batch_stats, stored)
    maps = np.broadcast_to(np.zeros((), DTYPE), whole)
    return recipe._replace(embed=rest(config, params, stored)), dataclasses.replace(split, images=maps)


def of_training(
    config: Config, recipe: MetaRecipe, splits: Mapping[str, Split], frozen: Frozen, stop: Any = ()
) -> tuple[MetaRecipe, Mapping[str, Split]]:
    """A phase and its splits on maps, where `applies`; arguments and errors as for `in_place_of_images`."""
    if not applies(config):
        return recipe, splits
    model, seen = Model(recipe.embed, {}, frozen), {}
    for name in (name for name in ("train", "val") if name in splits):
        upper, seen[name] = in_place_of_images(config, model, splits[name], stop)
    return recipe._replace(embed=upper.embed), {**splits, **seen}


def in_place_of_images(config: Config, model: Model, split: Split, stop: Any = ()) -> tuple[Model, Split]:
    """A model of the network's rest, and a split whose images are maps [M, ...] in half precision.

    Both are returned as they are where `applies` is False.

    Args:
      config: a run's.
      model: its network.
      split: images uint8 [M, H, W, C].
      stop: true once a signal asks the run to stop.

    Raises:
      DataError: the cache cannot be written.
      ConfigError: the network cannot be cut there, or its maps are too large for half precision.
      Stopped: what is done stays, and is gone on from.
    """
    if not applies(config):
        return model, split
    params, batch_stats = model.frozen
    trunk, upper = Trunk(model.embed, last_block(params)), rest(config, params, split.images.shape[1:])
    size, shown = config["runtime"]["embed_batch"], _Progress(split)
    compiled = _compiled(trunk)

    def compute(start: int, end: int) -> np.ndarray:
        parts = []
        for first in range(start, end, size):
            images = np.asarray(split.images[first : min(first + size, end)])
            padded = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), images.dtype)])
            with np.errstate(over="ignore"):
                parts.append(np.asarray(compiled(params, batch_stats, padded))[: len(images)].astype(DTYPE))
            if not np.isfinite(parts[-1]).all():
                raise ConfigError(
                    f"maps below {trunk.block} are too large for half precision; set runtime.cache_trunk=False"
                )
            if not first:
                _check(upper, params, batch_stats, parts[0])
            if stop:
                raise Stopped
            shown.update(first + len(images), start)
        return np.concatenate(parts)

    path = folder(config) / _name(config, trunk, model.frozen, split)
    whole = len(split.images), *_shape(trunk, params, batch_stats, split.images.shape[1:])
    with hosts.first_goes_first():
        maps = rows.kept(path, whole, DTYPE, compute)
    return model._replace(embed=upper), dataclasses.replace(split, images=maps)


def _compiled(function: Trunk | Rest) -> Any:
    return jax.jit(lambda *arguments: function(*arguments))  # JAX cannot hold a weak reference to a tuple


def _shape(trunk: Trunk, params: Params, batch_stats: Params, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Of the maps of one image."""
    image = jax.ShapeDtypeStruct((1, *stored), jnp.uint8)
    return jax.eval_shape(_compiled(trunk), params, batch_stats, image).shape[1:]


def _check(upper: Rest, params: Params, batch_stats: Params, maps: np.ndarray) -> None:
    features, _ = _compiled(upper)(params, batch_stats, maps)
    if not np.isfinite(features).all():
        raise ConfigError(
            f"the backbone cannot be cut below {upper.block}, since what is above it needs more than what enters it; "
            "set runtime.cache_trunk=False"
        )


def _name(config: Config, trunk: Trunk, frozen: Frozen, split: Split) -> str:
    """The file's name. It depends on all that the maps depend on: images, their preparation, trunk and parameters."""
    images = jax.ShapeDtypeStruct((1, *split.images.shape[1:]), jnp.uint8)
    names = trunk.blocks(*frozen, images)
    state = hashlib.sha256(np.ascontiguousarray(split.digests).data)
    state.update(_compiled(trunk).lower(*frozen, images).as_text().encode())  # the computation, whoever wrote its code
    for group in frozen:
        below = {name: tree for name, tree in group.items() if name in names or not isinstance(tree, Mapping)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(below):
            state.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    options = {name: config["data"][name] for name in _IMAGES}
    key = reader.key([(state.hexdigest(), 0, 0)], options)
    return f"trunk-{config['data']['name'].translate(UNSAFE)}-{split.name}-{key}.npy"


class _Progress:
    """Says in the log how far it is: at its start, and then every minute."""

    def __init__(self, split: Split) -> None:
        self._name, self._total = split.name, len(split.images)
        self._begun: tuple[float, int] | None = None
        self._last = 0.0

    def update(self, done: int, start: int) -> None:
        now = time.monotonic()
        if self._begun is None:  # not before the first batch, which is compiled
            self._begun, self._last = (now, done), now
            _logger.info(
                "trunk: computing the maps of %s, once: %s", self._name, counted(self._total - start, "image", ",")
            )
        elif now - self._last >= _EVERY:
            self._last = now
            rate = (done - self._begun[1]) / (now - self._begun[0])
            _logger.info("trunk: %s %s of %s, %.3g images/s, %s to go", self._name, f"{done:,}", f"{self._total:,}",
                         rate, duration((self._total - done) / rate))  # fmt: skip

"""The backbone as a function: (params, batch_stats, images) -> (features, batch_stats).

Any such function that can be hashed is an embedding. It must give each image features of its own. One whose features
depend on the batch, or that changes `batch_stats`, must say so: give `Embed(function, batch_statistics='batch')`, or
'train'.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import ConfigError
from mtl_jax.types import Array, Params


class Embedder(Protocol):
    """Any function (params, batch_stats, images [B, ...]) -> (features [B, F], batch_stats)."""

    def __call__(self, params: Params, batch_stats: Params, images: Array, /) -> tuple[Array, Params]:
        """One batch."""


class Preparation(Protocol):
    """Any function of stored images [..., H, W, C] -> float32 images for the backbone."""

    def __call__(self, images: Array, /) -> Array:
        """One batch."""


class Embed(NamedTuple):
    """A backbone in one of BN's three modes: (params, batch_stats, images) -> (features, new batch_stats).

    module: a Linen module, from `create_backbone` or of your own; or a function of the same three arguments.
    batch_statistics: 'running', 'batch' or 'train'. A module of your own gets it by the argument that it has:
    `batch_statistics`, `train` (False for 'running') or `use_running_average` (True for 'running'). prepare: applied to
    the images first, e.g. normalisation of uint8 images.
    """

    module: Any
    batch_statistics: str = "running"
    prepare: Preparation = lambda images: images

    def __call__(self, params: Params, batch_stats: Params, images: Array) -> tuple[Array, Params]:
        """images [B, H, W, C] -> (features [B, F], averages, which change in mode 'train' only)."""
        inputs, mode = self.prepare(images), self.batch_statistics
        if not isinstance(self.module, nn.Module):
            features, new = self.module(params, batch_stats, inputs)
            return features, batch_stats if mode == "batch" else new
        variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
        options = mode_options(self.module, mode)
        if mode == "running" or (mode == "batch" and "batch_statistics" in options):
            unchanged: Array = self.module.apply(variables, inputs, **options)  # type: ignore[assignment]
            return unchanged, batch_stats
        features, new = self.module.apply(variables, inputs, **options, mutable=["batch_stats"])
        return features, new.get("batch_stats", batch_stats) if mode == "train" else batch_stats


def mode_options(module: nn.Module, mode: str) -> dict[str, Any]:
    """The argument that sets a module's mode of batch norm; none if it has no such argument."""
    names = _arguments(type(module).__call__)
    values = {"batch_statistics": mode, "train": mode != "running", "use_running_average": mode == "running"}
    return next(({name: value} for name, value in values.items() if name in names), {})


def training_options(module: nn.Module, mode: str) -> dict[str, Any]:
    """The arguments of a module in pre-training: dropout is on, if it has `train`, and batch norm is in a mode."""
    switch = {"train": True} if "train" in _arguments(type(module).__call__) else {}
    return {**switch, **mode_options(module, mode)}


@functools.lru_cache
def _arguments(call: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(call).parameters)


def statistics_of(embed: Embedder) -> str:
    """The mode of batch norm: 'running' if an embedding says nothing."""
    return getattr(embed, "batch_statistics", "running")


def for_evaluation(embed: Embedder) -> Embedder:
    """An embedding as it is tested: one in mode 'train' by its running averages, as in the PyTorch implementation.

    Raises:
      ConfigError: a function in mode 'train', which cannot be told to use them.
    """
    if statistics_of(embed) != "train":
        return embed
    if not isinstance(embed, Embed) or not isinstance(embed.module, nn.Module):
        raise ConfigError("embed is a function in mode 'train', which cannot be tested; give the one for testing")
    return embed._replace(batch_statistics="running")


def check_unchanged(embed: Embedder, before: Params, after: Params) -> None:
    """Raises ConfigError if an embedding changes batch norm's averages and is not in mode 'train': they would be lost.

    It compares the arrays' identity, when the function is traced.
    """
    if isinstance(embed, Embed) and isinstance(embed.module, nn.Module):
        return
    if statistics_of(embed) == "train":
        return
    same = [a is b for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    if not all(same):
        raise ConfigError(
            "embed returns other batch_stats than it was given, which would be lost: return them as they are, or give "
            "Embed(function, batch_statistics='train')"
        )


def feature_width(embed: Embedder, params: Params, batch_stats: Params, image_shape: tuple[int, ...]) -> int:
    """The number of features F for stored images, uint8 [H, W, C], from shapes alone."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    return jax.eval_shape(lambda *a: embed(*a)[0], params, batch_stats, image).shape[-1]

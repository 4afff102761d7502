"""A backbone cut in two below a block: its trunk, images -> maps, and the rest, maps -> features.

Where nothing below a block is learned, the maps that enter it never change, so they can be computed once. The rest is
then an embedding of maps: it takes the whole backbone's parameters, and gives its features, and its gradients by the
parameters from the block on. Any Linen module can be cut below a submodule of its own whose first argument is all that
it needs of what was computed before.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.embed import Embed
from mtl_jax.errors import ConfigError
from mtl_jax.types import Array, Params


class Trunk(NamedTuple):
    """What enters a block: (params, batch_stats, images [B, H, W, C]) -> maps [B, ...].

    embed: the whole backbone, its batch norm by running averages. block: the name of its submodule.
    """

    embed: Embed
    block: str

    def __call__(self, params: Params, batch_stats: Params, images: Array) -> Array:
        """Raises ConfigError if the backbone does not call such a block, or calls it without maps."""
        return self._run(params, batch_stats, images)[0]

    def blocks(self, params: Params, batch_stats: Params, images: Any) -> tuple[str, ...]:
        """The names of the submodules below the block; `images` may be a shape."""
        names: list[str] = []

        def note(*arguments):
            maps, names[:] = self._run(*arguments)
            return maps

        jax.eval_shape(note, params, batch_stats, images)
        return tuple(names)

    def _run(self, params: Params, batch_stats: Params, images: Array) -> tuple[Array, list[str]]:
        names: list[str] = []

        def interceptor(call, arguments, options, context):
            if name := _submodule(context):
                if name == self.block:
                    raise _Entered(_maps(name, arguments))
                names.append(name)
            return call(*arguments, **options)

        try:
            with nn.intercept_methods(interceptor):
                self.embed(params, batch_stats, images)
        except _Entered as entered:
            return entered.args[0], names
        raise ConfigError(f"the backbone has no block {self.block!r}, or does not call it")


class Rest(NamedTuple):
    """The backbone from a block on: (params, batch_stats, maps [B, ...]) -> (features [B, F], batch_stats).

    embed, block: as in `Trunk`. image_shape: [H, W, C] of what the module takes, after `embed.prepare`.
    """

    embed: Embed
    block: str
    image_shape: tuple[int, ...]

    @property
    def batch_statistics(self) -> str:
        """Always 'running'."""
        return "running"

    def __call__(self, params: Params, batch_stats: Params, maps: Array) -> tuple[Array, Params]:
        """Features that need more of what is below the block than the maps are NaN."""
        is_below, is_shape = True, False

        def interceptor(call, arguments, options, context):
            nonlocal is_below, is_shape
            name = "" if is_shape else _submodule(context)
            if name == self.block:
                is_below = False
                return call(maps.astype(_maps(name, arguments).dtype), *arguments[1:], **options)
            if not name or not is_below:
                return call(*arguments, **options)
            alone, variables = context.module.unbind()  # Flax lets nothing else be traced by itself
            is_shape = True
            shapes = jax.eval_shape(lambda: alone.apply(variables, *arguments, **options))
            is_shape = False
            return _nothing(shapes)

        images = _nothing(jax.ShapeDtypeStruct((len(maps), *self.image_shape), jnp.float32))
        with nn.intercept_methods(interceptor):
            return self.embed._replace(prepare=_unchanged)(params, batch_stats, images)


class _Entered(Exception):
    """Ends a call of the backbone where a block is entered, with the maps that enter it."""


def _submodule(context: Any) -> str:
    """The name of a backbone's own submodule, when that is called; '' for all else."""
    path = context.module.path
    return path[0] if len(path) == 1 and context.method_name == "__call__" else ""


def _maps(block: str, arguments: tuple[Any, ...]) -> Array:
    if not arguments or not hasattr(arguments[0], "dtype"):
        raise ConfigError(f"the backbone cannot be cut below {block!r}, whose first argument is no array")
    return arguments[0]


def _unchanged(images: Array) -> Array:
    return images


def _nothing(shapes: Any) -> Any:
    """Stands for what is not computed. NaN, so that features that use it tell."""
    return jax.tree.map(lambda one: jnp.full(one.shape, jnp.nan, one.dtype), shapes)

"""Scale and shift (SS) as a transform of a backbone's parameter tree.

SS(X; W, b) = (W * scale) X + (b + shift): one scale per k x k slice of a kernel, i.e. per pair of an input and an
output channel, initially 1; one shift per output channel, initially 0. The backbone itself knows nothing of it: `apply`
gives parameters of the same structure, and everything that takes the backbone's parameters takes those.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.types import Params

SCALE = ("all", "main")
SHIFT = ("bias", "nowhere")


def init(params: Params, *, scale: str = "all", shift: str = "bias", blocks: Sequence[str] | None = None) -> Params:
    """The SS parameters that change nothing: scales 1 [1, 1, in, out], shifts 0 [out].

    Args:
      params: a backbone's parameters.
      scale: 'all' convolutions (the PyTorch implementation), or 'main': all but the shortcuts' (TensorFlow).
      shift: 'bias': wherever a scaled convolution has a bias; 'nowhere'. (Shifts everywhere need a backbone made with
        `conv_bias=True`.)
      blocks: names of top-level blocks to keep to, e.g. `[last_block(params)]` for SS [Θ4; θ]; None for all.

    Returns:
      A tree with the structure of `params`, cut down to the convolutions, each {'scale': ..., 'shift': ...}.

    Raises:
      ConfigError: an unknown choice or block.
    """
    if scale not in SCALE or shift not in SHIFT:
        raise ConfigError(f"scale is {scale!r}, expected one of {SCALE}; shift is {shift!r}, expected one of {SHIFT}")
    for block in set(blocks or ()) - set(params):
        raise ConfigError(f"block {block!r} is unknown, expected one of {', '.join(sorted(params))}")
    kept = {name: params[name] for name in params if blocks is None or name in blocks}
    ss: Params = {}
    for path, conv in convolutions(kept):
        if scale == "main" and path[-1] == "shortcut":
            continue
        leaf = {"scale": jnp.ones((1, 1, *conv["kernel"].shape[2:]), conv["kernel"].dtype)}
        if shift == "bias" and "bias" in conv:
            leaf["shift"] = jnp.zeros_like(conv["bias"])
        _insert(ss, path, leaf)
    return ss


def apply(params: Params, ss: Params) -> Params:
    """The parameters with SS in them: kernel * scale and bias + shift.

    Args:
      params: a backbone's parameters.
      ss: what `init` returns, possibly trained.

    Returns:
      A new tree of the structure of `params`.

    Raises:
      ConfigError: an SS leaf has no counterpart in `params`, another name than 'scale' and 'shift', or another shape
        than `init` gives it.
    """
    return _apply(params, ss, ())


def _apply(params: Params, ss: Params, path: tuple[str, ...]) -> Params:
    if not isinstance(next(iter(ss.values()), None), Mapping):  # a convolution's {'scale', 'shift'}
        return _apply_leaf(params, ss, path)
    merged = dict(params)
    for name, inner in ss.items():
        if name not in params:
            raise ConfigError(f"SS has {'/'.join((*path, name))}, which the backbone has not")
        merged[name] = _apply(params[name], inner, (*path, name))
    return merged


def _apply_leaf(conv: Params, leaf: Params, path: tuple[str, ...]) -> Params:
    merged, parts = dict(conv), {"scale": ("kernel", jnp.multiply), "shift": ("bias", jnp.add)}
    for name, value in leaf.items():
        where = "/".join((*path, name))
        if name not in parts:
            raise ConfigError(f"SS has {where}, expected 'scale' and 'shift' alone")
        target, combine = parts[name]
        if target not in conv:
            raise ConfigError(f"SS has {where}, but the backbone has no {target} there")
        whole = jnp.shape(conv[target])
        shape = (1, 1, *whole[2:]) if name == "scale" else whole
        if jnp.shape(value) != shape:
            raise ConfigError(f"SS has {where} of shape {jnp.shape(value)}, expected {shape} for its {target} {whole}")
        merged[target] = combine(conv[target], value)
    return merged


def convolutions(params: Params, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Params]]:
    """Every convolution of a parameter tree with its path, in the tree's order."""
    for name, inner in params.items():
        if isinstance(inner, Mapping) and getattr(inner.get("kernel"), "ndim", 0) == 4:
            yield (*path, name), inner
        elif isinstance(inner, Mapping):
            yield from convolutions(inner, (*path, name))


def last_block(params: Params) -> str:
    """The name of the last block (Θ4): block4 of conv4 and resnet12, stage4 of resnet18, stage3 of resnet25.

    Raises:
      ConfigError: no name ends in a number.
    """
    numbers = {name: int(name[len(name.rstrip("0123456789")) :]) for name in params if name[-1].isdigit()}
    if not numbers:
        raise ConfigError(f"the backbone has {', '.join(params)}, expected blocks whose names end in their numbers")
    return max(numbers, key=numbers.get)


def _insert(tree: Params, path: tuple[str, ...], leaf: Params) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf

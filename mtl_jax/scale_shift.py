"""Scale and shift (SS) as a transform of a backbone's parameter tree.

SS(X; W, b) = (W * scale) X + (b + shift). There is one scale for each k x k slice of a kernel, i.e. for each pair of an
input and an output channel, initially 1, and one shift for each output channel, initially 0. The backbone knows nothing
of SS: `apply` returns parameters of the same structure, which can be used wherever the backbone's can.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
from flax import traverse_util

from mtl_jax.errors import ConfigError
from mtl_jax.types import Params

SCALE = ("all", "main")
SHIFT = ("bias", "nowhere")
_APPLIED = {"scale": ("kernel", jnp.multiply), "shift": ("bias", jnp.add)}  # the parameter that each changes, and how


def init(params: Params, *, scale: str = "all", shift: str = "bias", blocks: Sequence[str] | None = None) -> Params:
    """SS parameters that change nothing: scales 1 [1, 1, in, out], shifts 0 [out].

    Args:
      params: a backbone's parameters.
      scale: 'all' convolutions (the PyTorch implementation), or 'main': all but the shortcuts' (TensorFlow).
      shift: 'bias': where a scaled convolution has a bias; 'nowhere'. (For shifts everywhere, create the backbone with
        `conv_bias=True`.)
      blocks: names of the top-level blocks with SS, e.g. `[last_block(params)]` for SS [Θ4; θ]; None: all.

    Returns:
      A tree like `params` with the convolutions alone, each {'scale': ..., 'shift': ...}.

    Raises:
      ConfigError: an unknown choice or block.
    """
    if scale not in SCALE or shift not in SHIFT:
        raise ConfigError(f"scale is {scale!r}, expected one of {SCALE}; shift is {shift!r}, expected one of {SHIFT}")
    for block in set(blocks or ()) - set(params):
        raise ConfigError(f"block {block!r} is unknown, expected one of {', '.join(sorted(params))}")
    ss = {}
    for path, conv in convolutions({name: params[name] for name in params if blocks is None or name in blocks}):
        if scale == "main" and path[-1] == "shortcut":
            continue
        ss[*path, "scale"] = jnp.ones((1, 1, *conv["kernel"].shape[2:]), conv["kernel"].dtype)
        if shift == "bias" and "bias" in conv:
            ss[*path, "shift"] = jnp.zeros_like(conv["bias"])
    return traverse_util.unflatten_dict(ss)


def apply(params: Params, ss: Params) -> Params:
    """The parameters with SS in them: kernel * scale and bias + shift.

    Args:
      params: a backbone's parameters.
      ss: from `init`, possibly trained.

    Returns:
      A new tree of the structure of `params`.

    Raises:
      ConfigError: an SS leaf is not called 'scale' or 'shift', has no counterpart in `params`, or has a wrong shape.
    """
    flat = traverse_util.flatten_dict(params, keep_empty_nodes=True)
    for path, value in traverse_util.flatten_dict(ss).items():
        where, name = "/".join(path), path[-1]
        if name not in _APPLIED:
            raise ConfigError(f"SS has {where}, expected 'scale' and 'shift' alone")
        target, combine = _APPLIED[name]
        key = (*path[:-1], target)
        if key not in flat:
            raise ConfigError(f"SS has {where}, but the backbone has no {target} there")
        whole = jnp.shape(flat[key])
        shape = (1, 1, *whole[2:]) if name == "scale" else whole
        if jnp.shape(value) != shape:
            raise ConfigError(f"SS has {where} of shape {jnp.shape(value)}, expected {shape} for its {target} {whole}")
        flat[key] = combine(flat[key], value)
    return traverse_util.unflatten_dict(flat)


def convolutions(params: Params, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Params]]:
    """(path, parameters) of every convolution in a parameter tree, in the tree's order."""
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

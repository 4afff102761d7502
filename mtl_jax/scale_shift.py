"""Scale and shift (SS) as a transform of a backbone's parameter tree.

MTL's form, per='pair': SS(X; W, b) = (W * scale) X + (b + shift). There is one scale for each k x k slice of a kernel,
i.e. for each pair of an input and an output channel, initially 1, and one shift for each output, initially 0. SSF's
form (Lian et al., NeurIPS 2022), per='output': y becomes γ y + β after every layer, with one γ and one β an output, and
after norm layers as well. The backbone knows nothing of SS: `apply` returns parameters of the same structure, which can
be used wherever the backbone's can.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import traverse_util

from mtl_jax.errors import ConfigError
from mtl_jax.types import Array, Params

SCALE = ("all", "main")
SHIFT = ("bias", "nowhere")
PER = ("pair", "output")
_HEADS_LAST = ("query", "key", "value")  # of Flax's attention: kernels [in, heads, dim]
_ATTENTION = (*_HEADS_LAST, "out")
_TARGETS = {"scale": "kernel", "shift": "bias"}  # the parameter that each changes; of a norm layer, its scale and bias


def init(
    params: Params, *, scale: str = "all", shift: str = "bias", blocks: Sequence[str] | None = None, per: str = "pair",
    where: Callable[[str], bool] | None = None,
) -> Params:  # fmt: skip
    """SS parameters that change nothing: scales 1 and shifts 0.

    Args:
      params: a backbone's parameters, nested dicts (or other mappings).
      scale: 'all' layers with a kernel (the PyTorch implementation), or 'main': all but the shortcuts' (TensorFlow).
      shift: 'bias': where a scaled layer has a bias; 'nowhere'. (For shifts of every convolution, create the backbone
        with `conv_bias=True`, or use per='output', which shifts the norm layers.)
      blocks: names of the top-level blocks with SS, e.g. `[last_block(params)]` for SS [Θ4; θ]; None: all.
      per: 'pair': a scale for each input and output of a layer: [1, ..., 1, in, out] of convolutions, the kernel's
        shape of dense layers and attention; norm layers are left alone. 'output': a scale for each output, of norm
        layers too.
      where: whether the layer at a path such as 'block4/conv1' gets SS; None: every layer does.

    Returns:
      A tree like `params` with those layers alone, each {'scale': ..., 'shift': ...}.

    Raises:
      ConfigError: an unknown choice or block, or `where` is true of no layer.
    """
    if scale not in SCALE or shift not in SHIFT:
        raise ConfigError(f"scale is {scale!r}, expected one of {SCALE}; shift is {shift!r}, expected one of {SHIFT}")
    if per not in PER:
        raise ConfigError(f"per is {per!r}, expected one of {PER}")
    for block in set(blocks or ()) - set(params):
        raise ConfigError(f"block {block!r} is unknown, expected one of {', '.join(map(str, sorted(params)))}")
    ss, layers = {}, list(_layers(params, norms=per == "output"))
    for path, layer in layers:
        is_chosen = (blocks is None or path[0] in blocks) and (where is None or where(_name(path)))
        if not is_chosen or (scale == "main" and path and str(path[-1]).startswith("shortcut")):
            continue
        shape, target = _scale_shape(path, layer, per), layer.get("kernel", layer.get("scale"))
        ss[*path, "scale"] = jnp.ones(shape, target.dtype)
        if shift == "bias" and "bias" in layer:
            ss[*path, "shift"] = jnp.zeros_like(layer["bias"])
    if where is not None and not ss:
        raise ConfigError(f"where is true of no layer; there are {', '.join(_name(path) for path, _ in layers)}")
    return traverse_util.unflatten_dict(ss)


def apply(params: Params, ss: Params) -> Params:
    """The parameters with SS in them: kernel * scale and bias + shift; per output also bias * scale + shift.

    The shape of a scale says which form it has: per pair it has the kernel's rank, per output a smaller one.

    Args:
      params: a backbone's parameters.
      ss: from `init`, possibly trained.

    Returns:
      A new tree of the structure of `params`, as dicts.

    Raises:
      ConfigError: an SS leaf is not called 'scale' or 'shift', has no counterpart in `params`, or has a wrong shape.
    """
    flat = traverse_util.flatten_dict(_as_dict(params), keep_empty_nodes=True)
    leaves = traverse_util.flatten_dict(_as_dict(ss))
    for path, value in sorted(leaves.items(), key=lambda item: item[0][-1] == "shift"):  # bias * scale comes first
        place, (*layer, name) = _name(path), path
        if name not in _TARGETS:
            raise ConfigError(f"SS has {place}, expected 'scale' and 'shift' alone")
        is_norm = (*layer, "kernel") not in flat and (*layer, "scale") in flat
        target = "scale" if is_norm and name == "scale" else _TARGETS[name]
        key, bias = (*layer, target), (*layer, "bias")
        if key not in flat:
            raise ConfigError(f"SS has {place}, but the backbone has no {target} there")
        shape, whole = jnp.shape(value), jnp.shape(flat[key])
        expected = [whole]
        if target == "kernel":
            parts = {part: flat[*layer, part] for part in ("kernel", "bias") if (*layer, part) in flat}
            expected = [_scale_shape(layer, parts, "pair"), _scale_shape(layer, parts, "output")]
        if shape not in expected:
            raise ConfigError(f"SS has {place} of shape {shape}, expected {expected[0]} for its {target} {whole}")
        if name == "scale" and bias in flat and (is_norm or shape != expected[0]):
            flat[bias] = flat[bias] * value
        flat[key] = flat[key] + value if name == "shift" else flat[key] * value
    return traverse_util.unflatten_dict(flat)


def count(ss: Params, params: Params) -> tuple[int, int]:
    """How many numbers SS learns, and how many the backbone has."""
    learned, total = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (ss, params))
    return learned, total


def convolutions(params: Params) -> Iterator[tuple[tuple[str, ...], Params]]:
    """(path, parameters) of every two-dimensional convolution in a parameter tree, in the tree's order."""
    return ((path, layer) for path, layer in _layers(params, norms=False) if layer["kernel"].ndim == 4)


def _layers(params: Params, *, norms: bool, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Params]]:
    """(path, parameters) of every layer with a kernel, and of norm layers, in the tree's order."""
    own = "kernel" if "kernel" in params else "scale"
    if hasattr(params.get(own), "ndim") and (norms or own == "kernel"):
        yield path, params
    for name, inner in params.items():
        if isinstance(inner, Mapping):
            yield from _layers(inner, norms=norms, path=(*path, name))


def _scale_shape(path: Sequence[str], layer: Mapping[str, Array], per: str) -> tuple[int, ...]:
    """The shape of a layer's scale. Kernels of rank 3 are attention's or, under another name, 1-d convolutions."""
    if "kernel" not in layer:
        return layer["scale"].shape
    kernel, bias = layer["kernel"].shape, layer.get("bias")
    name = path[-1] if path else ""
    if per == "output":
        outputs = bias.ndim if bias is not None else 2 if len(kernel) == 3 and name in _HEADS_LAST else 1
        if bias is not None and bias.shape != kernel[-outputs:]:
            raise ConfigError(
                f"{_name(path)} has a kernel {kernel} and a bias {bias.shape}, expected the kernel's ends"
            )
        return kernel[-outputs:]
    has_heads = (len(kernel) == 3 and name in _ATTENTION) or (bias is not None and bias.ndim > 1)
    return kernel if len(kernel) < 3 or has_heads else (*(1 for _ in kernel[:-2]), *kernel[-2:])


def _as_dict(tree: Params) -> Params:
    return {name: _as_dict(inner) for name, inner in tree.items()} if isinstance(tree, Mapping) else tree


def _name(path: Sequence[str]) -> str:
    return "/".join(map(str, path))


def last_block(params: Params) -> str:
    """The name of the last block (Θ4): block4 of conv4 and resnet12, stage4 of resnet18, stage3 of resnet25.

    Raises:
      ConfigError: no name ends in a number.
    """
    ends = {name: str(name)[len(str(name).rstrip("0123456789")) :] for name in params}
    numbers = {name: int(end) for name, end in ends.items() if end}
    if not numbers:
        raise ConfigError(
            f"the backbone has {', '.join(map(str, params))}, expected blocks whose names end in their numbers"
        )
    return max(numbers, key=lambda name: numbers[name])

"""State dicts of vision transformers, to this project's trees: timm's keys, DINO's, 2's and 3's, Hugging Face's.

What a file does not say, the number of heads and the norms' epsilon, comes from its dialect and its width.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import CheckpointError
from mtl_jax.reference_weights.pytorch import LEFT_OUT, prefix_at, to_ours
from mtl_jax.reference_weights.trees import to_numpy
from mtl_jax.reference_weights.vision import dinov3
from mtl_jax.types import Params
from mtl_jax.vision_vit import Form, ViT
from mtl_jax.workdir import named_arrays

_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}  # of published networks, by width
_ROTARY_HEADS, _PERIODS = {4096: 32}, 100.0  # of DINOv3: others have 64 features a head; its longest period
_CHUNK = re.compile(r"\bblocks\.\d+\.(\d+)\.")  # DINOv2's training code groups blocks, whose own numbers go on


class Dialect(NamedTuple):
    """The keys of one kind of file, without prefix. Of a block without number, `block`.

    parts: a path here -> the key of its weights without '.weight', several for what is split there.
    """

    name: str
    block: str
    parts: Mapping[str, tuple[str, ...]]
    whole: Mapping[str, str]  # arrays that are not a layer's weight or bias: a path here -> a key
    epsilon: float = 1e-6

    @property
    def anchor(self) -> re.Pattern:
        """Matches the key that tells this dialect; its group is the prefix."""
        return re.compile(rf"((?:.*?\.)?){re.escape(self.block)}0\.{re.escape(self.parts['norm1'][0])}\.weight$")


_TIMM = Dialect(
    "timm", "blocks.",
    {"patch": ("patch_embed.proj",), "norm": ("norm",), "norm1": ("norm1",), "norm2": ("norm2",),
     "attention/qkv": ("attn.qkv",), "attention/out": ("attn.proj",), "mlp/fc1": ("mlp.fc1",),
     "mlp/fc2": ("mlp.fc2",)},
    {"class_token": "cls_token", "positions": "pos_embed", "registers": "reg_token", "scale1": "ls1.gamma",
     "scale2": "ls2.gamma"},
)  # fmt: skip
_SPLIT = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
_FACE = {"patch": ("embeddings.patch_embeddings.projection",), "norm": ("layernorm",), "attention/qkv": _SPLIT,
         "attention/out": ("attention.output.dense",)}  # fmt: skip
_FACE_WHOLE = {
    "class_token": "embeddings.cls_token", "positions": "embeddings.position_embeddings",
    "registers": "embeddings.register_tokens", "scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1",
}  # fmt: skip
_DIALECTS = (
    _TIMM,
    Dialect(
        "Hugging Face's ViT", "encoder.layer.",
        {**_FACE, "norm1": ("layernorm_before",), "norm2": ("layernorm_after",), "mlp/fc1": ("intermediate.dense",),
         "mlp/fc2": ("output.dense",)},
        _FACE_WHOLE, 1e-12,
    ),
    Dialect(
        "Hugging Face's DINOv2", "encoder.layer.",
        {**_FACE, "norm1": ("norm1",), "norm2": ("norm2",), "mlp/fc1": ("mlp.fc1",), "mlp/fc2": ("mlp.fc2",)},
        _FACE_WHOLE,
    ),
)  # fmt: skip
_GATED = {"timm": ("mlp.w12", "mlp.w3"), "Hugging Face's DINOv2": ("mlp.weights_in", "mlp.weights_out")}


class Transformer(NamedTuple):
    """A vision transformer of a file. left_out: keys of other parts of the file, such as a classifier."""

    form: Form
    params: Params
    dialect: str
    has_classifier: bool
    left_out: tuple[str, ...]


def dialect_of(state: Mapping[str, Any]) -> Dialect | None:
    """The dialect of an unwrapped state dict; None if it is not a vision transformer."""
    names = tuple(_normal(state))
    return next((dialect for dialect in _DIALECTS if any(map(dialect.anchor.match, names))), None)


def read(state: Mapping[str, Any], source: str, **known: Any) -> Transformer:
    """The transformer of a state dict that `dialect_of` knows.

    Args:
      state: of `pytorch.unwrapped`.
      source: how error messages begin.
      **known: options of `Form` that are known from elsewhere.

    Raises:
      CheckpointError: lists every missing and surplus key and every wrong shape; or the number of heads is unknown.
    """
    state = _normal(state)
    if (dialect := dialect_of(state)) is None:
        raise CheckpointError(f"{source} is not a vision transformer")
    prefix = prefix_at(state, dialect.anchor)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    parts, whole = dict(dialect.parts), dict(dialect.whole)
    if dialect.block + "0." + _GATED.get(dialect.name, ("-",))[0] + ".weight" in own:
        parts["mlp/fc1"], parts["mlp/fc2"] = ((name,) for name in _GATED[dialect.name])
    if dialect is _TIMM and "register_tokens" in own:
        whole["registers"] = "register_tokens"
    if "norm.weight" not in own and "fc_norm.weight" in own:
        parts["norm"] = ("fc_norm",)
    form = _form(own, dialect, parts, whole, source, known)
    like = jax.eval_shape(
        ViT(form).init, jax.random.key(0), jnp.zeros((1, form.patch, form.patch, _channels(own, parts)))
    )
    shapes = {path: leaf.shape for path, leaf in named_arrays.by_name(like["params"]).items()}
    names = {path: _keys(path, dialect.block, parts, whole) for path in shapes}
    used = {key for keys in names.values() for key in keys}
    spare = [key for key in own if key not in used]
    problems = [f"missing {prefix}{key}" for key in sorted(used) if key not in own]
    problems += [f"surplus {prefix}{key}" for key in spare if not LEFT_OUT.match(key)]
    flat = {}
    for path, keys in names.items():
        theirs = [to_numpy(own[key]) for key in keys if key in own]
        if len(theirs) < len(keys):
            continue
        try:
            flat[path] = _ours(theirs, shapes[path])
        except (TypeError, ValueError):
            sizes = ", ".join(
                f"{key} {array.dtype}{list(array.shape)}" for key, array in zip(keys, theirs, strict=True)
            )
            problems.append(f"{prefix}{sizes}, in this layout expected float {list(shapes[path])}")
    if problems:
        raise CheckpointError(
            f"{source} does not fit a vision transformer in {dialect.name} keys: {'; '.join(problems)}"
        )
    outside = [key for key in state if not key.startswith(prefix)]
    has_classifier = any(key in own or key in state for key in ("head.weight", "classifier.weight"))
    left_out = (*outside, *(prefix + key for key in spare))
    return Transformer(form, named_arrays.nest(flat), dialect.name, has_classifier, left_out)


def _normal(state: Mapping[str, Any]) -> dict[str, Any]:
    state = {_CHUNK.sub(r"blocks.\1.", key): value for key, value in state.items()}
    return dinov3.renamed(state) if dinov3.is_dinov3(state) else state


def _keys(path: str, block: str, parts: Mapping[str, tuple[str, ...]], whole: Mapping[str, str]) -> tuple[str, ...]:
    """The file's keys of a path such as 'block1/attention/qkv/kernel'."""
    start, _, rest = path.partition("/")
    if start.startswith("block"):
        before, path = f"{block}{int(start.removeprefix('block')) - 1}.", rest
    else:
        before = ""
    if path in whole:
        return (before + whole[path],)
    part, _, leaf = path.rpartition("/")
    return tuple(f"{before}{name}.{'bias' if leaf == 'bias' else 'weight'}" for name in parts[part])


def _ours(theirs: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """One array of one or several; raises ValueError if it has another shape or is not an array of floats."""
    array = np.concatenate([np.asarray(part, np.float32) for part in theirs]) if len(theirs) > 1 else theirs[0]
    if array.ndim == 3 and len(array) == 1:  # tokens and positions have an axis for images
        array = array[0]
    elif array.ndim in (2, 4):
        array = to_ours(array)
    if array.shape != shape or array.dtype.kind not in "fV":
        raise ValueError("another shape")
    return np.ascontiguousarray(array, np.float32)


def _channels(own: Mapping[str, Any], parts: Mapping[str, tuple[str, ...]]) -> int:
    return np.shape(own[f"{parts['patch'][0]}.weight"])[1]


def _form(
    own: Mapping[str, Any], dialect: Dialect, parts: Mapping[str, tuple[str, ...]], whole: Mapping[str, str],
    source: str, known: Mapping[str, Any],
) -> Form:  # fmt: skip
    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in own:
            raise CheckpointError(
                f"{source}: no {key} among its keys in {dialect.name}'s names; it has {first_keys(own)}"
            )
        size = to_numpy(own[key]).shape
        if len(size) != axes:
            raise CheckpointError(f"{source}: {key} has shape {list(size)}, expected {axes} axes")
        return size

    width, _, patch, other = shape(f"{parts['patch'][0]}.weight", 4)
    if patch != other or not patch:
        raise CheckpointError(f"{source}: its patches have {patch} x {other} pixels; only square ones are known")
    blocks = {
        int(key.removeprefix(dialect.block).split(".")[0]) for key in own if re.match(rf"{dialect.block}\d+\.", key)
    }
    first = f"{dialect.block}0."
    outer, _ = shape(f"{first}{parts['mlp/fc1'][0]}.weight", 2)
    _, hidden = shape(f"{first}{parts['mlp/fc2'][0]}.weight", 2)
    registers = shape(whole["registers"], 3)[1] if whole["registers"] in own else 0
    rotary = registers > 0 and whole["positions"] not in own
    count = 1 if rotary else shape(whole["positions"], 3)[1]
    heads = known.get("heads") or (_ROTARY_HEADS.get(width, width // 64) if rotary else _HEADS.get(width))
    if not heads:
        raise CheckpointError(f"{source}: {width} features, of which the number of heads is not known; give heads=...")
    squares = [before for before in (1, 0, 1 + registers) if math.isqrt(max(0, count - before)) ** 2 == count - before]
    if not rotary and (not squares or count < 2):
        raise CheckpointError(f"{source}: {count} positions, which are not those of a square of patches")
    before = 0 if rotary else squares[0]
    form = Form(
        depth=len(blocks), width=width, heads=heads, hidden=hidden, patch=patch, grid=math.isqrt(count - before),
        class_position=before > 0, registers=registers, register_positions=before > 1,
        layer_scale=first + whole["scale1"] in own, gated=outer == 2 * hidden,
        pooling="average" if parts["norm"] == ("fc_norm",) else "class",
        epsilon=1e-5 if rotary else dialect.epsilon, rotary=_PERIODS if rotary else 0.0,
        positions="dino" if dialect is _TIMM and "mask_token" in own and not registers else "timm",
    )  # fmt: skip
    return dataclasses.replace(form, **{name: value for name, value in known.items() if value is not None})


def first_keys(state: Mapping[str, Any]) -> str:
    """The first five keys, for messages."""
    return ", ".join(sorted(map(str, state))[:5]) or "none"

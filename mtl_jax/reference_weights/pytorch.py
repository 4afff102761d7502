"""State dicts of PyTorch code, to and from this project's trees: MTL's resnet25, and RFS' and others' resnet12_640."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mtl_jax import scale_shift
from mtl_jax.errors import CheckpointError
from mtl_jax.reference_weights import state_dicts
from mtl_jax.reference_weights.trees import Names, ReferenceWeights, Shape, assemble, disassemble, groups_of, width_of

_PREFIX = "encoder."  # of MTL's meta-training files
_WIDEST = {"resnet25": "layer3.3.conv2.weight", "resnet12_640": "layer4.0.conv3.weight"}
_HEAD = {"fc1_w": "kernel", "fc1_b": "bias", "vars.0": "kernel", "vars.1": "bias"}
_LINEAR = {"weight": "kernel", "bias": "bias"}
_CLASSIFIER = re.compile(r"(.*\.)?(classifier|classifier\.linear|fc)\.weight")  # RFS', Meta-Baseline's, FEAT's
_OTHERS = "slf_attn."  # FEAT's attention between classes, which MTL has no place for
_LAYERS = {"norm1": "bn1", "norm2": "bn2", "norm3": "bn3", "shortcut": "downsample.0", "shortcut_norm": "downsample.1"}
_LEAVES = {
    ("params", "kernel"): "weight", ("params", "scale"): "weight", ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean", ("batch_stats", "var"): "running_var",
    ("ss", "scale"): "mtl_weight", ("ss", "shift"): "mtl_bias",
}  # fmt: skip


def backbone_of(state: Mapping[str, Any]) -> str | None:
    """Whose weights `state_dicts.unwrapped` gave: 'resnet25', 'resnet12_640', or None for any other network's."""
    prefix = state_dicts.prefix_of(state)
    if f"{prefix}conv1.weight" in state:
        return "resnet25"
    has_third = any(re.match(r"layer\d\.(0\.)?conv3\.", key.removeprefix(prefix)) for key in state)
    return "resnet12_640" if has_third else None


def from_state_dict(state: Mapping[str, Any], where: str) -> ReferenceWeights:
    """The trees of a state dict: of resnet25 a pre-training or a whole meta-training file; of resnet12_640 in the key
    names of RFS, FEAT, DeepEMD, MetaOptNet or Meta-Baseline, its classifier as the head.

    Args:
      state: what `state_dicts.unwrapped` gives, of NumPy arrays or tensors; `backbone_of` knows it.
      where: what an error message begins with.

    Raises:
      CheckpointError: lists every missing and surplus key, every wrong shape, and heads that contradict each other.
    """
    backbone, prefix = backbone_of(state), state_dicts.prefix_of(state)
    if backbone == "resnet25":
        is_meta = any(".mtl_" in key or key.startswith("base_learner.") for key in state)
        width = width_of(state, prefix + _WIDEST[backbone], 0, 640, where)
        return assemble(backbone, state, _names25(width, prefix, is_meta), where, to_ours)
    state = {key: value for key, value in state.items() if not key.startswith(_OTHERS)}
    numbered = any(re.match(r"layer\d\.0\.", key.removeprefix(prefix)) for key in state)
    widest = _WIDEST[backbone] if numbered else _unnumbered(_WIDEST[backbone])
    width = width_of(state, prefix + widest, 0, 640, where)
    head = next((key.removesuffix("weight") for key in state if _CLASSIFIER.fullmatch(key)), None)
    return assemble(backbone, state, _names12(width, prefix, head, numbered=numbered), where, to_ours)


def to_state_dict(weights: ReferenceWeights) -> dict[str, dict[str, np.ndarray]]:
    """A state dict of NumPy arrays in the reference's wrapper and key names, as its strict loading wants it.

    resnet25: {'params': ...}, with SS and head a meta-training file of 202 keys, without them a pre-training file.
    Where this project has no SS (the 'main' scale, say), the file gets the one that changes nothing.
    resnet12_640: {'model': ...} in RFS' names, SS applied to the weights, the head as the classifier.

    Raises:
      CheckpointError: the weights are another backbone's, or a resnet25's that have SS without a head or a head
        without SS.
    """
    if weights.backbone not in _WIDEST:
        raise CheckpointError(f"{', '.join(_WIDEST)} are what can be written as .pth, not {weights.backbone}")
    if weights.backbone == "resnet12_640":
        if weights.ss:
            weights = weights._replace(params=scale_shift.apply(weights.params, weights.ss), ss=None)
        names = _names12(weights.width, "", "classifier." if weights.head else None)
        return {"model": _with_counters(disassemble(weights, weights.backbone, names, to_theirs))}
    is_meta = weights.ss is not None
    names = _names25(weights.width, _PREFIX if is_meta else "", is_meta)
    return {"params": _with_counters(disassemble(weights, "resnet25", names, to_theirs))}


def _with_counters(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    norms = [key.removesuffix("running_var") for key in state if key.endswith("running_var")]
    return state | {f"{norm}{state_dicts.COUNTER}": np.zeros((), np.int64) for norm in norms}


def to_ours(array: np.ndarray) -> np.ndarray:
    """Kernels [out, in, kh, kw] -> [kh, kw, in, out], linear weights [out, in] -> [in, out], others as they are."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_theirs(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _names25(width: float, prefix: str, is_meta: bool) -> Names:
    groups = groups_of("resnet25", width, {"scale": "all"}, with_ss=is_meta)
    names = {f"{prefix}{_key(path, _module25)}": (path, shape) for path, shape in groups.items()}
    if is_meta:
        shapes = _head_shapes(groups["params/stage3/block4/conv2/kernel"][-1])
        names |= {f"base_learner.{key}": (f"head/{leaf}", shapes[leaf]) for key, leaf in _HEAD.items()}
    return names


def _names12(width: float, prefix: str, head: str | None, *, numbered: bool = True) -> Names:
    """head: the classifier's prefix, None without one. numbered: 'layer1.0.conv1', not 'layer1.conv1'."""
    groups = groups_of("resnet12_640", width, {}, with_ss=False)
    keys = {path: _key(path, _module12) for path in groups}
    names = {prefix + (keys[path] if numbered else _unnumbered(keys[path])): (path, groups[path]) for path in groups}
    if head is not None:
        shapes = _head_shapes(groups["params/block4/conv3/kernel"][-1])
        names |= {f"{head}{key}": (f"head/{leaf}", shapes[leaf]) for key, leaf in _LINEAR.items()}
    return names


def _unnumbered(key: str) -> str:
    return key.replace(".0.", ".", 1)


def _head_shapes(features: int) -> dict[str, Shape]:
    return {"kernel": (features, None), "bias": (None,)}


def _key(path: str, module_of: Callable[[list[str]], str]) -> str:
    group, *module, leaf = path.split("/")
    return f"{module_of(module)}.{_LEAVES[group, leaf]}"


def _module25(path: list[str]) -> str:
    if path[0] == "stem":
        return {"conv": "conv1", "norm": "bn1"}[path[1]]
    stage, block, layer = path
    return f"layer{stage.removeprefix('stage')}.{int(block.removeprefix('block')) - 1}.{_LAYERS.get(layer, layer)}"


def _module12(path: list[str]) -> str:
    block, layer = path
    return f"layer{block.removeprefix('block')}.0.{_LAYERS.get(layer, layer)}"

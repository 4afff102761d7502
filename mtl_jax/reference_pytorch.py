"""The PyTorch implementation's state dict of its resnet25, to and from this project's trees."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.reference_trees import Names, ReferenceWeights, assemble, disassemble, groups_of, width_of

BACKBONE = "resnet25"
_PREFIX = "encoder."
_WIDEST = "layer3.3.conv2.weight"
_HEAD = {"fc1_w": "kernel", "fc1_b": "bias", "vars.0": "kernel", "vars.1": "bias"}
_COUNTER = "num_batches_tracked"  # PyTorch's own, of no use here; files of PyTorch 0.4.0 have none
_LAYERS = {"norm1": "bn1", "norm2": "bn2", "shortcut": "downsample.0", "shortcut_norm": "downsample.1"}
_LEAVES = {
    ("params", "kernel"): "weight", ("params", "scale"): "weight", ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean", ("batch_stats", "var"): "running_var",
    ("ss", "scale"): "mtl_weight", ("ss", "shift"): "mtl_bias",
}  # fmt: skip


def is_state_dict(mapping: Mapping[str, Any]) -> bool:
    """Whether a mapping is a state dict of resnet25, bare or under 'params', with or without the meta-learned part."""
    state = mapping.get("params", mapping)
    return isinstance(state, Mapping) and any(str(key).removeprefix(_PREFIX) == "conv1.weight" for key in state)


def from_state_dict(mapping: Mapping[str, Any], where: str) -> ReferenceWeights:
    """The trees of a state dict: all of a meta-training file, or the encoder of a pre-training file.

    Args:
      mapping: {'params': state dict} or the state dict, of NumPy arrays or tensors.
      where: what an error message begins with.

    Raises:
      CheckpointError: lists every missing and surplus key, every wrong shape, and heads that contradict each other.
    """
    state = {key: value for key, value in mapping.get("params", mapping).items() if not key.endswith(_COUNTER)}
    is_meta = any(key.startswith(_PREFIX) for key in state)
    prefix = _PREFIX if is_meta else ""
    width = width_of(state, prefix + _WIDEST, 0, 640, where)
    names = _names(width, prefix, is_meta)
    return assemble(BACKBONE, state, names, where, to_ours)


def to_state_dict(weights: ReferenceWeights) -> dict[str, dict[str, np.ndarray]]:
    """{'params': state dict} of NumPy arrays in the reference's key names, as its strict loading wants it.

    With SS and head it is a meta-training file of 202 keys, without them a pre-training file. Where this project has no
    SS (the 'main' scale, say), the file gets the one that changes nothing.

    Raises:
      CheckpointError: the weights are not a resnet25's, or have SS without a head or a head without SS.
    """
    is_meta = weights.ss is not None
    names = _names(weights.width, _PREFIX if is_meta else "", is_meta)
    state = disassemble(weights, BACKBONE, names, to_theirs)
    for key in [key for key in state if key.endswith("running_var")]:
        state[key.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    return {"params": state}


def to_ours(array: np.ndarray) -> np.ndarray:
    """Kernels [out, in, kh, kw] -> [kh, kw, in, out], linear weights [out, in] -> [in, out], others as they are."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_theirs(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _names(width: float, prefix: str, is_meta: bool) -> Names:
    groups = groups_of(BACKBONE, width, {"scale": "all"}, with_ss=is_meta)
    names: Names = {}
    for path, shape in groups.items():
        group, *module, leaf = path.split("/")
        names[f"{prefix}{_module(module)}.{_LEAVES[group, leaf]}"] = path, shape
    if is_meta:
        features = groups["params/stage3/block4/conv2/kernel"][-1]
        shapes = {"kernel": (features, None), "bias": (None,)}
        names |= {f"base_learner.{key}": (f"head/{leaf}", shapes[leaf]) for key, leaf in _HEAD.items()}
    return names


def _module(path: list[str]) -> str:
    if path[0] == "stem":
        return {"conv": "conv1", "norm": "bn1"}[path[1]]
    stage, block, layer = path
    return f"layer{stage.removeprefix('stage')}.{int(block.removeprefix('block')) - 1}.{_LAYERS.get(layer, layer)}"

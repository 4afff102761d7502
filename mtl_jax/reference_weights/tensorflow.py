"""The TensorFlow implementation's dicts of its resnet12 and resnet18, from and to this project's trees.

There are three: `weights` (Θ, with w5 and b5 that nothing uses), `ss_weights` (Φ) and `fc_weights` (θ). In its meta
phases, the biases in `ss_weights` replace the pre-trained ones. Here the bias is b + Φ2, so Φ2 is their difference.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.errors import CheckpointError
from mtl_jax.reference_weights.trees import (
    Names,
    ReferenceWeights,
    assemble,
    disassemble,
    leaf_shapes,
    to_numpy,
    width_of,
)

KINDS = ("weights", "ss_weights", "fc_weights")
_UNUSED = ("w5", "b5")
_WIDEST = {"resnet12": "block4_conv3", "resnet18": "block4_2_conv2"}


def kind_of(mapping: Mapping[str, Any]) -> str | None:
    """Which of `KINDS` a dict of arrays is, by its keys and shapes; None if it is none of them."""
    kernels = [np.shape(to_numpy(value)) for key, value in mapping.items() if "_conv" in str(key)]
    if not kernels:
        return "fc_weights" if set(mapping) == set(_UNUSED) else None
    return "ss_weights" if all(shape[:2] == (1, 1) for shape in kernels) else "weights"


def from_dicts(dicts: Mapping[str, Mapping[str, Any]], source: str) -> ReferenceWeights:
    """The trees of `weights` and, for a meta-trained model, of `ss_weights` and `fc_weights`.

    Args:
      dicts: by their names in `KINDS`; 'weights' is required.
      source: how error messages begin.

    Raises:
      CheckpointError: `weights` is missing; or lists every missing and surplus key and every wrong shape.
    """
    if "weights" not in dicts:
        raise CheckpointError(f"{source}: {' and '.join(dicts)} without the pre-trained weights; give their file too")
    arrays = {f"weights.{key}": value for key, value in dicts["weights"].items() if key not in _UNUSED}
    backbone = "resnet18" if "weights.block0_1_conv1" in arrays else "resnet12"
    width = width_of(arrays, f"weights.{_WIDEST[backbone]}", 3, 512, source)
    for kind in KINDS[1:]:
        arrays |= {f"{kind}.{key}": value for key, value in dicts.get(kind, {}).items()}
    names = _names(backbone, width, with_ss="ss_weights" in dicts, with_head="fc_weights" in dicts)
    weights = assemble(backbone, arrays, names, source, lambda array: array)
    return weights._replace(ss=_map_shifts(weights.params, weights.ss, np.subtract)) if weights.ss else weights


def to_dicts(weights: ReferenceWeights) -> dict[str, dict[str, np.ndarray]]:
    """The dicts of `KINDS` in the reference's key names, without those for which the weights have nothing.

    Raises:
      CheckpointError: not a network of the reference, or with something that its files cannot hold (batch norm's
        running averages, scales and offsets).
    """
    if weights.backbone not in _WIDEST:
        raise CheckpointError(f"the TensorFlow format holds resnet12 and resnet18, not {weights.backbone}")
    ss = weights.ss and _map_shifts(weights.params, weights.ss, np.add)
    names = _names(weights.backbone, weights.width, with_ss=ss is not None, with_head=weights.head is not None)
    flat = disassemble(weights._replace(ss=ss), names, lambda array: array)
    dicts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in flat.items():
        kind, key = name.split(".")
        dicts.setdefault(kind, {})[key] = array
    return dicts


def _map_shifts(params: Any, ss: Any, combine: Any) -> Any:
    """SS with each shift replaced by combine(shift, bias of its convolution)."""
    if "scale" not in ss:
        return {name: _map_shifts(params[name], inner, combine) for name, inner in ss.items()}
    return {**ss, "shift": combine(ss["shift"], params["bias"])}


def _names(backbone: str, width: float, *, with_ss: bool, with_head: bool) -> Names:
    names: Names = {}
    for path, shape in leaf_shapes(backbone, width, {"scale": "main"}, with_ss=with_ss).items():
        group, *module, leaf = path.split("/")
        if group == "params":
            names[f"weights.{_key(module, leaf == 'bias')}"] = path, shape
        elif group == "ss":
            names[f"ss_weights.{_key(module, leaf == 'shift')}"] = path, shape
    if with_head:
        features = names[f"weights.{_WIDEST[backbone]}"][1][-1]
        names |= {"fc_weights.w5": ("head/kernel", (features, None)), "fc_weights.b5": ("head/bias", (None,))}
    return names


def _key(module: list[str], is_bias: bool) -> str:
    """block1/conv2 -> block1_conv2 or block1_bias2; stage1/block2/conv1 -> block1_2_conv1; stem -> block0_1_conv1."""
    if module == ["stem", "conv"]:
        module = ["stage0", "block1", "conv1"]
    *blocks, layer = module
    numbers = [part.removeprefix("stage").removeprefix("block") for part in blocks]
    layer = "conv_res" if layer == "shortcut" else layer
    return f"block{'_'.join(numbers)}_{layer.replace('conv', 'bias') if is_bias else layer}"

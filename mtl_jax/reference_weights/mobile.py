"""State dicts of EfficientNet-Lite0 and MobileNetV2, with the key names of the libraries that publish them.

Of EfficientNet-Lite0 these are the names of efficientnet_lite_pytorch, whose weights come from Google's checkpoint.
timm publishes two trainings of it under the same names, with different paddings, so a file cannot say which it is:
those are not read. Of MobileNetV2 they are torchvision's and timm's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mtl_jax.errors import CheckpointError
from mtl_jax.reference_weights.pytorch import to_ours
from mtl_jax.reference_weights.trees import Names, ReferenceWeights, assemble, leaf_shapes
from mtl_jax.vision_mobile import EfficientNetLite0, MobileNetV2

FEATURES = 1280
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_STAGES = {"efficientnet_lite0": EfficientNetLite0.stages, "mobilenet_v2": MobileNetV2.stages}
MOBILE = tuple(_STAGES)
# The layers of a block in their order, as the libraries number them; a block that does not widen lacks the first two.
_LAYERS = ("expand", "expand_norm", "depthwise", "depthwise_norm", "project", "project_norm")
_LITE0 = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
_TORCHVISION = ("conv.0.0", "conv.0.1", "conv.1.0", "conv.1.1", "conv.2", "conv.3")
_TORCHVISION_FIRST = ("conv.0.0", "conv.0.1", "conv.1", "conv.2")
_TIMM = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
_TIMM_FIRST = ("conv_dw", "bn1", "conv_pw", "bn2")


def _lite0(stage: int, block: int, number: int, layer: str) -> str:
    return f"_blocks.{number}.{dict(zip(_LAYERS, _LITE0, strict=True))[layer]}"


def _torchvision(stage: int, block: int, number: int, layer: str) -> str:
    names = _TORCHVISION if stage > 1 else _TORCHVISION_FIRST
    return f"features.{number + 1}.{dict(zip(_LAYERS[-len(names) :], names, strict=True))[layer]}"


def _timm(stage: int, block: int, number: int, layer: str) -> str:
    names = _TIMM if stage > 1 else _TIMM_FIRST
    return f"blocks.{stage - 1}.{block - 1}.{dict(zip(_LAYERS[-len(names) :], names, strict=True))[layer]}"


# By a key that no other network has: the network; the stem, its norm, the last convolution, its norm; the classifier;
# and the key of a block's layer from its stage, its number in it, its number in the network from 0, and its name here.
_DIALECTS: dict[str, tuple[str, tuple[str, ...], str, Callable[[int, int, int, str], str]]] = {
    "_blocks.0._depthwise_conv.weight": (
        "efficientnet_lite0", ("_conv_stem", "_bn0", "_conv_head", "_bn1"), "_fc", _lite0
    ),
    "features.1.conv.0.0.weight": (
        "mobilenet_v2", ("features.0.0", "features.0.1", "features.18.0", "features.18.1"), "classifier.1", _torchvision
    ),
    "blocks.6.0.conv_pwl.weight": ("mobilenet_v2", ("conv_stem", "bn1", "conv_head", "bn2"), "classifier", _timm),
}  # fmt: skip


def dialect_of(state: Mapping[str, Any]) -> str | None:
    """The key by which an unwrapped state dict is recognised; None: it is of another network."""
    return next((key for key in _DIALECTS if key in state), None)


def from_state_dict(state: Mapping[str, Any], source: str) -> ReferenceWeights:
    """The trees of a state dict that `dialect_of` knows; its classifier, if it has one, becomes the head.

    Args:
      state: of `pytorch.unwrapped`; NumPy arrays or tensors.
      source: how error messages begin.

    Raises:
      CheckpointError: lists every missing and surplus key and every wrong shape.
    """
    dialect = dialect_of(state)
    if dialect is None:
        raise CheckpointError(f"{source}: neither EfficientNet-Lite0 nor MobileNetV2; give a file of one of these")
    backbone, ends, classifier, key_of = _DIALECTS[dialect]
    shapes = leaf_shapes(backbone, 1.0, {}, with_ss=False)
    names: Names = {_key(path, backbone, ends, key_of): (path, shape) for path, shape in shapes.items()}
    if any(key.startswith(f"{classifier}.") for key in state):
        names[f"{classifier}.weight"] = "head/kernel", (FEATURES, None)
        names[f"{classifier}.bias"] = "head/bias", (None,)
    return assemble(backbone, state, names, source, to_ours)


def _key(path: str, backbone: str, ends: tuple[str, ...], key_of: Callable[[int, int, int, str], str]) -> str:
    """The key of a leaf here, such as 'params/stage2/block1/expand/kernel'."""
    _, *module, leaf = path.split("/")
    if len(module) == 2:  # the stem and the last convolution, 'conv' and 'norm' each
        layer = ends[2 * (module[0] != "stem") + (module[1] == "norm")]
    else:
        stage, block = (int(name.lstrip("stageblock")) for name in module[:2])
        before = sum(earlier.blocks for earlier in _STAGES[backbone][: stage - 1])
        layer = key_of(stage, block, before + block - 1, module[2])
    return f"{layer}.{_LEAVES[leaf]}"

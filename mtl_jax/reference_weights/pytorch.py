"""State dicts of PyTorch code, from and to this project's trees.

MTL's resnet25, resnet12_640 of RFS and others, torchvision's and timm's ResNets.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mtl_jax import scale_shift
from mtl_jax.errors import CheckpointError
from mtl_jax.reference_weights.pth import pickled
from mtl_jax.reference_weights.torch_pickle import Foreign
from mtl_jax.reference_weights.trees import (
    WIDEST,
    Names,
    ReferenceWeights,
    Shape,
    assemble,
    disassemble,
    leaf_shapes,
    width_of,
)

# Under which keys programs keep a state dict, best first: averaged weights before the last, a teacher before a student.
# MTL, FEAT, DeepEMD: params; RFS: model; MetaOptNet: embedding; Meta-Baseline: model_sd; DINO: teacher.
WRAPPERS = (
    "state_dict_ema", "model_ema", "ema", "params", "state_dict", "model_state_dict", "model", "model_sd", "embedding",
    "teacher", "student", "network", "net", "backbone", "encoder", "weights", "module",
)  # fmt: skip
_BESIDE = re.compile(r"opt|sched|scaler|amp|loss|args|config|hyper|rng", re.IGNORECASE)  # no network is kept there
_MAX_DEPTH = 4  # of wrappers in wrappers; a pickle can contain itself
_SHELLS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # in names, of PyTorch itself
_BETTER = ("teacher", "ema", "encoder_q")  # in the prefix, where a file has two networks
_COUNTER = "num_batches_tracked"  # of batch norm; unused here, and missing in files of PyTorch 0.4.0
# What networks have besides their features: classifiers, heads of self-supervision, decoders, queues.
LEFT_OUT = re.compile(
    r"(fc|head|heads|head_dist|classifier|pre_logits|pooler|projector|projection_head|predictor|prototypes|mlp_head"
    r"|mask_token|embeddings\.mask_token|decoder\w*|queue\w*|n_averaged|last_layer|dino_head|ibot_head)(\.|$)"
)
_LAYER = re.compile(r"(.*?)layer\d+\.(\d+\.)?(conv|bn|downsample)")
_META_PREFIX = "encoder."  # of MTL's meta-training files
_WIDEST = {"resnet25": "layer3.3.conv2.weight", "resnet12_640": "layer4.0.conv3.weight"}
_HEAD = {"fc1_w": "kernel", "fc1_b": "bias", "vars.0": "kernel", "vars.1": "bias"}
_LINEAR = {"weight": "kernel", "bias": "bias"}
_CLASSIFIER = re.compile(r"(.*\.)?(classifier|classifier\.linear|fc)\.weight")  # RFS', Meta-Baseline's, FEAT's
_ATTENTION = "slf_attn."  # FEAT's attention between classes, which MTL does not have
_LAYERS = {"norm1": "bn1", "norm2": "bn2", "norm3": "bn3", "shortcut": "downsample.0", "shortcut_norm": "downsample.1"}
_LEAVES = {
    ("params", "kernel"): "weight", ("params", "scale"): "weight", ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean", ("batch_stats", "var"): "running_var",
    ("ss", "scale"): "mtl_weight", ("ss", "shift"): "mtl_bias",
}  # fmt: skip


def unwrapped(mapping: Mapping[str, Any], source: str = "the mapping") -> dict[str, Any]:
    """The arrays of a network by name, without wrappers around them, DataParallel's 'module.' and counters.

    Raises:
      CheckpointError: a whole network was pickled in place of its weights.
    """
    for _ in range(_MAX_DEPTH):
        if name := _wrapper(mapping):
            mapping = mapping[name]
        elif network := _pickled_network(mapping):
            raise CheckpointError(f"{source}: {pickled(network)}")
    keys = {".".join(part for part in str(key).split(".") if part not in _SHELLS): key for key in mapping}
    return {name: mapping[key] for name, key in keys.items() if not name.endswith(_COUNTER)}


def _pickled_network(mapping: Mapping[str, Any]) -> Foreign | None:
    """What takes the place of a network's arrays in a mapping that has none."""
    if any(hasattr(value, "shape") for value in mapping.values()):
        return None
    foreign = {name: value for name, value in mapping.items() if isinstance(value, Foreign)}
    return next((value for name, value in foreign.items() if name in WRAPPERS or not _BESIDE.search(str(name))), None)


def _wrapper(mapping: Mapping[str, Any]) -> str | None:
    """The key under which a mapping has a network's arrays; None if it has them itself."""
    held = [name for name, value in mapping.items() if isinstance(value, Mapping) and value]
    if known := [name for name in WRAPPERS if name in held]:
        return known[0]
    if any(hasattr(value, "shape") for value in mapping.values()):
        return None
    sizes = {name: _count(mapping[name]) for name in held if not _BESIDE.search(str(name))}
    return max(sizes, key=sizes.get) if any(sizes.values()) else None


def _count(mapping: Mapping[str, Any]) -> int:
    """How many arrays a mapping has, in the mappings below it as well, each of which counts once."""
    rest, seen, count = [mapping], set(), 0
    while rest:
        one = rest.pop()
        if id(one) not in seen:
            seen.add(id(one))
            count += sum(hasattr(value, "shape") for value in one.values())
            rest += [value for value in one.values() if isinstance(value, Mapping)]
    return count


def prefix_of(state: Mapping[str, Any]) -> str:
    """What stands before 'layer1.' in the names of a ResNet's arrays, such as 'encoder.'; '' if nothing does."""
    return prefix_at(state, _LAYER)


def prefix_at(state: Mapping[str, Any], anchor: re.Pattern) -> str:
    """What stands before the names that match `anchor`, by its first group; the best where several do."""
    prefixes = Counter(match[1] for match in map(anchor.match, state) if match)
    better = [prefix for word in _BETTER for prefix in prefixes if word in prefix]
    return better[0] if better else prefixes.most_common(1)[0][0] if prefixes else ""


def backbone_of(state: Mapping[str, Any]) -> str | None:
    """The ResNet of an unwrapped state dict: resnet25, resnet12_640, imagenet_resnet18 and kin; None for any other."""
    prefix = prefix_of(state)
    if f"{prefix}conv1.weight" in state and any(key.startswith(f"{prefix}layer4.") for key in state):
        deep, wide = f"{prefix}layer1.2.conv1.weight" in state, f"{prefix}layer1.0.conv3.weight" in state
        return f"imagenet_resnet{50 if wide else 34 if deep else 18}"
    if f"{prefix}conv1.weight" in state:
        return "resnet25"
    has_third = any(re.match(r"layer\d\.(0\.)?conv3\.", key.removeprefix(prefix)) for key in state)
    return "resnet12_640" if has_third else None


def from_state_dict(state: Mapping[str, Any], source: str) -> ReferenceWeights:
    """The trees of a state dict that `backbone_of` knows.

    Of resnet25, it is a pre-training file or a whole meta-training file. Of resnet12_640, it has the key names of RFS,
    FEAT, DeepEMD, MetaOptNet or Meta-Baseline, and its classifier becomes the head.

    Args:
      state: of `unwrapped`; NumPy arrays or tensors.
      source: how error messages begin.

    Raises:
      CheckpointError: lists every missing and surplus key, every wrong shape, and heads that contradict each other.
    """
    backbone, prefix = backbone_of(state), prefix_of(state)
    if backbone.startswith("imagenet"):
        width = width_of(state, f"{prefix}conv1.weight", 0, 64, source)
        own = _own(state, prefix)
        head = f"{prefix}fc." if f"{prefix}fc.weight" in own else None
        return assemble(backbone, own, _names_imagenet(backbone, width, prefix, head), source, to_ours)
    if backbone == "resnet25":
        is_meta = any(".mtl_" in key or key.startswith("base_learner.") for key in state)
        width = width_of(state, prefix + _WIDEST[backbone], 0, 640, source)
        return assemble(backbone, state, _names25(width, prefix, is_meta), source, to_ours)
    state = {key: value for key, value in state.items() if not key.startswith(_ATTENTION)}
    numbered = any(re.match(r"layer\d\.0\.", key.removeprefix(prefix)) for key in state)
    widest = _WIDEST[backbone] if numbered else _unnumbered(_WIDEST[backbone])
    width = width_of(state, prefix + widest, 0, 640, source)
    head = next((key.removesuffix("weight") for key in state if _CLASSIFIER.fullmatch(key)), None)
    return assemble(backbone, state, _names12(width, prefix, head, numbered=numbered), source, to_ours)


def left_out(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of an unwrapped state dict that do not belong to the ResNet that `from_state_dict` makes of it."""
    own = _own(state, prefix_of(state))
    return tuple(key for key in state if key not in own)


def _own(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays of the network itself, with a linear classifier `fc`, of a file that may have other networks."""
    own = {key: value for key, value in state.items() if key.startswith(prefix)}
    left = {key for key in own if LEFT_OUT.match(key.removeprefix(prefix))}
    linear = {f"{prefix}fc.{leaf}" for leaf in _LINEAR} if f"{prefix}fc.bias" in own else set()
    return {key: value for key, value in own.items() if key not in left or key in linear}


def to_state_dict(weights: ReferenceWeights) -> dict[str, dict[str, np.ndarray]]:
    """A state dict of NumPy arrays in the reference's wrapper and key names, complete enough for its strict loading.

    resnet25: {'params': ...}. With SS and head it is a meta-training file of 202 keys, without them a pre-training
    file. Convolutions without SS here (under the 'main' scale, say) get one that changes nothing.
    resnet12_640: {'model': ...} in RFS' names, with SS applied to the weights and the head as the classifier.

    Raises:
      CheckpointError: the weights are of another backbone, or of a resnet25 with only one of SS and head.
    """
    if weights.backbone not in _WIDEST:
        raise CheckpointError(f"only {' and '.join(_WIDEST)} can be written as .pth, not {weights.backbone}")
    if weights.backbone == "resnet12_640":
        if weights.ss:
            weights = weights._replace(params=scale_shift.apply(weights.params, weights.ss), ss=None)
        names = _names12(weights.width, "", "classifier." if weights.head else None)
        return {"model": _with_counters(disassemble(weights, names, to_theirs))}
    is_meta = weights.ss is not None
    names = _names25(weights.width, _META_PREFIX if is_meta else "", is_meta)
    return {"params": _with_counters(disassemble(weights, names, to_theirs))}


def _with_counters(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    norms = [key.removesuffix("running_var") for key in state if key.endswith("running_var")]
    return state | {f"{norm}{_COUNTER}": np.zeros((), np.int64) for norm in norms}


def to_ours(array: np.ndarray) -> np.ndarray:
    """Kernels [out, in, kh, kw] -> [kh, kw, in, out]; linear weights [out, in] -> [in, out]; vectors as they are."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_theirs(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _names25(width: float, prefix: str, is_meta: bool) -> Names:
    shapes = leaf_shapes("resnet25", width, {"scale": "all"}, with_ss=is_meta)
    names = {f"{prefix}{_key(path, _module25)}": (path, shape) for path, shape in shapes.items()}
    if is_meta:
        head = _head_shapes(shapes["params/stage3/block4/conv2/kernel"][-1])
        around = prefix.removesuffix(_META_PREFIX)  # the base learner lies beside the encoder
        names |= {f"{around}base_learner.{key}": (f"head/{leaf}", head[leaf]) for key, leaf in _HEAD.items()}
    return names


def _names12(width: float, prefix: str, head: str | None, *, numbered: bool = True) -> Names:
    """head: the classifier's prefix; None: no classifier. numbered: 'layer1.0.conv1' instead of 'layer1.conv1'."""
    shapes = leaf_shapes("resnet12_640", width, {}, with_ss=False)
    keys = {path: _key(path, _module12) for path in shapes}
    names = {prefix + (keys[path] if numbered else _unnumbered(keys[path])): (path, shapes[path]) for path in shapes}
    if head is not None:
        linear = _head_shapes(shapes["params/block4/conv3/kernel"][-1])
        names |= {f"{head}{key}": (f"head/{leaf}", linear[leaf]) for key, leaf in _LINEAR.items()}
    return names


def _names_imagenet(backbone: str, width: float, prefix: str, head: str | None) -> Names:
    shapes = leaf_shapes(backbone, width, {}, with_ss=False)
    names = {f"{prefix}{_key(path, _module25)}": (path, shape) for path, shape in shapes.items()}
    if head is not None:
        features = shapes[f"params/{WIDEST[backbone][0]}"][-1]
        names |= {f"{head}{key}": (f"head/{leaf}", _head_shapes(features)[leaf]) for key, leaf in _LINEAR.items()}
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

"""ReferenceWeights, and the step between a reference's flat arrays and this project's trees, checked key by key."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtl_jax import scale_shift
from mtl_jax.backbones import create_backbone
from mtl_jax.errors import CheckpointError
from mtl_jax.types import Params
from mtl_jax.workdir import named_arrays

GROUPS = ("params", "batch_stats", "ss", "head")
Shape = tuple[int | None, ...]  # None: the number of classes, which the file decides
Names = dict[str, tuple[str, Shape]]  # a reference's key -> the path here, such as 'params/block1/...', and its shape

WIDEST = {
    "resnet25": ("stage3/block4/conv2/kernel", 640),
    "resnet12": ("block4/conv3/kernel", 512),
    "resnet12_640": ("block4/conv3/kernel", 640),
    "resnet18": ("stage4/block2/conv2/kernel", 512),
    "imagenet_resnet18": ("stage4/block2/conv2/kernel", 512),
    "imagenet_resnet34": ("stage4/block3/conv2/kernel", 512),
    "imagenet_resnet50": ("stage4/block3/conv3/kernel", 2048),
    "efficientnet_lite0": ("stage7/conv/kernel", 1280),
    "mobilenet_v2": ("stage7/conv/kernel", 1280),
}


class ReferenceWeights(NamedTuple):
    """The content of a reference's weight file as this project's trees of NumPy arrays; None for what it does not have.

    backbone: 'resnet25', 'resnet12_640', 'efficientnet_lite0', 'mobilenet_v2', 'imagenet_resnet50' and kin (PyTorch),
      'resnet12' or 'resnet18' (TensorFlow).
    params: Θ.
    batch_stats: the running averages of batch norm.
    ss: Φ, for `apply_scale_shift(params, ss)`.
    head: θ, {'kernel': [F, N], 'bias': [N]}.
    """

    backbone: str
    params: Params
    batch_stats: Params | None
    ss: Params | None
    head: Params | None

    @property
    def width(self) -> float:
        """The factor on the channel counts: 1.0 for the reference's own size."""
        path, channels = WIDEST[self.backbone]
        return named_arrays.flatten(self.params)[path].shape[-1] / channels

    def module(self, **options: Any) -> nn.Module:
        """The backbone for these weights, as its reference runs it; `options` are those of `create_backbone`."""
        return reference_module(self.backbone, self.width, **options)


def reference_module(name: str, width: float, **options: Any) -> nn.Module:
    """A reference's backbone. TensorFlow's batch norm has epsilon 1e-3 and neither a scale nor a trained offset."""
    if name in ("resnet12", "resnet18"):
        options = {"norm_scale": False, "norm_bias": False, "norm_epsilon": 1e-3, **options}
    return create_backbone(name, width=width, **options)


def leaf_shapes(name: str, width: float, ss_options: Mapping[str, str], *, with_ss: bool) -> dict[str, Shape]:
    """The shape of every leaf of a reference's backbone by its path: 'params/...', 'batch_stats/...', 'ss/...'."""
    module = reference_module(name, width)

    def make(key: jax.Array) -> Any:
        variables = module.init(key, jnp.zeros((1, 32, 32, 3)))
        ss = {"ss": scale_shift.init(variables["params"], **ss_options)} if with_ss else {}
        return {**variables, **ss}

    return {path: leaf.shape for path, leaf in named_arrays.by_name(jax.eval_shape(make, jax.random.key(0))).items()}


def width_of(arrays: Mapping[str, Any], key: str, axis: int, channels: int, source: str) -> float:
    """The factor on the channel counts, from the widest layer.

    Args:
      arrays: by the reference's keys.
      key: of the widest layer's kernel.
      axis: of its output channels.
      channels: their number at the reference's own size.
      source: how error messages begin.

    Raises:
      CheckpointError: no such key, or not a kernel.
    """
    if key not in arrays:
        raise CheckpointError(f"{source}: no {key}, so not the reference's network; the file has {_first_keys(arrays)}")
    shape = np.shape(to_numpy(arrays[key]))
    if len(shape) != 4:
        raise CheckpointError(f"{source}: {key} has shape {shape}, expected a convolution's four axes")
    return shape[axis] / channels


def assemble(
    backbone: str, arrays: Mapping[str, Any], names: Names, source: str, to_ours: Callable[[np.ndarray], np.ndarray]
) -> ReferenceWeights:
    """Makes trees of a reference's flat arrays.

    Args:
      backbone: its name.
      arrays: by the reference's keys.
      names: every key that must be there.
      source: how error messages begin.
      to_ours: changes the axes of an array from the reference's order to this project's.

    Raises:
      CheckpointError: lists every missing and surplus key, every wrong shape, every contradiction.
    """
    problems = [f"missing {key}" for key in names if key not in arrays]
    problems += [f"surplus {key}" for key in arrays if key not in names]
    flat: dict[str, np.ndarray] = {}
    for key, (path, expected) in names.items():  # in this order, so that a contradiction always names the same key
        if key not in arrays:
            continue
        theirs = to_numpy(arrays[key])
        ours = to_ours(theirs)
        if not _fits(ours.shape, expected) or ours.dtype.kind != "f":
            problems.append(f"{key} is {theirs.dtype}{list(theirs.shape)}, in this layout {list(ours.shape)}, "
                            f"expected float {_shape_text(expected)}")  # fmt: skip
        elif path in flat and not np.array_equal(flat[path], ours):
            problems.append(f"{key} contradicts another key for the same array")
        flat[path] = np.ascontiguousarray(ours)
    trees = named_arrays.nest(flat)
    if not problems and "head" in trees and trees["head"]["kernel"].shape[1:] != trees["head"]["bias"].shape:
        problems = ["the head's weights and biases are for different numbers of classes"]
    if problems:
        raise CheckpointError(f"{source} does not fit {backbone}: {'; '.join(sorted(problems))}")
    return ReferenceWeights(backbone, *(trees.get(group) for group in GROUPS))


def disassemble(
    weights: ReferenceWeights, names: Names, to_theirs: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """A reference's flat arrays of this project's trees, under all of `names`; the inverse of `assemble`.

    Raises:
      CheckpointError: lists what is missing, surplus, or of another shape.
    """
    trees = {group: getattr(weights, group) for group in GROUPS}
    flat = named_arrays.flatten({group: tree for group, tree in trees.items() if tree is not None})
    state, problems = {}, [f"surplus {path}" for path in flat.keys() - {path for path, _ in names.values()}]
    for key, (path, expected) in names.items():
        array = flat.get(path, _neutral(path, expected))
        if array is None:
            problems.append(f"missing {path}")
        elif not _fits(array.shape, expected):
            problems.append(f"{path} has shape {list(array.shape)}, expected {_shape_text(expected)}")
        else:
            state[key] = np.ascontiguousarray(to_theirs(array))
    if problems:
        listed = "; ".join(sorted(set(problems)))
        raise CheckpointError(f"these weights do not fit the reference's {weights.backbone}: {listed}")
    return state


def _neutral(path: str, shape: Shape) -> np.ndarray | None:
    """SS that changes nothing, for convolutions that have it in the reference but not here."""
    if not path.startswith("ss/"):
        return None
    return np.full(shape, float(path.endswith("/scale")), np.float32)


def to_numpy(value: Any) -> np.ndarray:
    """An array or a PyTorch tensor as a NumPy array of its own types; PyTorch is not imported."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    value = value.float() if str(getattr(value, "dtype", "")) == "torch.bfloat16" else value
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name.startswith(("bfloat16", "float8")) else array


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(b in (None, a) for a, b in zip(shape, expected, strict=True))


def _shape_text(shape: Shape) -> str:
    return f"[{', '.join('way' if n is None else str(n) for n in shape)}]"


def _first_keys(arrays: Mapping[str, Any]) -> str:
    listed = ", ".join(sorted(map(str, arrays))[:5])
    return f"{len(arrays)} keys: {listed}, ..." if len(arrays) > 5 else listed or "no keys"

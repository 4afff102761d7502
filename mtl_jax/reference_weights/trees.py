"""Between a reference's flat weights and this project's trees: a table of names, checked key by key."""

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

Shape = tuple[int | None, ...]  # None stands for the way, which the file decides
Names = dict[str, tuple[str, Shape]]  # the reference's key -> this project's path 'group/block1/...', its shape there

_WIDEST = {
    "resnet25": ("stage3/block4/conv2/kernel", 640),
    "resnet12": ("block4/conv3/kernel", 512),
    "resnet12_640": ("block4/conv3/kernel", 640),
    "resnet18": ("stage4/block2/conv2/kernel", 512),
}


class ReferenceWeights(NamedTuple):
    """What a weight file of a reference holds, as this project's trees of NumPy arrays; None for what it has not.

    backbone: 'resnet25', 'resnet12_640' (PyTorch), 'resnet12' or 'resnet18' (TensorFlow). params: Θ. batch_stats:
    BN's averages. ss: Φ, for `apply_scale_shift(params, ss)`. head: θ, {'kernel': [F, N], 'bias': [N]}.
    """

    backbone: str
    params: Params
    batch_stats: Params | None
    ss: Params | None
    head: Params | None

    @property
    def width(self) -> float:
        """The factor on the channel counts, 1.0 for the references' own sizes."""
        path, channels = _WIDEST[self.backbone]
        return named_arrays.flatten(self.params)[path].shape[-1] / channels

    def module(self, **options: Any) -> nn.Module:
        """The backbone that the weights fit, as its reference runs it; `options` as `create_backbone` takes them."""
        return reference_module(self.backbone, self.width, **options)


def reference_module(name: str, width: float, **options: Any) -> nn.Module:
    """A reference's backbone: TensorFlow's batch norm has eps 1e-3 and neither a scale nor a trained offset."""
    if name in ("resnet12", "resnet18"):
        options = {"norm_scale": False, "norm_bias": False, "norm_epsilon": 1e-3, **options}
    return create_backbone(name, width=width, **options)


def groups_of(name: str, width: float, ss_options: Mapping[str, str], *, with_ss: bool) -> dict[str, Shape]:
    """The shape of every leaf of a reference's backbone by its path: 'params/...', 'batch_stats/...', 'ss/...'."""
    module = reference_module(name, width)

    def make(key: jax.Array) -> Any:
        variables = module.init(key, jnp.zeros((1, 32, 32, 3)))
        ss = {"ss": scale_shift.init(variables["params"], **ss_options)} if with_ss else {}
        return {**variables, **ss}

    return {path: leaf.shape for path, leaf in named_arrays.by_name(jax.eval_shape(make, jax.random.key(0))).items()}


def width_of(arrays: Mapping[str, Any], key: str, axis: int, channels: int, where: str) -> float:
    """The factor on the channel counts, from the widest layer. Raises CheckpointError without it."""
    if key not in arrays:
        raise CheckpointError(f"{where}: no {key}, so not the reference's network; the file has {_some(arrays)}")
    shape = np.shape(to_numpy(arrays[key]))
    if len(shape) != 4:
        raise CheckpointError(f"{where}: {key} has shape {shape}, expected a convolution's four axes")
    return shape[axis] / channels


def assemble(
    backbone: str, arrays: Mapping[str, Any], names: Names, where: str, to_ours: Callable[[np.ndarray], np.ndarray]
) -> ReferenceWeights:
    """The trees of a reference's flat arrays.

    Args:
      backbone: its name.
      arrays: by the reference's keys.
      names: every key that must be there.
      where: what an error message begins with.
      to_ours: a reference's layout of one array -> this project's.

    Raises:
      CheckpointError: lists every missing and surplus key, every wrong shape, every contradiction.
    """
    problems = [f"missing {key}" for key in names if key not in arrays]
    problems += [f"surplus {key}" for key in arrays if key not in names]
    flat: dict[str, np.ndarray] = {}
    for key in filter(arrays.__contains__, names):  # in their order, so that the same key is named every time
        path, wanted = names[key]
        array = to_ours(to_numpy(arrays[key]))
        if not _fits(array.shape, wanted) or array.dtype.kind != "f":
            theirs = to_numpy(arrays[key])
            problems.append(f"{key} is {theirs.dtype}{list(theirs.shape)}, in this layout {list(array.shape)}, "
                            f"expected float {_text(wanted)}")  # fmt: skip
        elif path in flat and not np.array_equal(flat[path], array):
            problems.append(f"{key} contradicts another key for the same array")
        flat[path] = np.ascontiguousarray(array)
    trees = named_arrays.nest(flat)
    if not problems and "head" in trees and trees["head"]["kernel"].shape[1:] != trees["head"]["bias"].shape:
        problems = ["the head's weights and biases are for different numbers of classes"]
    if problems:
        raise CheckpointError(f"{where} does not fit {backbone}: {'; '.join(sorted(problems))}")
    return ReferenceWeights(backbone, *(trees.get(name) for name in ("params", "batch_stats", "ss", "head")))


def disassemble(
    weights: ReferenceWeights, backbone: str, names: Names, to_theirs: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """A reference's flat arrays of this project's trees, under all of `names`; the inverse of `assemble`.

    Raises:
      CheckpointError: another backbone; lists what is missing, surplus, or of another shape.
    """
    if weights.backbone != backbone:
        raise CheckpointError(f"the reference's format holds a {backbone}, these weights are a {weights.backbone}'s")
    groups = {name: tree for name, tree in weights._asdict().items() if name != "backbone" and tree is not None}
    flat = named_arrays.flatten(groups)
    state, problems = {}, [f"surplus {path}" for path in flat.keys() - {path for path, _ in names.values()}]
    for key, (path, wanted) in names.items():
        array = flat.get(path, _neutral(path, wanted))
        if array is None:
            problems.append(f"missing {path}")
        elif not _fits(array.shape, wanted):
            problems.append(f"{path} has shape {list(array.shape)}, expected {_text(wanted)}")
        else:
            state[key] = np.ascontiguousarray(to_theirs(array))
    if problems:
        listed = "; ".join(sorted(set(problems)))
        raise CheckpointError(f"these weights do not fit the reference's {backbone}: {listed}")
    return state


def _neutral(path: str, shape: Shape) -> np.ndarray | None:
    """SS that changes nothing, for convolutions that have none here but must have one there."""
    if not path.startswith("ss/"):
        return None
    return np.full(shape, float(path.endswith("/scale")), np.float32)


def to_numpy(value: Any) -> np.ndarray:
    """An array or a PyTorch tensor (PyTorch need not be imported for it) as a NumPy array."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    return np.asarray(value)


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))


def _text(shape: Shape) -> str:
    return f"[{', '.join('way' if n is None else str(n) for n in shape)}]"


def _some(arrays: Mapping[str, Any]) -> str:
    listed = ", ".join(sorted(map(str, arrays))[:5])
    return f"{len(arrays)} keys: {listed}, ..." if len(arrays) > 5 else listed or "no keys"

"""Trees as flat mappings 'block1/conv/kernel' -> NumPy array and back: what a checkpoint stores and compares."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from mtl_jax.errors import CheckpointError

_MAX_LISTED = 8  # differences that a message names; it counts the others


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Every leaf of a tree as a NumPy array, by its path of dict keys, field names and positions.

    Raises:
      ValueError: a leaf without a name, or a name with '/' or '.': Orbax joins names with '.' and would silently mix
        {'a.b': x} up with {'a': {'b': y}}.
      TypeError: a leaf that is not an array of numbers.
    """
    return {name: _to_numpy(leaf, name) for name, leaf in by_name(tree).items()}


def by_name(tree: Any) -> dict[str, Any]:
    """Every leaf of a tree as it is, by its path. Raises ValueError as `flatten` does."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {_name(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the tree have the same path")
    return named


def nest(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, into plain nested dicts."""
    return unflatten_dict(dict(arrays), sep="/")


def fit(like: Any, tree: Any, where: str) -> Any:
    """The arrays of `tree`, found by their paths, in the structure of `like` (NamedTuples, optax states, dicts).

    Leaves are NumPy arrays, or Python numbers where `like` has them. `like` may hold jax.ShapeDtypeStruct.

    Args:
      where: what the error message begins with.

    Raises:
      CheckpointError: lists what is missing, what is surplus, and where shapes or dtypes differ.
    """
    arrays, expected = flatten(tree), by_name(like)
    if differences := _differences(expected, arrays):
        more = [f"and {len(differences) - _MAX_LISTED} more"] if len(differences) > _MAX_LISTED else []
        raise CheckpointError(f"{where} does not fit this run: {'; '.join(differences[:_MAX_LISTED] + more)}")
    leaves = [
        arrays[name].item() if isinstance(leaf, bool | int | float) else arrays[name] for name, leaf in expected.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _differences(expected: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[str]:
    lines = [f"missing {name}" for name in expected.keys() - arrays.keys()]
    lines += [f"surplus {name}" for name in arrays.keys() - expected.keys()]
    for name in expected.keys() & arrays.keys():
        saved, wanted = _dtype_and_shape(arrays[name]), _dtype_and_shape(expected[name])
        if saved != wanted:
            lines.append(f"{name} is {saved} in the checkpoint, {wanted} expected")
    return sorted(lines)


def _dtype_and_shape(leaf: Any) -> str:
    leaf = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _name(path: tuple[Any, ...]) -> str:
    if not path:
        raise ValueError("a checkpoint holds trees of named arrays, not a bare array")
    parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
    for part in parts:
        if not part or "/" in part or "." in part:
            raise ValueError(f"a checkpoint cannot hold the name {part!r}: empty, or with '/' or '.'")
    return "/".join(parts)


def _to_numpy(leaf: Any, name: str) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.hasobject or array.dtype.kind in "SUmM":
        raise TypeError(f"{name} is {type(leaf).__name__}, not an array of numbers")
    return array

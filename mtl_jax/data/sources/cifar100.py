"""`cifar-100-python`: the official archive, or the folder in it; the classes' names make FC100 and CIFAR-FS of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.data.source import Images, Rows
from mtl_jax.data.sources import arrays, safe_pickle
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

BATCHES = ("train", "test")
FOLDER = "cifar-100-python"


def find(tree: Tree) -> str | None:
    """Returns the folder of the three files within a tree ('' is the top), None where they are not."""
    files = set(tree.files)
    for folder in ("", f"{FOLDER}/"):
        if {f"{folder}{name}" for name in (*BATCHES, "meta")} <= files:
            return folder
    return None


def read(tree: Tree, folder: str) -> Mapping[str, Images]:
    """Returns the 100 classes, the official train and test images of each together."""
    names = _names(tree, folder)
    batches = [_batch(tree, f"{folder}{batch}", len(names)) for batch in BATCHES]
    data = np.concatenate([batch[0] for batch in batches])
    labels = np.concatenate([batch[1] for batch in batches])
    files = [name for batch in batches for name in batch[2]]
    place = tree.where(f"{folder}{{train,test}}")
    return {name: Rows(data, np.flatnonzero(labels == label), place, files) for label, name in sorted_names(names)}


def sorted_names(names: list[str]) -> list[tuple[int, str]]:
    """Returns (label, name) in the order of the names."""
    return sorted(enumerate(names), key=lambda item: item[1])


def _names(tree: Tree, folder: str) -> list[str]:
    place = tree.where(f"{folder}meta")
    meta = arrays.text_keys(safe_pickle.loads(tree.read(f"{folder}meta"), place))
    return [arrays.as_text(name) for name in arrays.pick(_dict(meta, place), ("fine_label_names",), place)]


def _batch(tree: Tree, file: str, classes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    place = tree.where(file)
    held = _dict(arrays.text_keys(safe_pickle.loads(tree.read(file), place)), place)
    data = arrays.image_array(np.asarray(arrays.pick(held, ("data",), place)), place)
    labels = np.asarray(arrays.pick(held, ("fine_labels",), place))
    if len(labels) != len(data):
        raise DataError(f"{place}: {len(data)} images but {len(labels)} labels; each image needs one")
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise DataError(f"{place}: label {labels.max()} is out of range; labels must be from 0 to {classes - 1}")
    names = [arrays.as_text(name) for name in held.get("filenames", [""] * len(data))]
    return data, labels, names


def _dict(held: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(held, Mapping):
        raise DataError(f"{place}: holds {type(held).__name__}; expected the dict of cifar-100-python")
    return held

"""CIFAR-100 as published, `cifar-100-python`; FC100 and CIFAR-FS are splits of its 100 classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.data.source import Images, Rows, Source
from mtl_jax.data.sources import arrays, safe_pickle
from mtl_jax.data.sources.splitting import Splitting, split_classes
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError
from mtl_jax.words import counted

BATCHES = ("train", "test")
FOLDER = "cifar-100-python"


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if the three files lie at the top or in their folder, else None."""
    folder = find(tree)
    if folder is None:
        return None
    return tree.source("cifar-100-python", lambda _: split_classes(read(tree, folder), name, splitting, tree.path))


def find(tree: Tree) -> str | None:
    """Returns the folder of the three files within a tree, with its slash ('' is the top); None without them."""
    files = set(tree.files)
    for folder in ("", f"{FOLDER}/"):
        if {f"{folder}{name}" for name in (*BATCHES, "meta")} <= files:
            return folder
    return None


def read(tree: Tree, folder: str) -> Mapping[str, Images]:
    """Returns the 100 classes, each with its official train and test images."""
    names = _names(tree, folder)
    batches = [_batch(tree, f"{folder}{batch}", len(names)) for batch in BATCHES]
    data = np.concatenate([batch[0] for batch in batches])
    labels = np.concatenate([batch[1] for batch in batches])
    files = [name for batch in batches for name in batch[2]]
    path = tree.where(f"{folder}{{train,test}}")
    by_name = sorted(enumerate(names), key=lambda item: item[1])
    return {name: Rows(data, np.flatnonzero(labels == label), path, files) for label, name in by_name}


def _names(tree: Tree, folder: str) -> list[str]:
    held, path = _load(tree, f"{folder}meta")
    return [arrays.as_text(name) for name in arrays.pick(held, ("fine_label_names",), path)]


def _batch(tree: Tree, file: str, classes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns the images, uint8 [N, 32, 32, 3], their labels [N] and their file names, of one of `BATCHES`."""
    held, path = _load(tree, file)
    data = arrays.image_array(np.asarray(arrays.pick(held, ("data",), path)), path)
    labels = np.asarray(arrays.pick(held, ("fine_labels",), path))
    if len(labels) != len(data):
        raise DataError(
            f"{path}: {counted(len(data), 'image')} but {counted(len(labels), 'label')}; each image needs one"
        )
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise DataError(f"{path}: label {labels.max()} is out of range; labels must be from 0 to {classes - 1}")
    names = [arrays.as_text(name) for name in held.get("filenames", [""] * len(data))]
    return data, labels, names


def _load(tree: Tree, file: str) -> tuple[Mapping[str, Any], str]:
    """Returns the dict in a pickle, and what messages call the file."""
    path = tree.where(file)
    held = arrays.text_keys(safe_pickle.loads(tree.read(file), path))
    if not isinstance(held, Mapping):
        raise DataError(f"{path}: holds {type(held).__name__}; expected the dict of cifar-100-python")
    return held, path

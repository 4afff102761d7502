"""CUB-200-2011 as it is published: images/NNN.Class/*.jpg beside other folders, split by the numbers of its classes."""

import re
from collections.abc import Mapping

from mtl_jax.data.source import Contents
from mtl_jax.data.sources import class_folders, splitting
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.data.sources.trees import Tree, TreeImages
from mtl_jax.errors import DataError

CLASSES = 200
# The usual split (Chen et al., "A Closer Look at Few-shot Classification", 2019), by a class's number from 0, modulo 4.
SPLITS = ("train", "val", "train", "test")
FIRST = re.compile(r"((?:.*/)?)001\.[^/]+/[^/]+")


def find(tree: Tree) -> str | None:
    """Returns the folder in a tree that has the class folders, with its slash ('' is the top); None without any."""
    matches = filter(None, map(FIRST.fullmatch, tree.files))
    return next((match[1] for match in matches), None)


def read(tree: Tree, folder: str, how: Splitting) -> Contents:
    """Returns the classes under a folder of the tree by the usual split of 100, 50 and 50, or as `how` says.

    Raises:
        DataError: they are not the 200 classes.
    """
    files = [file for file in tree.files if file.startswith(folder) and "/" in file[len(folder) :]]
    classes = class_folders.as_images(tree, class_folders.by_folder(tree, files, folder.count("/")))
    if how.lists or how.fractions:
        return splitting.split(classes, "cub", how, tree.where(folder))
    return by_number(classes, tree.where(folder))


def by_number(classes: Mapping[str, TreeImages], place: str) -> Contents:
    """Returns the splits of classes whose names begin with their numbers from 001 to 200."""
    wanted = [f"{number:03d}" for number in range(1, CLASSES + 1)]
    if sorted(name.partition(".")[0] for name in classes) != wanted:
        missing = sorted(set(wanted) - {name.partition(".")[0] for name in classes})
        raise DataError(
            f"{place}: {len(classes)} folders are not the 200 classes of CUB-200-2011, 001.Name to 200.Name"
            f"{f'; {missing[0]} is missing' if missing else ''}; mend it, or set data.lists or data.fractions"
        )
    splits: dict[str, dict[str, TreeImages]] = {"train": {}, "val": {}, "test": {}}
    for number, name in enumerate(sorted(classes)):
        splits[SPLITS[number % 4]][name] = classes[name]
    return splits

"""mini-ImageNet as one folder of its 60,000 files, whose names begin with their class: n0153282900000005.jpg."""

import re
from collections import defaultdict

from mtl_jax.data import facts
from mtl_jax.data.files.names import stem_of, suffix_of
from mtl_jax.data.source import Contents, Source
from mtl_jax.data.sources.class_folders import as_images
from mtl_jax.data.sources.splitting import Splitting, split_classes
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

STEM = re.compile(r"(n\d{8})\d{8}")


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if files of mini-ImageNet's list lie in one folder, else None."""
    if name not in ("miniimagenet", "folder"):
        return None
    files = [file for file in tree.files if STEM.fullmatch(stem_of(file))]
    folders = {file.rpartition("/")[0] for file in files}
    if len(folders) != 1 or not facts.listed(files):
        return None
    if next(iter(folders)).rpartition("/")[2] == stem_of(files[0])[:9]:  # the folder of a single class
        return None
    return tree.source("mini-ImageNet's images in one folder", lambda _: read(tree, files, splitting))


def read(tree: Tree, files: list[str], splitting: Splitting) -> Contents:
    """Returns the classes of files by name, in the splits of Ravi and Larochelle unless `splitting` says otherwise.

    Raises:
        DataError: an image is called otherwise, or its class is not one of the 100.
    """
    classes: dict[str, list[str]] = defaultdict(list)
    suffixes, folder = {suffix_of(file) for file in files}, files[0].rpartition("/")[0]
    for file in tree.files:
        match = STEM.fullmatch(stem_of(file))
        if match:
            classes[match[1]].append(file)
        elif file.rpartition("/")[0] == folder and suffix_of(file) in suffixes:
            raise DataError(f"{tree.where(file)}: not named like mini-ImageNet's images; move it elsewhere")
    images = as_images(tree, classes)
    if splitting.lists or splitting.fractions:
        return split_classes(images, "miniimagenet", splitting, tree.path)
    paper = facts.class_splits("miniimagenet")
    known = {name for names in paper.values() for name in names}
    if strange := sorted(set(images) - known):
        file = classes[strange[0]][0]
        raise DataError(f"{tree.where(file)}: {strange[0]} is not a class of mini-ImageNet; move it elsewhere")
    splits = {split: {name: images[name] for name in names if name in images} for split, names in paper.items()}
    return {split: held for split, held in splits.items() if held}

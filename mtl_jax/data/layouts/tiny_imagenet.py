"""Tiny-ImageNet as it is published: 200 classes, which come without a split for few-shot learning.

train/WNID/images/ has 500 images of a class, val/ has 50 more, in images/ with val_annotations.txt or in class folders
that somebody made of them. Those of test/ have no labels.
"""

import re
from collections import defaultdict

from mtl_jax.data.files import text
from mtl_jax.data.files.places import Places
from mtl_jax.data.source import Contents, Source
from mtl_jax.data.sources.class_folders import as_images
from mtl_jax.data.sources.splitting import Splitting, split_classes
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

TRAIN = re.compile(r"train/(n\d{8})/images/[^/]+")
VAL = re.compile(r"val/(n\d{8})/(?:images/)?[^/]+")
ANNOTATIONS = "val/val_annotations.txt"
NO_IMAGES = (".txt",)  # train/WNID/WNID_boxes.txt


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if this is its layout, else None."""
    if name != "folder" or not any(map(TRAIN.fullmatch, tree.files)):
        return None
    return tree.source("Tiny-ImageNet, its train and val images", lambda _: read(tree, splitting))


def read(tree: Tree, splitting: Splitting) -> Contents:
    """Returns the classes, each with its images of train/ and val/, as `splitting` says.

    Raises:
        DataError: val_annotations.txt is damaged or names an image that is not there; or nothing says how to split.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for file in tree.files:
        match = TRAIN.fullmatch(file) or VAL.fullmatch(file)
        if match and not file.endswith(NO_IMAGES):
            files[match[1]].append(file)
    if ANNOTATIONS in tree.files and any(file.startswith("val/images/") for file in tree.files):
        path, places = tree.where(ANNOTATIONS), Places(tree.files)
        for number, line in enumerate(text.lines(text.decode(tree.read(ANNOTATIONS), path)), 1):
            image, class_name, *_ = [*line.split(), ""]
            if class_name not in files:
                raise DataError(f"{path}, line {number}: {class_name!r} is not a class of train/; download it again")
            file = places.locate(f"images/{image}", f"{path}, line {number}", "val", tree.path)
            files[class_name].append(file)
    return split_classes(as_images(tree, files), "folder", splitting, tree.path)

"""Class folders: {train,val,test}/CLASS/*.png, Omniglot, CUB-200-2011, or one folder of classes that is split here."""

import logging
import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

from mtl_jax.data.files.names import class_name, splits_of
from mtl_jax.data.source import Contents, Source
from mtl_jax.data.sources.splitting import Splitting, split_classes
from mtl_jax.data.sources.trees import Tree, TreeImages
from mtl_jax.errors import DataError
from mtl_jax.words import counted

OMNIGLOT_FOLDERS = ("images_background", "images_evaluation")
# The five background alphabets of the validation split; the other 25 are for training. The published set has no such
# split: these are few-letter, many-letter, ancient and modern ones, about a sixth of the 964 characters.
OMNIGLOT_VAL = ("Anglo-Saxon_Futhorc", "Armenian", "Bengali", "Grantha", "N_Ko")
CUB_CLASSES = 200
# The usual split of CUB (Chen et al., "A Closer Look at Few-shot Classification", 2019): a class's number, counted from
# 0, modulo 4.
CUB_SPLITS = ("train", "val", "train", "test")
CUB_FIRST_CLASS = re.compile(r"((?:.*/)?)001\.[^/]+/[^/]+")
CHARACTER = re.compile(r"character\d+", re.IGNORECASE)  # a class folder of Omniglot, in the folder of its alphabet

log = logging.getLogger(__name__)
Folders = Mapping[str, Sequence[str]]  # class -> files
Classes = Mapping[str, TreeImages]


def omniglot(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if this is Omniglot's own layout, else None."""
    if top_folders(tree).isdisjoint(OMNIGLOT_FOLDERS):
        return None
    return tree.source("Omniglot folders", lambda _: read_omniglot(tree))


def cub(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if 'cub' is asked for and this is its published layout, else None."""
    if name != "cub" or has_split_folders(tree):
        return None
    matches = filter(None, map(CUB_FIRST_CLASS.fullmatch, tree.files))
    folder = next((match[1] for match in matches), None)  # of the class folders, with its slash; '' is the top
    if folder is None:
        return None
    return tree.source("CUB-200-2011", lambda _: read_cub(tree, folder, splitting))


def split_folders(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if class folders lie in folders named by split, else None."""
    return tree.source("class folders", lambda _: read_split_folders(tree)) if has_split_folders(tree) else None


def one_folder(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if there are any folders, which are then taken for classes without a split, else None."""
    if not top_folders(tree):
        return None
    return tree.source("one folder of classes", lambda _: split_classes(read_classes(tree), name, splitting, tree.path))


def top_folders(tree: Tree) -> set[str]:
    """Returns the names of the folders at the top of a tree."""
    return {file.split("/", 1)[0] for file in tree.files if "/" in file}


def has_split_folders(tree: Tree) -> bool:
    """Returns whether the top has folders named by split, with class folders in them."""
    deep = {file.split("/", 1)[0] for file in tree.files if file.count("/") >= 2}
    return bool(splits_of(deep))


def read_split_folders(tree: Tree) -> Contents:
    """Returns the classes of {train,val,test}/CLASS/**; other folders and files at the top are passed over.

    Raises:
        DataError: a class folder is empty, an image is in no class folder, or two folders are one split.
    """
    split_of = splits_of(top_folders(tree))
    refuse_empty(tree, split_of, 2)
    grouped: dict[str, list[str]] = defaultdict(list)
    folder_of: dict[str, str] = {}
    for file in tree.files:
        folder, _, rest = file.partition("/")
        split = split_of.get(folder)
        if not rest or split is None:
            continue  # a README or a list of files beside the splits
        if folder_of.setdefault(split, folder) != folder:
            raise DataError(
                f"{tree.path}: both {folder_of[split]}/ and {folder}/ are the {split} split; make one of them"
            )
        grouped[split].append(file)
    return {split: as_images(tree, by_folder(tree, files, 1)) for split, files in grouped.items()}


def read_omniglot(tree: Tree) -> Contents:
    """Returns Omniglot's characters: 25 background alphabets to train on, `OMNIGLOT_VAL`, the evaluation alphabets."""
    refuse_empty(tree, OMNIGLOT_FOLDERS, 3)
    grouped: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for file in tree.files:
        top, _, rest = file.partition("/")
        if top not in OMNIGLOT_FOLDERS or not rest:
            continue
        background = top == OMNIGLOT_FOLDERS[0]
        val = rest.split("/", 1)[0] in OMNIGLOT_VAL
        grouped[("val" if val else "train") if background else "test"].append(file)
    return {split: as_images(tree, by_folder(tree, files, 1, 2)) for split, files in grouped.items() if files}


def read_cub(tree: Tree, folder: str, splitting: Splitting) -> Contents:
    """Returns the classes under a folder by the usual split of 100, 50 and 50, unless `splitting` says otherwise.

    Raises:
        DataError: they are not the 200 classes, whose names begin with their numbers from 001 to 200.
    """
    path = tree.where(folder)
    files = [file for file in tree.files if file.startswith(folder) and "/" in file[len(folder) :]]
    classes = as_images(tree, by_folder(tree, files, folder.count("/")))
    return split_cub(classes, splitting, path)


def split_cub(classes: Classes, splitting: Splitting, path: str) -> Contents:
    """Returns CUB's classes in splits; see `read_cub`."""
    if splitting.lists or splitting.fractions:
        return split_classes(classes, "cub", splitting, path)
    wanted = [f"{number:03d}" for number in range(1, CUB_CLASSES + 1)]
    numbers = sorted(name.partition(".")[0] for name in classes)
    if numbers != wanted:
        missing = sorted(set(wanted) - set(numbers))
        raise DataError(
            f"{path}: {counted(len(classes), 'folder')}, not the 200 classes of CUB-200-2011, 001.Name to 200.Name"
            f"{f'; {missing[0]} is missing' if missing else ''}; fix it, or set data.lists or data.fractions"
        )
    splits: dict[str, dict[str, TreeImages]] = {"train": {}, "val": {}, "test": {}}
    for number, name in enumerate(sorted(classes)):
        splits[CUB_SPLITS[number % 4]][name] = classes[name]
    return splits


def read_classes(tree: Tree) -> Classes:
    """Returns the classes of a folder of class folders."""
    refuse_empty(tree, None, 1)
    loose = [file for file in tree.files if "/" not in file and tree.has_image(file)]
    if loose:
        count = "1 image" if len(loose) == 1 else f"{len(loose)} images"
        log.warning("%s: left out %s outside any class folder, such as %s", tree.path, count, loose[0])
    return as_images(tree, by_folder(tree, [file for file in tree.files if "/" in file], 0))


def refuse_empty(tree: Tree, tops: Container[str] | None, depth: int) -> None:
    """Raises DataError for an empty class folder: one `depth` folders deep, below one of `tops` (None: below any)."""
    for folder in tree.empty:
        parts = folder.split("/")
        own = "/".join(parts[:depth])
        if (tops is None or parts[0] in tops) and not any(file.startswith(f"{own}/") for file in tree.files):
            raise DataError(f"{tree.where(folder)}: the class folder has no images; add some, or move it elsewhere")


def by_folder(tree: Tree, files: Sequence[str], skip: int, levels: int = 0) -> Folders:
    """Groups files by class: those in a class folder and in all folders below it are one class, called in NFC.

    Args:
        tree: where they are.
        files: some of its files; those in no class folder must not be images.
        skip: how many folders at the beginning of a path do not belong to the class's name.
        levels: how many belong to it; 0: two if they are alphabets and characters as Omniglot has them, else one.

    Raises:
        DataError: an image is in no class folder.
    """
    levels = levels or (2 if _are_characters(files, skip) else 1)
    folders: dict[str, list[str]] = defaultdict(list)
    places: dict[str, set[str]] = defaultdict(set)
    for file in files:
        parts = file.split("/")[skip:-1]
        if parts:
            name = class_name("/".join(parts[:levels]))
            folders[name].append(file)
            places[name].add("/".join(parts))
        elif tree.has_image(file):
            raise DataError(f"{tree.where(file)}: the image is not in a class folder; move it into one")
    joined = [name for name, folders_of_class in places.items() if len(folders_of_class) > 1]
    if joined:
        log.warning(
            "%s: %d of %d classes combine the images of several folders (such as %s: %s)",
            tree.path, len(joined), len(places), joined[0], ", ".join(sorted(places[joined[0]])[:3]),
        )  # fmt: skip
    return folders


def _are_characters(files: Sequence[str], skip: int) -> bool:
    folders = (file.split("/")[skip:-1] for file in files)
    return all(len(parts) > 1 and CHARACTER.fullmatch(parts[1]) for parts in folders if parts)


def as_images(tree: Tree, folders: Folders) -> Classes:
    """Returns the images of each class, sorted by the class's name."""
    return {name: TreeImages(tree, tuple(sorted(folders[name]))) for name in sorted(folders)}

"""Class folders: {train,val,test}/CLASS/*.png, Omniglot's two levels, or one folder of classes that is split here."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

from mtl_jax.data.source import Contents
from mtl_jax.data.sources.trees import Tree, TreeImages
from mtl_jax.errors import DataError

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "meta-train", "meta_train"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "meta-val", "meta_val"), "val"),
    **dict.fromkeys(("test", "testing", "meta-test", "meta_test"), "test"),
}
OMNIGLOT_FOLDERS = ("images_background", "images_evaluation")
# The five background alphabets of the validation split; the other 25 are for training. The published set has no such
# split: these are few-letter, many-letter, ancient and modern ones, about a sixth of the 964 characters.
OMNIGLOT_VAL = ("Anglo-Saxon_Futhorc", "Armenian", "Bengali", "Grantha", "N_Ko")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")

Folders = Mapping[str, Sequence[str]]  # class -> files


def top_folders(tree: Tree) -> set[str]:
    """Returns the names of the folders at the top of a tree."""
    return {file.split("/", 1)[0] for file in tree.files if "/" in file}


def has_split_folders(tree: Tree) -> bool:
    """Returns whether the top has folders named as splits, with class folders in them."""
    deep = {file.split("/", 1)[0] for file in tree.files if file.count("/") >= 2}
    return any(folder.lower() in SPLIT_FOLDERS for folder in deep)


def is_omniglot(tree: Tree) -> bool:
    """Returns whether this is Omniglot's own layout."""
    return not top_folders(tree).isdisjoint(OMNIGLOT_FOLDERS)


def read_split_folders(tree: Tree) -> Contents:
    """Returns the classes of {train,val,test}/CLASS/*; what stands beside the split folders is an error."""
    refuse_empty(tree, {folder for folder in top_folders(tree) if folder.lower() in SPLIT_FOLDERS})
    grouped: dict[str, list[str]] = defaultdict(list)
    folder_of: dict[str, str] = {}
    for file in tree.files:
        folder, _, rest = file.partition("/")
        split = SPLIT_FOLDERS.get(folder.lower())
        if not rest or split is None:
            continue  # a README or a list of files beside the splits
        if folder_of.setdefault(split, folder) != folder:
            raise DataError(f"{tree.place}: both {folder_of[split]}/ and {folder}/ are the {split} split; remove one")
        grouped[split].append(file)
    return {split: as_images(tree, by_folder(tree, files, 1)) for split, files in grouped.items()}


def read_omniglot(tree: Tree) -> Contents:
    """Returns Omniglot's characters: 25 background alphabets, the five of `OMNIGLOT_VAL`, the evaluation alphabets."""
    refuse_empty(tree, OMNIGLOT_FOLDERS)
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for file in tree.files:
        top, _, rest = file.partition("/")
        if top not in OMNIGLOT_FOLDERS or not rest:
            continue
        background = top == OMNIGLOT_FOLDERS[0]
        val = rest.split("/", 1)[0] in OMNIGLOT_VAL
        parts[("val" if val else "train") if background else "test"].append(file)
    return {split: as_images(tree, by_folder(tree, files, 1)) for split, files in parts.items() if files}


def read_classes(tree: Tree) -> Mapping[str, TreeImages]:
    """Returns the classes of a folder of class folders."""
    refuse_empty(tree, None)
    return as_images(tree, by_folder(tree, [file for file in tree.files if "/" in file], 0))


def refuse_empty(tree: Tree, within: Container[str] | None) -> None:
    """Raises DataError for a folder without files in one of the folders at the top, or anywhere."""
    for folder in tree.empty:
        if within is None or folder.split("/", 1)[0] in within:
            raise DataError(f"{tree.where(folder)}: the class folder has no images; add some or remove it")


def by_folder(tree: Tree, files: Sequence[str], skip: int) -> Folders:
    """Groups files by their folder, whose first `skip` parts are no part of the class name."""
    folders: dict[str, list[str]] = defaultdict(list)
    for file in files:
        *parts, base = file.split("/")
        if len(parts) <= skip:
            raise DataError(f"{tree.where(file)}: the file is in no class folder; put it in one or remove it")
        if not base.lower().endswith(IMAGE_SUFFIXES):
            raise DataError(f"{tree.where(file)}: not an image (known are {' '.join(IMAGE_SUFFIXES)}); remove it")
        folders["/".join(parts[skip:])].append(file)
    return folders


def as_images(tree: Tree, folders: Folders) -> Mapping[str, TreeImages]:
    """Returns the images of each class, classes sorted by name."""
    return {name: TreeImages(tree, tuple(sorted(folders[name]))) for name in sorted(folders)}

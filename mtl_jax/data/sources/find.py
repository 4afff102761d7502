"""Finds out what a folder or a file is, by looking."""

from collections.abc import Mapping
from pathlib import Path

from mtl_jax.data.source import Source
from mtl_jax.data.sources import (
    archives,
    array_files,
    cifar100,
    class_folders,
    csv_images,
    cub,
    glyphs,
    ilsvrc,
    splitting,
    tfds_source,
    trees,
)
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

NAMES = ("glyphs", "omniglot", "miniimagenet", "fc100", "cifar_fs", "tieredimagenet", "cub", "folder")

# Folders whose names say something about what is in them.
MEANINGFUL = {*class_folders.SPLIT_FOLDERS, *class_folders.OMNIGLOT_FOLDERS}


def find(name: str, path: str, how: Splitting) -> Source:
    """Returns the source of a data set; `how` splits classes that come without a split.

    Raises:
        DataError: the name is unknown, a path is missing, or what is there is of no known format.
    """
    if name == "glyphs":
        return glyphs.source()
    if name.startswith(tfds_source.PREFIX):
        return tfds_source.find(name, path, how)
    if name not in NAMES:
        raise DataError(f"data.name: {name!r} is unknown; it must be one of {', '.join(NAMES)} or tfds:NAME")
    if not path:
        raise DataError(f"data.path: {name} needs the folder or file that holds it")
    place = Path(path).expanduser()
    imagenet = ilsvrc.find(name, place)
    if imagenet:
        return imagenet
    if place.is_file() and place.suffix in array_files.SUFFIXES:
        return single_file(place, name, how)
    return in_tree(archives.open_tree(path), name, how)


def single_file(place: Path, name: str, how: Splitting) -> Source:
    """Returns the source in one array file, whose classes have to be split."""
    return Source(
        f"{place.suffix} file",
        [trees.stamp(place, place.parent)],
        lambda scratch: splitting.split(array_files.read_file(place, scratch), name, how, str(place)),
        str(place),
    )


def in_tree(tree: Tree, name: str, how: Splitting) -> Source:
    """Returns the source in a folder or archive, whose format is found by its files' names."""
    tree = trees.unwrapped(tree, MEANINGFUL)
    if class_folders.is_omniglot(tree):
        return Source("Omniglot folders", tree.stamps, lambda _: class_folders.read_omniglot(tree), tree.place)
    folder = cifar100.find(tree)
    if folder is not None:
        return Source(
            "cifar-100-python",
            tree.stamps,
            lambda _: splitting.split(cifar100.read(tree, folder), name, how, tree.place),
            tree.place,
        )
    folder = cub.find(tree) if name == "cub" else None
    if folder is not None and not class_folders.has_split_folders(tree):
        return Source("CUB-200-2011", tree.stamps, lambda _: cub.read(tree, folder, how), tree.place)
    if csv_images.find(tree):
        return Source("images with CSV files", tree.stamps, lambda _: csv_images.read(tree), tree.place)
    files = array_files.find(tree)
    if files:
        return Source(
            array_format(files), tree.stamps, lambda scratch: array_files.read(tree, files, name, scratch), tree.place
        )
    if class_folders.has_split_folders(tree):
        return Source("class folders", tree.stamps, lambda _: class_folders.read_split_folders(tree), tree.place)
    if class_folders.top_folders(tree):
        return Source(
            "one folder of classes",
            tree.stamps,
            lambda _: splitting.split(class_folders.read_classes(tree), name, how, tree.place),
            tree.place,
        )
    raise DataError(
        f"{tree.place}: no known format; expected class folders in train/, val/ and test/, images with train.csv, "
        "val.csv and test.csv, cifar-100-python, or .pkl, .npz or .npy files named by split"
    )


def array_format(files: Mapping[str, Mapping[str, str]]) -> str:
    """Returns what to call array files, by the suffixes of those with images."""
    suffixes = {Path(parts.get("whole") or parts.get("images", "")).suffix for parts in files.values()}
    return f"{' and '.join(sorted(suffixes))} files"

"""Finds out what a path holds. A new format is a row of the table `FORMATS`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from mtl_jax.data.files.names import normal, split_of
from mtl_jax.data.layouts import cub, file_lists, miniimagenet_files, tiny_imagenet, torchmeta
from mtl_jax.data.source import Contents, Source
from mtl_jax.data.sources import archives, array_files, cifar100, class_folders, csv_images, glyphs, ilsvrc, tfds_source
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.data.sources.trees import Tree, unwrapped
from mtl_jax.errors import DataError

NAMES = ("glyphs", "omniglot", "miniimagenet", "fc100", "cifar_fs", "tieredimagenet", "cub", "folder")

# The formats of a folder or archive, in the order in which they are tried. Each function gets the tree, the name of the
# data set and how to split classes that come without a split; it returns None where the tree is of another format.
FORMATS: tuple[Callable[[Tree, str, Splitting], Source | None], ...] = (
    class_folders.omniglot,  # images_background/, images_evaluation/
    cifar100.source,  # cifar-100-python/{train,test,meta}
    torchmeta.source,  # {train,val,test}_data.hdf5 and _labels.json
    file_lists.source,  # {base,val,novel}.json and images
    cub.source,  # images.txt, classes.txt, image_class_labels.txt and images
    class_folders.cub,  # images/001.Black_footed_Albatross/*.jpg
    tiny_imagenet.source,  # train/n01443537/images/*.JPEG, val/val_annotations.txt
    csv_images.source,  # {train,val,test}.csv, or one CSV, and images
    miniimagenet_files.source,  # images/n0153282900000005.jpg
    array_files.source,  # {train,val,test}.{pkl,npz}, *_images.npy and *_labels.npy
    class_folders.split_folders,  # {train,val,test}/CLASS/*.png
    class_folders.one_folder,  # CLASS/*.png
)


def find(name: str, path: str, splitting: Splitting) -> Source:
    """Returns the source of a data set, without reading its images.

    Args:
        name: one of `NAMES`, or 'tfds:NAME'.
        path: the folder or file that holds it; the glyphs need none.
        splitting: how to split classes that come without a split.

    Raises:
        DataError: the name is unknown, nothing is at the path, or what is there is of no known format.
    """
    source = _find(name, path, splitting)
    return dataclasses.replace(source, read=lambda scratch: _normal(source.read(scratch), source.path))


def _normal(contents: Contents, path: str) -> Contents:
    """Returns classes by their names in one normal form, whatever system the data set was made on."""
    return {split: normal(classes, path) for split, classes in contents.items()}


def _find(name: str, path: str, splitting: Splitting) -> Source:
    if name == "glyphs":
        return glyphs.source()
    if name.startswith(tfds_source.PREFIX):
        return tfds_source.source(name, path, splitting)
    if name not in NAMES:
        raise DataError(f"data.name: {name!r} is unknown; it must be one of {', '.join(NAMES)} or tfds:NAME")
    if not path:
        raise DataError(f"data.path: {name} needs the folder or file that holds it")
    location = Path(path).expanduser()
    return (
        ilsvrc.source(name, location)
        or array_files.source_of_file(location, name, splitting)
        or in_tree(archives.open_tree(location), name, splitting)
    )


def in_tree(tree: Tree, name: str, splitting: Splitting) -> Source:
    """Returns the source in a folder or archive, whose format is told by the names of its files; see `find`."""
    tree = unwrapped(tree, lambda folder: split_of(folder) or folder.lower() in class_folders.OMNIGLOT_FOLDERS)
    for source_of in FORMATS:
        source = source_of(tree, name, splitting)
        if source is not None:
            return source
    raise DataError(
        f"{tree.path}: no known format; expected class folders in train/, val/ and test/, images with train.csv, "
        "val.csv and test.csv or one labels.csv, cifar-100-python, or .pkl, .npz or .npy files named by split"
    )

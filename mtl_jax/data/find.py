"""Finds out what a folder or a file is, by looking."""

from mtl_jax.data import class_folders, glyphs
from mtl_jax.data.source import Source
from mtl_jax.data.trees import Tree, open_tree
from mtl_jax.errors import DataError

NAMES = ("glyphs", "omniglot", "miniimagenet", "fc100", "cifar_fs", "tieredimagenet", "folder")


def find(name: str, path: str) -> Source:
    """Returns the source of a data set.

    Raises:
        DataError: the name is unknown, a path is missing, or what is there is of no known format.
    """
    if name == "glyphs":
        return glyphs.source()
    if name not in NAMES:
        raise DataError(f"data.name: {name!r} is unknown; it must be one of {', '.join(NAMES)} or tfds:NAME")
    if not path:
        raise DataError(f"data.path: {name} needs the folder or file that holds it")
    return in_tree(open_tree(path))


def in_tree(tree: Tree) -> Source:
    """Returns the source in a folder or archive."""
    if class_folders.is_omniglot(tree):
        return Source("Omniglot folders", tree.stamps, lambda: class_folders.read_omniglot(tree), tree.place)
    if class_folders.has_split_folders(tree):
        return Source("class folders", tree.stamps, lambda: class_folders.read_split_folders(tree), tree.place)
    raise DataError(f"{tree.place}: no known format; expected split folders train/, val/, test/ with class folders")

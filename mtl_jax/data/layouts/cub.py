"""CUB-200-2011 as it is published: images/, and lists of the images, their classes and the classes' names."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from mtl_jax.data.files import text
from mtl_jax.data.files.places import Places
from mtl_jax.data.source import Contents, Source
from mtl_jax.data.sources.class_folders import as_images, split_cub
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

LISTS = ("images.txt", "image_class_labels.txt", "classes.txt")


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if the three lists lie side by side, else None."""
    if name not in ("cub", "folder"):
        return None
    files = set(tree.files)
    folders = [file[: -len(LISTS[0])] for file in tree.files if f"/{file}".endswith(f"/{LISTS[0]}")]
    folder = next((folder for folder in folders if all(f"{folder}{list_}" in files for list_ in LISTS)), None)
    if folder is None:
        return None
    return tree.source("CUB-200-2011", lambda _: read(tree, folder, splitting))


def read(tree: Tree, folder: str, splitting: Splitting) -> Contents:
    """Returns the classes on the lists of a folder (with its slash) by the usual split; see `split_cub`.

    Raises:
        DataError: a list is damaged, or names an image or a class that is not there.
    """
    images, labels, classes = (_column(tree, f"{folder}{list_}") for list_ in LISTS)
    places, files = Places(tree.files), defaultdict(list)
    for number, image in images.items():
        where = f"{tree.where(folder)}{LISTS[0]}, image {number}"
        class_name = classes.get(labels.get(number, ""))
        if class_name is None:
            raise DataError(f"{where}: {LISTS[1]} and {LISTS[2]} give it no class; download the lists again")
        files[class_name].append(places.locate(f"images/{image}", where, folder.rstrip("/"), tree.path))
    return split_cub(as_images(tree, files), splitting, tree.where(folder).rstrip("/"))


def _column(tree: Tree, file: str) -> Mapping[str, str]:
    """Returns what a list has for each number: 'NUMBER VALUE' a line."""
    path = tree.where(file)
    column: dict[str, str] = {}
    for fields in _fields(text.decode(tree.read(file), path)):
        if len(fields) != 2 or fields[0] in column:
            raise DataError(f"{path}: not a list of numbers and names ({' '.join(fields)[:40]!r}); download it again")
        column[fields[0]] = fields[1]
    return column


def _fields(content: text.Text) -> Sequence[Sequence[str]]:
    return [line.split(maxsplit=1) for line in text.lines(content)]

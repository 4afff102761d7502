"""Lists of images as JSON, of "A Closer Look at Few-shot Classification" and what came after it.

base.json, val.json and novel.json each have `label_names`, `image_names` (paths on the machine that wrote them) and
`image_labels` (positions in `label_names`). The images lie below the same folder.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from mtl_jax.data.files import text
from mtl_jax.data.files.names import class_name, split_of_list, suffix_of
from mtl_jax.data.files.places import Places
from mtl_jax.data.source import Contents, Images, Source
from mtl_jax.data.sources.class_folders import as_images
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

KEYS = ("image_names", "image_labels")


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if such lists lie at the top or in one folder below it, else None."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for file in tree.files:
        split = _split_of(file)
        if split and file.count("/") <= 2 and _is_list(tree, file):
            folder = folders[file.rpartition("/")[0]]
            if split in folder:
                raise DataError(f"{tree.path}: both {folder[split]} and {file} are the {split} split; make one of them")
            folder[split] = file
    if not folders:
        return None
    best = max(folders.values(), key=len)
    return tree.source("images with JSON lists", lambda _: read(tree, best))


def _split_of(file: str) -> str | None:
    return split_of_list(file) if suffix_of(file) == ".json" else None


def _is_list(tree: Tree, file: str) -> bool:
    try:
        content = text.decode(tree.read(file), tree.where(file)).text
    except DataError:
        return False
    return all(f'"{key}"' in content for key in KEYS)


def read(tree: Tree, files: Mapping[str, str]) -> Contents:
    """Returns the classes that a list for each split has.

    Raises:
        DataError: a list is damaged, or names an image that is not there or may be any of several.
    """
    places = Places(tree.files)
    return {split: _classes(tree, file, places) for split, file in files.items()}


def _classes(tree: Tree, file: str, places: Places) -> Mapping[str, Images]:
    path = tree.where(file)
    content = text.decode(tree.read(file), path)
    held = text.parse_json(content, path)
    if not isinstance(held, dict):
        raise DataError(f"{path}: holds {type(held).__name__}; it must have {', '.join(KEYS)} and label_names")
    images, labels = (_column(held, key, kind, path) for key, kind in zip(KEYS, (str, int), strict=True))
    names = _column(held, "label_names", str, path)
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images but {len(labels)} labels; each image needs one")
    folder, classes = file.rpartition("/")[0], defaultdict(list)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if not 0 <= label < len(names):
            raise DataError(f"{path}: label {label} of image {number} is out of range; there are {len(names)} names")
        place = places.locate(image, f"{path}, image {number}", folder, tree.path, content.hint())
        classes[class_name(names[label])].append(place)
    return as_images(tree, classes)


def _column(held: Mapping[str, Any], key: str, kind: type, path: str) -> list:
    column = held.get(key)
    if not isinstance(column, list) or not all(type(value) is kind for value in column):
        raise DataError(f"{path}: {key} must be a list of {kind.__name__}, one an entry; write the file again")
    return column

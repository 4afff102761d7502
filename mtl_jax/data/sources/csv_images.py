"""Images with `train.csv`, `val.csv` and `test.csv` beside them, whose header is `filename,label`."""

import csv
import io
from collections import defaultdict

from mtl_jax.data.dataset import SPLITS
from mtl_jax.data.source import Contents
from mtl_jax.data.sources.class_folders import as_images
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

HEADER = ["filename", "label"]


def find(tree: Tree) -> list[str]:
    """Returns the splits that have a CSV at the top of a tree."""
    files = set(tree.files)
    return [split for split in SPLITS if f"{split}.csv" in files]


def read(tree: Tree) -> Contents:
    """Returns the classes that the CSVs list.

    Raises:
        DataError: a CSV has another header, or lists an image that is not there, or two images have its name.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for file in tree.files:
        places[file.rsplit("/", 1)[-1]].append(file)
    files = set(tree.files)
    return {split: as_images(tree, _classes(tree, f"{split}.csv", files, places)) for split in find(tree)}


def _classes(tree: Tree, name: str, files: set[str], places: dict[str, list[str]]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = defaultdict(list)
    for number, (image, label) in _rows(tree, name):
        classes[label].append(_locate(image, f"{tree.where(name)}, line {number}", files, places))
    return classes


def _rows(tree: Tree, name: str):
    place = tree.where(name)
    try:
        rows = csv.reader(io.StringIO(tree.read(name).decode("utf-8-sig")))
        header = [field.strip() for field in next(rows, [])]
        if header != HEADER:
            raise DataError(f"{place}: the header is {','.join(header)!r}; it must be 'filename,label'")
        for number, row in enumerate(rows, 2):
            if len(row) == len(HEADER):
                yield number, [field.strip() for field in row]
            elif row:
                raise DataError(f"{place}, line {number}: {len(row)} fields; expected a file name and a label")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{place}: not a CSV in UTF-8 ({error}); mend or replace it") from None


def _locate(image: str, row: str, files: set[str], places: dict[str, list[str]]) -> str:
    for file in (image, f"images/{image}"):
        if file in files:
            return file
    found = places.get(image.rsplit("/", 1)[-1], [])
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{row}: {image!r} may be {found[0]} or {found[1]}; write the path into the CSV")
    raise DataError(f"{row}: there is no image {image!r}; put it into images/ beside the CSV")

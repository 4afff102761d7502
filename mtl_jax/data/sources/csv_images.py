"""Images with `train.csv`, `val.csv` and `test.csv` beside them, whose header is `filename,label`."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator

from mtl_jax.data.dataset import SPLITS
from mtl_jax.data.source import Contents, Source
from mtl_jax.data.sources.class_folders import as_images
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

HEADER = ["filename", "label"]


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if a CSV named by split lies at the top, else None."""
    splits = [split for split in SPLITS if f"{split}.csv" in tree.files]
    return tree.source("images with CSV files", lambda _: read(tree, splits)) if splits else None


def read(tree: Tree, splits: list[str]) -> Contents:
    """Returns the classes that the CSVs of some splits list.

    Raises:
        DataError: a CSV has another header, or lists an image that is not there or may be any of several.
    """
    by_base: dict[str, list[str]] = defaultdict(list)
    for file in tree.files:
        by_base[file.rsplit("/", 1)[-1]].append(file)
    files = set(tree.files)
    return {split: as_images(tree, _classes(tree, f"{split}.csv", files, by_base)) for split in splits}


def _classes(tree: Tree, name: str, files: set[str], by_base: dict[str, list[str]]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = defaultdict(list)
    for number, (image, label) in _rows(tree, name):
        classes[label].append(_locate(image, f"{tree.where(name)}, line {number}", files, by_base))
    return classes


def _rows(tree: Tree, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each line, and its file name and label."""
    path = tree.where(name)
    try:
        rows = csv.reader(io.StringIO(tree.read(name).decode("utf-8-sig")))
        header = [field.strip() for field in next(rows, [])]
        if header != HEADER:
            raise DataError(f"{path}: the header is {','.join(header)!r}; it must be 'filename,label'")
        for number, row in enumerate(rows, 2):
            if len(row) == len(HEADER):
                yield number, [field.strip() for field in row]
            elif row:
                raise DataError(f"{path}, line {number}: {len(row)} fields; expected a file name and a label")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV in UTF-8 ({error}); mend or replace it") from None


def _locate(image: str, line: str, files: set[str], by_base: dict[str, list[str]]) -> str:
    """Returns the file of an image: the path as written, under images/, or the only file of that name."""
    for file in (image, f"images/{image}"):
        if file in files:
            return file
    candidates = by_base.get(image.rsplit("/", 1)[-1], [])
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise DataError(f"{line}: {image!r} may be {candidates[0]} or {candidates[1]}; write the path into the CSV")
    raise DataError(f"{line}: there is no image {image!r}; put it into images/ beside the CSV")

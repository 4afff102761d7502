"""Images that CSV files list: one a split, as train.csv, val.csv and test.csv, or one for all, as labels.csv.

Columns are found by their names, whatever their order and whatever else there is. The files may lie beside the images
or in a folder of their own: images/ and split/*.csv is the layout of FEAT and what came after it.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mtl_jax.data.dataset import SPLITS
from mtl_jax.data.files import names, text
from mtl_jax.data.files.places import Places
from mtl_jax.data.source import Contents, Source
from mtl_jax.data.sources.class_folders import as_images, has_split_folders
from mtl_jax.data.sources.splitting import Splitting, split_classes
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError
from mtl_jax.words import counted

SUFFIXES = (".csv", ".tsv")
MANY = 100  # files of numbers, one per image, are not lists of images
# What columns are called, the first that is there; compared in small letters, without spaces, underscores and hyphens.
IMAGE = ("filename", "file", "imagename", "image", "imagepath", "filepath", "filepaths", "path", "img", "imgname",
         "imgpath", "images", "imageid", "id")  # fmt: skip
LABEL = ("label", "labels", "class", "classname", "labelname", "classlabel", "category", "categoryname", "species",
         "breed", "target", "wnid", "synset", "labelid", "classid", "categoryid")  # fmt: skip
SPLIT = ("split", "set", "subset", "partition", "dataset", "phase")
PLAIN_FOLDERS = ("images", "image", "imgs", "img", "data", "photos", "split", "splits")  # names of no class


class Listing(NamedTuple):
    """A CSV that lists images. split: the column's position, None without one."""

    file: str
    image: int
    label: int
    split: int | None


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if CSVs list the images, else None: a competition's own train.csv may lie beside folders.

    CSVs of all splits come first, then split folders, then a CSV with a column of splits, then class folders, then a
    CSV without.
    """
    files = [file for file in tree.files if names.suffix_of(file) in SUFFIXES and file.count("/") <= 2]
    files = [file for file in files if "submission" not in file.lower()]  # sample_submission.csv of a competition
    if not files or len(files) > MANY:
        return None
    listings = {file: listing for file in files if (listing := _listing(tree, file))}
    folders = has_split_folders(tree) or _has_class_folders(tree)
    by_split = _whole(tree, [one for file, one in listings.items() if _split_of(file)])
    if by_split and not (folders and _lists_others(tree, by_split)):
        return tree.source("images with CSV files", lambda _: read(tree, by_split))
    if has_split_folders(tree):
        return None
    alone = [one for one in listings.values() if one.split is not None] or ([] if folders else list(listings.values()))
    if len(alone) == 1:
        return tree.source("images with a CSV file", lambda _: read_one(tree, alone[0], name, splitting))
    if folders:
        return None
    unread = next((file for file in files if _split_of(file) and file not in listings), None)
    if unread or listings:
        return tree.source("CSV files", lambda _: _refuse(tree, unread, [tree.where(file) for file in listings]))
    return None


def read(tree: Tree, by_split: Mapping[str, Listing]) -> Contents:
    """Returns the classes that a CSV for each split lists.

    Raises:
        DataError: it cannot be read, or lists an image that is not there or may be any of several.
    """
    places = Places(tree.files)
    return {
        split: as_images(tree, _grouped(((label, file) for label, file, _ in _images(tree, by_split[split], places))))
        for split in SPLITS
        if split in by_split
    }


def read_one(tree: Tree, listing: Listing, name: str, splitting: Splitting) -> Contents:
    """Returns the classes that one CSV lists, in the splits of its column, else as `splitting` says; see `read`."""
    rows = list(_images(tree, listing, Places(tree.files)))
    if listing.split is None or splitting.lists or splitting.fractions:
        classes = as_images(tree, _grouped((label, file) for label, file, _ in rows))
        return split_classes(classes, name, splitting, tree.where(listing.file))
    split_of, files = names.splits_of({split for _, _, split in rows}), defaultdict(list)
    for label, file, split in rows:
        if split not in split_of:
            raise DataError(
                f"{tree.where(listing.file)}: {split!r} of image {file} is not a split; the splits are "
                f"{', '.join(SPLITS)}"
            )
        files[split_of[split]].append((label, file))
    return {split: as_images(tree, _grouped(files[split])) for split in SPLITS if split in files}


def _listing(tree: Tree, file: str) -> Listing | None:
    """Returns a CSV with its columns, None where it has none for images and labels or cannot be read."""
    try:
        _, header = next(_rows(tree, file)[1], (0, []))
    except DataError:
        return None
    words = [field.lower().translate(str.maketrans("", "", " _-")) for field in header]
    image, label, split = (
        next((words.index(word) for word in known if word in words), None) for known in (IMAGE, LABEL, SPLIT)
    )
    return None if image is None or label is None else Listing(file, image, label, split)


def _refuse(tree: Tree, unread: str | None, listings: Sequence[str]) -> Contents:
    """Raises DataError for a CSV without the columns, or for CSVs of some splits or of none."""
    if unread is None:
        raise DataError(
            f"{tree.path}: {', '.join(listings[:3])} list images, which are not all splits; the lists are train.csv, "
            "val.csv and test.csv, only test.csv for evaluation, or one CSV"
        )
    _, header = next(_rows(tree, unread)[1], (0, []))
    raise DataError(
        f"{tree.where(unread)}: the header is {','.join(header)!r}; it must have the columns filename and label"
    )


def _rows(tree: Tree, file: str) -> tuple[text.Text, Iterator[tuple[int, Sequence[str]]]]:
    path = tree.where(file)
    content = text.decode(tree.read(file), path)
    return content, text.rows(content, path)


def _split_of(file: str) -> str | None:
    """Returns the split that a CSV lists, by the last or first word of its name, or by the name of its folder."""
    words = names.stem_of(file).replace("-", "_").split("_")
    return names.split_of_list(file) or names.split_of(words[0]) or names.split_of(f"/{file}".split("/")[-2])


def _groups(listings: Sequence[Listing]) -> list[dict[str, Listing]]:
    """Returns the CSVs that belong together, by split; those at the top come first."""
    groups: dict[tuple[str, ...], dict[str, Listing]] = {}
    for one in sorted(listings, key=lambda one: len(one.file)):
        *folders, base = one.file.split("/")
        if names.split_of_list(base) is None and folders and names.split_of(folders[-1]):
            folders = [*folders[:-1], "*", base]
        groups.setdefault(tuple(folders), {}).setdefault(_split_of(one.file) or "", one)
    return [groups[folders] for folders in sorted(groups, key=lambda folders: (len(folders), folders))]


def _whole(tree: Tree, listings: Sequence[Listing]) -> Mapping[str, Listing] | None:
    """Returns the CSVs of all splits, or of the test alone; raises DataError where it may be one of several."""
    groups = [group for group in _groups(listings) if set(group) == set(SPLITS)] or [
        group for group in _groups(listings) if set(group) == {"test"}
    ]
    if len(groups) > 1 and "/" in groups[0]["test"].file:
        one, other = (tree.where(group["test"].file) for group in groups[:2])
        raise DataError(f"{tree.path}: both {one} and {other} list the test split; move the one not meant elsewhere")
    return groups[0] if groups else None


def _lists_others(tree: Tree, by_split: Mapping[str, Listing]) -> bool:
    """Returns whether the image that one of the CSVs lists first is not there."""
    places = Places(tree.files)
    for one in by_split.values():
        _, row = next(itertools.islice(_rows(tree, one.file)[1], 1, None), (0, []))
        if len(row) <= one.image or not places.find(row[one.image], one.file.rpartition("/")[0]):
            return True
    return False


def _has_class_folders(tree: Tree) -> bool:
    """Returns whether at least two folders, none of them called as no class is, have files that are no text."""
    folders = {tuple(file.split("/")[:-1]) for file in tree.files if names.suffix_of(file) not in (*SUFFIXES, ".txt")}
    plain = {folder for folder in folders if folder and folder[-1].lower() not in PLAIN_FOLDERS}
    return len({folder for folder in plain if not names.split_of(folder[-1])}) > 1


def _images(tree: Tree, listing: Listing, places: Places) -> Iterator[tuple[str, str, str]]:
    """Yields class, file and what the column of splits has ('' without one) of each row."""
    content, rows = _rows(tree, listing.file)
    path, folder = tree.where(listing.file), listing.file.rpartition("/")[0]
    needed = max(listing.image, listing.label, listing.split or 0) + 1
    for number, row in itertools.islice(rows, 1, None):
        line = f"{path}, line {number}"
        if len(row) < needed:
            raise DataError(f"{line}: {counted(len(row), 'field')}; expected a file name and a label")
        if not (row[listing.image] and row[listing.label]):
            raise DataError(f"{line}: the {'label' if row[listing.image] else 'file name'} is empty; fill it in")
        file = places.locate(row[listing.image], line, folder, tree.path, content.hint())
        yield row[listing.label], file, "" if listing.split is None else row[listing.split]


def _grouped(pairs: Iterator[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
    files: dict[str, list[str]] = defaultdict(list)
    for label, file in pairs:
        files[names.class_name(label)].append(file)
    return files

"""What stands where it should not: a class or an image in two splits, an image twice in one.

Classes are compared by their names, images by the digests of their decoded pixels. Turned classes (`data.rotations`)
are left out: what is wrong with them is wrong with the classes that they were made of.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

import numpy as np

from mtl_jax.data.dataset import Overlap, Split

KINDS = ("shared_classes", "shared_images", "repeated_images")
SHOWN = 10  # lines of one kind that are kept
TURNS = ("090", "180", "270")


class ClassImages(NamedTuple):
    """The images of one class: digests uint8 [n, 16]; what a message calls image i; its file's name, '' if none."""

    digests: np.ndarray
    where: Callable[[int], str]
    file: Callable[[int], str]


Classes = Mapping[str, Mapping[str, ClassImages]]  # split -> class -> images


def find(splits: Classes, format: str) -> dict[str, Overlap]:
    """Returns the overlaps of a data set by kind; a kind that it does not have is left out.

    Args:
        splits: the images of every class of every split.
        format: that of the source. In CSV and array files a label that is a number means something in its file alone.
    """
    splits = unturned(splits)
    found = {"shared_classes": shared_classes(splits, format), **same_images(splits)}
    return {kind: Overlap(len(lines), lines[:SHOWN]) for kind, lines in found.items() if lines}


def unturned(splits: Classes) -> Classes:
    """Returns the classes without those that `data.rotations` has made of others of their split."""
    return {
        split: {name: images for name, images in classes.items() if not is_turned(name, classes)}
        for split, classes in splits.items()
    }


def is_turned(name: str, names: Container[str]) -> bool:
    """Returns whether a class is one of `names` turned."""
    plain, _, turn = name.rpartition("/")
    return turn in TURNS and plain in names


def shared_classes(splits: Classes, format: str) -> list[str]:
    """Returns a line for each class name that stands in more than one split."""
    numbered = format.endswith(" files")  # CSV files, .npz files, ...: a label 0 in each is another class
    places: dict[str, list[str]] = defaultdict(list)
    for split, classes in splits.items():
        for name in classes:
            if not (numbered and name.isdecimal()):
                places[name].append(split)
    return [f"class {name!r} is in {' and in '.join(where)}" for name, where in places.items() if len(where) > 1]


def same_images(splits: Classes) -> dict[str, list[str]]:
    """Returns a line for each image whose pixels stood in an earlier split, or earlier in its own."""
    classes = [(split, images) for split, found in splits.items() for images in found.values()]
    ends = np.cumsum([len(images.digests) for _, images in classes])
    found: dict[str, list[str]] = {"shared_images": [], "repeated_images": []}
    if not classes:
        return found
    keys = keys_of(np.concatenate([images.digests for _, images in classes]))
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    seen: dict[int, dict[str, str]] = defaultdict(dict)  # group -> split -> the first there
    for row in np.flatnonzero(sizes[group] > 1):
        number = int(np.searchsorted(ends, row, "right"))
        split, images = classes[number]
        where, first = images.where(int(row) - int(ends[number]) + len(images.digests)), seen[int(group[row])]
        if split in first:
            found["repeated_images"].append(f"{where}: the same image as {first[split]}")
        elif first:
            there = next(iter(first))
            found["shared_images"].append(f"{where}: the same image as {first[there]} in {there}")
        first.setdefault(split, where)
    return found


def keys_of(digests: np.ndarray) -> np.ndarray:
    """Returns digests uint8 [n, 16] as [n] values that can be compared."""
    return np.ascontiguousarray(digests, np.uint8).view("V16").reshape(-1)


def repeats(digests: np.ndarray) -> np.ndarray:
    """Returns the positions of the digests, uint8 [n, 16], that stood before: int [m], ascending."""
    _, first = np.unique(keys_of(digests), return_index=True)
    return np.setdiff1d(np.arange(len(digests)), first)


def by_class(splits: Mapping[str, Split]) -> Classes:
    """Returns the classes of prepared splits."""
    return {name: _of_split(split) for name, split in splits.items()}


def _of_split(split: Split) -> Mapping[str, ClassImages]:
    def images(name: str, start: int, end: int) -> ClassImages:
        def file(index: int) -> str:
            return split.file_names[start + index].decode()

        def where(index: int) -> str:
            return file(index) or f"image {index} of class {name!r} of {split.name}"

        return ClassImages(split.digests[start:end], where, file)

    ends = np.cumsum(split.counts)
    bounds = zip(split.class_names, (ends - split.counts).tolist(), ends.tolist(), strict=True)
    return {name: images(name, start, end) for name, start, end in bounds}

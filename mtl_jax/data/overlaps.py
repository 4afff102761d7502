"""Classes and images that are in two splits, or twice in one: finding them, and refusing such data.

Classes are compared by name, images by the digests of their decoded pixels. Rotated classes (`data.rotations`) are left
out: what is wrong with them is wrong with the classes that they were made of. A data set with overlaps is refused,
unless the user allows them or a paper published it so.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data import facts
from mtl_jax.data.dataset import Dataset, Overlap, Split, fingerprint
from mtl_jax.errors import DataError

# kind -> a sentence about it: of one, of several, and where
KINDS = {
    "shared_classes": ("class is", "classes are", "in more than one split"),
    "shared_images": ("image is", "images are", "in more than one split"),
    "repeated_images": ("image occurs", "images occur", "twice in a split"),
}
SHOWN = 10  # lines of one kind that are kept
ROTATIONS = ("090", "180", "270")
FEW = 0.01  # of the images: no published data set that is known by its sizes has more copies


class ClassImages(NamedTuple):
    """The images of one class.

    digests: uint8 [n, 16].
    where: (position) -> what a message calls the image.
    file: (position) -> the name of its file, '' if it has none.
    """

    digests: np.ndarray
    where: Callable[[int], str]
    file: Callable[[int], str]


Classes = Mapping[str, Mapping[str, ClassImages]]  # split -> class -> images


def admitted(dataset: Dataset, allowed: Sequence[str], path: str) -> Dataset:
    """Returns a data set that results may be reported on, with its caveats.

    Of images with the same pixels in a split, tasks draw only the first, so that support and query never share an
    image. A published data set stays as it is, with its few copies, as in all published results.

    Raises:
        DataError: it has overlaps of kinds that are not `allowed`, and is not a published data set.
    """
    classes = by_class(dataset.splits)
    rotated = any(is_rotated(name, names) for names in classes.values() for name in names)
    if not (dataset.overlaps or rotated) or is_published(dataset.name, dataset.format, classes, dataset.overlaps):
        return dataset
    sentences = {kind: sentence(kind, overlap) for kind, overlap in dataset.overlaps.items()}
    refused = [sentences[kind] for kind in sentences if kind not in allowed]
    if refused:
        needed = ",".join(sentences)
        raise DataError(
            f"{path or dataset.name}: {'; '.join(refused)}. Fix the data (python -m mtl_jax.data check lists more), "
            f"or allow it with --allow={needed} (data.allow={needed})"
        )
    splits = {
        name: dataclasses.replace(split, repeats=repeats(split.digests)) for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits, caveats=tuple(sentences.values()))


def sentence(kind: str, overlap: Overlap) -> str:
    """Returns the caveat for an overlap, to stand beside a figure."""
    one, several, where = KINDS[kind]
    return f"{overlap.count} {one if overlap.count == 1 else several} {where} ({overlap.lines[0]})"


def parse_allowed(text: str) -> tuple[str, ...]:
    """Returns the kinds of overlap in a comma-separated list. Raises DataError for an unknown one."""
    kinds = tuple(kind.strip() for kind in text.split(",") if kind.strip())
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise DataError(f"data.allow: {unknown[0]!r} is unknown; it is one or more of {','.join(KINDS)}")
    return kinds


def is_published(name: str, format: str, classes: Classes, overlaps: Mapping[str, Overlap]) -> bool:
    """Returns whether these are the images of a published data set, so that its copies belong to it.

    ILSVRC2012's own files and known fingerprints are. Another decoder or format gives other pixels; then, if there are
    few copies, mini-ImageNet's file names or the number of images of every class decide.

    Args:
        name: what was asked for.
        format: see `Source`.
        classes: the images.
        overlaps: what `find` returns for them.
    """
    if format.startswith("ILSVRC2012"):
        return True
    plain = unrotated(classes)
    digests = {split: [images.digests for images in names.values()] for split, names in plain.items()}
    if fingerprint(digests) in facts.known_fingerprints():
        return True
    pairs = [(class_name, images) for names in plain.values() for class_name, images in names.items()]
    copies = sum(overlap.count for kind, overlap in overlaps.items() if kind != "shared_classes")
    if "shared_classes" in overlaps or copies > FEW * sum(len(images.digests) for _, images in pairs):
        return False
    name = name.removeprefix("tfds:")
    if all(facts.is_published_size(name, class_name, len(images.digests)) for class_name, images in pairs):
        return True
    files = [images.file(i) for _, images in pairs for i in range(len(images.digests))]
    return name == "miniimagenet" and facts.listed(files) == len(files) == len(set(map(facts.stem, files)))


def find(splits: Classes, format: str) -> dict[str, Overlap]:
    """Returns the overlaps of a data set by kind, without the kinds that it does not have.

    Args:
        splits: the images of every class of every split.
        format: see `Source`. In CSV and array files, a number as a label means something in its own file only.
    """
    splits = unrotated(splits)
    lines_of_kind = {"shared_classes": shared_classes(splits, format), **same_images(splits)}
    return {kind: Overlap(len(lines), lines[:SHOWN]) for kind, lines in lines_of_kind.items() if lines}


def unrotated(splits: Classes) -> Classes:
    """Returns the classes without those that `data.rotations` has added to their split."""
    return {
        split: {name: images for name, images in classes.items() if not is_rotated(name, classes)}
        for split, classes in splits.items()
    }


def is_rotated(name: str, names: Container[str]) -> bool:
    """Returns whether a class is one of the classes `names`, rotated."""
    plain, _, rotation = name.rpartition("/")
    return rotation in ROTATIONS and plain in names


def shared_classes(splits: Classes, format: str) -> list[str]:
    """Returns a line for each class name that is in more than one split."""
    numbered = format.endswith(" files")  # CSV files, .npz files, ...: a label 0 in each is another class
    splits_of: dict[str, list[str]] = defaultdict(list)
    for split, classes in splits.items():
        for name in classes:
            if not (numbered and name.isdecimal()):
                splits_of[name].append(split)
    return [f"class {name!r} is in {' and in '.join(where)}" for name, where in splits_of.items() if len(where) > 1]


def same_images(splits: Classes) -> dict[str, list[str]]:
    """Returns a line for each image with the pixels of one in an earlier split, or earlier in its own, by kind."""
    classes = [(split, images) for split, names in splits.items() for images in names.values()]
    ends = np.cumsum([len(images.digests) for _, images in classes])
    lines: dict[str, list[str]] = {"shared_images": [], "repeated_images": []}
    if not classes:
        return lines
    keys = keys_of(np.concatenate([images.digests for _, images in classes]))
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    first_of: dict[int, dict[str, str]] = defaultdict(dict)  # group -> split -> the first image of the group there
    for row in np.flatnonzero(sizes[group] > 1):
        number = int(np.searchsorted(ends, row, "right"))
        split, images = classes[number]
        where, first = images.where(int(row) - int(ends[number]) + len(images.digests)), first_of[int(group[row])]
        if split in first:
            lines["repeated_images"].append(f"{where}: the same image as {first[split]}")
        elif first:
            earlier = next(iter(first))
            lines["shared_images"].append(f"{where}: the same image as {first[earlier]} in {earlier}")
        first.setdefault(split, where)
    return lines


def keys_of(digests: np.ndarray) -> np.ndarray:
    """Returns digests, uint8 [n, 16], as [n] values that NumPy can compare and sort."""
    return np.ascontiguousarray(digests, np.uint8).view("V16").reshape(-1)


def repeats(digests: np.ndarray) -> np.ndarray:
    """Returns the positions of digests, uint8 [n, 16], that occur earlier as well: int [m], ascending."""
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

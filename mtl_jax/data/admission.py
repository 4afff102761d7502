"""Whether figures may be made from a data set: not where classes or images overlap, unless a paper published it so."""

import dataclasses
from collections.abc import Sequence

from mtl_jax.data import facts, overlaps
from mtl_jax.data.cache.writer import fingerprint
from mtl_jax.data.dataset import Dataset, Overlap
from mtl_jax.data.overlaps import KINDS, Classes
from mtl_jax.errors import DataError

WORDS = {
    "shared_classes": ("class stands", "classes stand", "in more than one split"),
    "shared_images": ("image stands", "images stand", "in more than one split"),
    "repeated_images": ("image stands", "images stand", "twice in a split"),
}
FEW = 0.01  # of the images: no published set that is known by its sizes has more copies


def admitted(dataset: Dataset, allowed: Sequence[str], place: str) -> Dataset:
    """Returns a data set as figures may be made from it.

    Of images that are the same in a split, tasks draw the first alone, so support and query never share an image's
    pixels. A published set stays as it is, with its few copies: all figures on it are made so.

    Raises:
        DataError: it has overlaps of kinds that are not `allowed`, and they are not the published set's.
    """
    classes = overlaps.by_class(dataset.splits)
    turned = any(overlaps.is_turned(name, names) for names in classes.values() for name in names)
    if not (dataset.overlaps or turned) or is_published(dataset.name, dataset.format, classes, dataset.overlaps):
        return dataset
    said = {kind: sentence(kind, overlap) for kind, overlap in dataset.overlaps.items()}
    refused = [kind for kind in said if kind not in allowed]
    if refused:
        needed = ",".join(said)
        raise DataError(
            f"{place or dataset.name}: {'; '.join(said[kind] for kind in refused)}. Mend the data (python -m "
            f"mtl_jax.data check lists more), or let it through with --allow={needed} (data.allow={needed})"
        )
    splits = {
        name: dataclasses.replace(split, repeats=overlaps.repeats(split.digests))
        for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits, caveats=tuple(said.values()))


def sentence(kind: str, overlap: Overlap) -> str:
    """Returns what is said beside a figure."""
    one, several, where = WORDS[kind]
    return f"{overlap.count} {one if overlap.count == 1 else several} {where} ({overlap.lines[0]})"


def parse(text: str) -> tuple[str, ...]:
    """Returns the kinds that a text allows, with commas between. Raises DataError for what is none."""
    kinds = tuple(kind.strip() for kind in text.split(",") if kind.strip())
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise DataError(f"data.allow: {unknown[0]!r} is unknown; it is one or more of {','.join(KINDS)}")
    return kinds


def is_published(name: str, format: str, classes: Classes, found: dict[str, Overlap]) -> bool:
    """Returns whether these are the images that a paper has published, whose copies belong to the set.

    They are known by the fingerprint and as ILSVRC2012's own files. Another decoder or format gives other pixels: then,
    where copies are few, by mini-ImageNet's file names or the number of images of every class.

    Args:
        name: what was asked for.
        format: the source's.
        classes: the images.
        found: their overlaps.
    """
    if format.startswith("ILSVRC2012"):
        return True
    plain = overlaps.unturned(classes)
    rows = {split: [images.digests for images in names.values()] for split, names in plain.items()}
    if fingerprint(rows) in facts.known_fingerprints():
        return True
    each = [(class_name, images) for names in plain.values() for class_name, images in names.items()]
    copies = sum(found[kind].count for kind in found if kind != "shared_classes")
    if "shared_classes" in found or copies > FEW * sum(len(images.digests) for _, images in each):
        return False
    name = name.removeprefix("tfds:")
    if all(facts.is_published_size(name, class_name, len(images.digests)) for class_name, images in each):
        return True
    return name == "miniimagenet" and _is_listed(each)


def _is_listed(each: Sequence[tuple[str, overlaps.ClassImages]]) -> bool:
    """Returns whether all images have names on mini-ImageNet's list, each once."""
    files = [images.file(i) for _, images in each for i in range(len(images.digests))]
    return facts.listed(files) == len(files) == len(set(map(facts.stem, files)))

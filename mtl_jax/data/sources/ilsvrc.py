"""mini-ImageNet and tieredImageNet from ILSVRC2012: its train tar, or that unpacked to a tar or a folder a class.

Nothing is unpacked here: the train tar holds uncompressed tars, one a class, so an image is a range of bytes of the one
file. Images are squashed to a square by `Image.LANCZOS`, 84 x 84 unless another size is asked for: so was the published
mini-ImageNet made.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.data import facts
from mtl_jax.data.layouts.ilsvrc_files import IMAGE, AllClasses, ClassFiles, Range, Ranges, find
from mtl_jax.data.source import Contents, Source
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError
from mtl_jax.words import counted

NAMES = ("miniimagenet", "tieredimagenet")
SIZE = 84


def source(name: str, path: Path) -> Source | None:
    """Returns the source if `name` is made of ILSVRC2012 and its train images are at `path`, else None.

    Raises:
        DataError: classes that the data set needs are missing or lack images, or a tar is damaged.
    """
    if name not in NAMES:
        return None
    splits = facts.class_splits(name)
    wanted = {class_name for names in splits.values() for class_name in names}
    kind_and_classes = find(path, wanted)
    if kind_and_classes is None:
        return None
    kind, classes = kind_and_classes
    missing = sorted(wanted - set(classes))
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the {len(wanted)} classes of {name} are missing, such as {missing[0]}; "
            "download the train images of ILSVRC2012 again"
        )
    if kind == "class folders":  # files get lost from folders; tars are checked later, when their headers are read
        for class_name in sorted(wanted):
            whole(class_name, classes[class_name])
    stamps = {stamp for class_name in wanted for stamp in classes[class_name].stamps()}
    return Source(
        f"ILSVRC2012 {kind}",
        sorted(stamps),
        lambda _: read(name, classes),
        str(path),
        settle=settled,
        resumable=True,
    )


def settled(transform: Transform) -> Transform:
    """Returns how its images are stored: squashed to 84 x 84, the few in CMYK converted, none turned as EXIF says."""
    size = transform.image_size or SIZE
    return dataclasses.replace(transform, image_size=size, convert=True, upright=False, squash=not transform.resize)


def read(name: str, classes: AllClasses) -> Contents:
    """Returns the splits of a data set: 600 listed images of each class of mini-ImageNet, all of tieredImageNet's."""
    if name == "miniimagenet":
        return {
            split: {
                class_name: Ranges(classes[class_name].path, pick(class_name, classes[class_name], numbers))
                for class_name, numbers in sorted(lists.items())
            }
            for split, lists in facts.miniimagenet().items()
        }
    return {
        split: {
            class_name: Ranges(classes[class_name].path, whole(class_name, classes[class_name]))
            for class_name in sorted(names)
        }
        for split, names in facts.class_splits(name).items()
    }


def pick(class_name: str, files: ClassFiles, numbers: Sequence[int]) -> Sequence[Range]:
    """Returns the images of a class with the listed numbers: 1 is the first in the order of `in_order`."""
    images = whole(class_name, files)
    return [images[number - 1] for number in numbers]


def whole(class_name: str, files: ClassFiles) -> Sequence[Range]:
    """Returns the images of a class in order; raises DataError unless they are as many as in ILSVRC2012.

    mini-ImageNet lists images by their position, so one too few or too many would shift all that follow it.
    """
    images, expected = in_order(files.images()), facts.ilsvrc_images(class_name)
    if len(images) != expected:
        raise DataError(
            f"{files.path}: class {class_name} has {counted(len(images), 'image')}, in ILSVRC2012 it has {expected}; "
            "unpack or download its train images again"
        )
    return images


def in_order(images: Sequence[Range]) -> Sequence[Range]:
    """Returns images in the order of the number in their file names, n01532829_36.JPEG before n01532829_9900.JPEG."""
    return sorted(images, key=lambda image: int(IMAGE.fullmatch(image[0].rsplit("/", 1)[-1])[2]))

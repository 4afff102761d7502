"""mini-ImageNet and tieredImageNet from ILSVRC2012: its train tar, or that unpacked to a tar or a folder a class.

Nothing is unpacked here: the train tar holds uncompressed tars, one a class, so an image is a range of bytes of the one
file. Images are squashed to a square by `Image.LANCZOS`, 84 x 84 unless another size is asked for: so was the published
mini-ImageNet made.
"""

import dataclasses
import os
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mtl_jax.data import facts
from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.source import Contents, Source, Stamp
from mtl_jax.data.sources.trees import check_name, stamp
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

NAMES = ("miniimagenet", "tieredimagenet")
SIZE = 84
TRAIN_TAR = "ILSVRC2012_img_train.tar"
FOLDERS = ("", "train", "ILSVRC2012_img_train", "Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/train")
CLASS_TAR = re.compile(r"(?:.*/)?(n\d{8})\.tar")
IMAGE = re.compile(r"(n\d{8})_(\d+)\.JPEG")
BLOCK = 512  # bytes of a block of a tar

Range = tuple[str, int, int]  # file name, first byte, bytes


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The images of one class, each a range of bytes of a tar, or a file of its own where the range is (0, -1)."""

    path: Path  # the tar, or the folder of the files
    ranges: Sequence[Range]
    turns: int = 0

    def __len__(self) -> int:
        return len(self.ranges)

    def name(self, index: int) -> str:
        return self.ranges[index][0]

    def where(self, index: int) -> str:
        return f"{self.path}/{self.ranges[index][0]}"

    def read(self, index: int) -> bytes:
        name, start, size = self.ranges[index]
        try:
            if size < 0:
                return (self.path / name).read_bytes()
            with open(self.path, "rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise CorruptImage(f"{self.where(index)}: cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise CorruptImage(f"{self.where(index)}: the archive ends within it; fetch it again")
        return data


@dataclasses.dataclass(frozen=True)
class ClassFiles:
    """The files of one class.

    path: its tar, or the folder that its folder is in.
    images: lists its images, which may mean reading the headers of a tar.
    stamps: lists the stamps of its files; see `Source`.
    """

    path: Path
    images: Callable[[], Sequence[Range]]
    stamps: Callable[[], Sequence[Stamp]]


AllClasses = Mapping[str, ClassFiles]


def source(name: str, path: Path) -> Source | None:
    """Returns the source if `name` is made of ILSVRC2012 and its train images are at `path`, else None.

    Raises:
        DataError: classes that the data set needs are missing or lack images, or a tar is damaged.
    """
    if name not in NAMES:
        return None
    splits = facts.class_splits(name)
    wanted = {class_name for names in splits.values() for class_name in names}
    kind_and_classes = train_tar(path) or class_tars(path) or class_folders(path, wanted)
    if kind_and_classes is None:
        return None
    kind, classes = kind_and_classes
    missing = sorted(wanted - set(classes))
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the {len(wanted)} classes of {name} are not there, {missing[0]} for one; "
            "fetch the train images of ILSVRC2012 again"
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
            f"{files.path}: class {class_name} has {len(images)} images, in ILSVRC2012 it has {expected}; "
            "unpack or fetch its train images again"
        )
    return images


def in_order(images: Sequence[Range]) -> Sequence[Range]:
    """Returns images in the order of the number in their file names, n01532829_36.JPEG before n01532829_9900.JPEG."""
    return sorted(images, key=lambda image: int(IMAGE.fullmatch(image[0].rsplit("/", 1)[-1])[2]))


def train_tar(path: Path) -> tuple[str, AllClasses] | None:
    """Returns 'train tar' and its classes if `path` is the train tar or the folder that has it, else None."""
    tar = path / TRAIN_TAR if (path / TRAIN_TAR).is_file() else path
    if not tar.is_file() or tar.suffix != ".tar":
        return None
    classes = {}
    try:
        with tarfile.open(tar, "r:") as members:
            for member in (member for member in members if not member.isdir()):
                match = CLASS_TAR.fullmatch(member.name)
                if match is None:
                    return None
                classes[match[1]] = _in_tar(tar, member.offset_data, member.offset_data + member.size)
    except tarfile.TarError as error:
        if not classes:
            return None
        raise DataError(f"{tar}: damaged archive ({error}); fetch it again") from None
    return ("train tar", classes) if classes else None


def _in_tar(tar: Path, start: int, end: int) -> ClassFiles:
    return ClassFiles(tar, lambda: tar_ranges(tar, start, end), lambda: [stamp(tar, tar.parent)])


def class_tars(path: Path) -> tuple[str, AllClasses] | None:
    """Returns 'class tars' and the classes of a folder that has a tar for each, None without any."""
    for root in (path / folder for folder in FOLDERS):
        names = [match[1] for match in map(CLASS_TAR.fullmatch, _list(root)) if match]
        if names:
            tars = {name: root / f"{name}.tar" for name in names}
            return "class tars", {name: _in_tar(tar, 0, tar.stat().st_size) for name, tar in tars.items()}
    return None


def class_folders(path: Path, wanted: set[str]) -> tuple[str, AllClasses] | None:
    """Returns 'class folders' and the wanted classes that have a folder of original JPEGs, None without any."""
    for root in (path / folder for folder in FOLDERS):
        names = sorted(wanted & set(_list(root)))
        if names and any(IMAGE.fullmatch(file) for file in _list(root / names[0])):
            return "class folders", {name: _in_folder(root, name) for name in names}
    return None


def _in_folder(root: Path, name: str) -> ClassFiles:
    def images() -> Sequence[Range]:
        files = [check_name(file, str(root / name)) for file in _list(root / name)]
        return [(f"{name}/{file}", 0, -1) for file in files if IMAGE.fullmatch(file)]

    return ClassFiles(root, images, lambda: [stamp(root / file, root) for file, _, _ in images()])


def _list(folder: Path) -> Sequence[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return ()


def tar_ranges(tar: Path, start: int, end: int) -> Sequence[Range]:
    """Returns the images in the tar of a class, which is the bytes from `start` to `end` of the file `tar`.

    Only the headers are read: each is one block, and the image follows, padded to whole blocks.
    """
    ranges = []
    with open(tar, "rb") as file:
        while start + BLOCK <= end:
            file.seek(start)
            block = file.read(BLOCK)
            if len(block) < BLOCK or not block.strip(b"\0"):
                break
            try:
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise DataError(f"{tar}: damaged archive at byte {start} ({error}); fetch it again") from None
            name = check_name(member.name.rsplit("/", 1)[-1], str(tar))
            if member.isreg() and IMAGE.fullmatch(name):
                ranges.append((name, start + BLOCK, member.size))
            start += BLOCK + -(-member.size // BLOCK) * BLOCK
    return ranges

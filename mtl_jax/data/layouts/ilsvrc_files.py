"""Where the train images of ILSVRC2012 lie: in its train tar, or unpacked to a tar or a folder a class.

Nothing is unpacked here: the train tar holds uncompressed tars, one a class, so an image is a range of bytes of the one
file.
"""

import dataclasses
import os
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.files.names import split_of
from mtl_jax.data.source import Stamp
from mtl_jax.data.sources.trees import check_name, ignored, stamp
from mtl_jax.errors import DataError

TRAIN_TAR = "ILSVRC2012_img_train.tar"
FOLDERS = ("", "train", "ILSVRC2012_img_train", "Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/train")
CLASS_TAR = re.compile(r"(?:.*/)?(n\d{8})\.tar")
IMAGE = re.compile(r"(n\d{8})_(\d+)\.JPEG")
DEPTH, MANY = 2, 50  # levels above ILSVRC2012 that a path may name, and folders that are looked into on each
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
            raise CorruptImage(f"{self.where(index)}: the archive ends within it; download it again")
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


def find(path: Path, wanted: set[str]) -> tuple[str, AllClasses] | None:
    """Returns how the train images lie at a path or up to `DEPTH` levels below it, and their classes; else None.

    Args:
        path: a folder, or the train tar.
        wanted: classes that are looked for; there may be others.

    Raises:
        DataError: several folders have them, or a tar is damaged.
    """
    return in_folder(path, wanted) or below(path, wanted)


def in_folder(path: Path, wanted: set[str]) -> tuple[str, AllClasses] | None:
    """Returns how the train images lie in a folder, or are this tar, and the classes; None without any."""
    return train_tar(path) or class_tars(path) or class_folders(path, wanted)


def below(path: Path, wanted: set[str]) -> tuple[str, AllClasses] | None:
    """Returns the same of the one folder that has them, one or two levels below `path`.

    Raises:
        DataError: several have.
    """
    level = [path]
    for _ in range(DEPTH):
        level = [folder / name for folder in level for name in sorted(_list(folder))[:MANY] if not ignored(name)]
        held = {folder: in_folder(folder, wanted) for folder in level if folder.is_dir()}
        held = {folder: kind_and_classes for folder, kind_and_classes in held.items() if kind_and_classes}
        if len(held) > 1:
            one, other = list(held)[:2]
            raise DataError(f"{path}: both {one} and {other} have images of ILSVRC2012; name one of them")
        if held:
            return next(iter(held.values()))
    return None


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
        raise DataError(f"{tar}: damaged archive ({error}); download it again") from None
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
        if names and _has_images(root / names[0]) and not _is_split(root, wanted.difference(names)):
            return "class folders", {name: _in_folder(root, name) for name in names}
    return None


def _has_images(folder: Path) -> bool:
    return any(IMAGE.fullmatch(file) for file in _list(folder))


def _is_split(root: Path, missing: Set[str]) -> bool:
    """Returns whether classes lie in a split folder beside `root`: a few-shot split with the original file names."""
    beside = [root.parent / name for name in _list(root.parent) if name != root.name and split_of(name)]
    return any(_has_images(folder / name) for folder in beside for name in sorted(missing)[:MANY])


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
                raise DataError(f"{tar}: damaged archive at byte {start} ({error}); download it again") from None
            name = check_name(member.name.rsplit("/", 1)[-1], str(tar))
            if member.isreg() and IMAGE.fullmatch(name):
                ranges.append((name, start + BLOCK, member.size))
            start += BLOCK + -(-member.size // BLOCK) * BLOCK
    return ranges

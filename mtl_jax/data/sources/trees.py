"""A folder and an archive as the same thing, a tree: relative file names, and a function that reads one file."""

import dataclasses
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from mtl_jax.data.damage import START, image_kind
from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.source import Contents, Source, Stamp
from mtl_jax.errors import DataError

MAX_FILE = 1 << 30  # bytes; nothing that is read whole is larger
IGNORED = ("thumbs.db", "desktop.ini", "__macosx")
USUAL = (".jpg", ".jpeg", ".png")  # files so called are read whole, others after their first bytes show an image


@dataclasses.dataclass(frozen=True)
class Tree:
    """The files under a folder or in an archive, without hidden ones, Thumbs.db and the like.

    path: the folder or archive, for messages.
    files: relative POSIX paths, sorted.
    read: (relative path, number of bytes = -1) -> the file's bytes, or so many at its beginning.
    stamps: see `Source`.
    empty: folders with nothing in them.
    """

    path: str
    files: Sequence[str]
    read: Callable[..., bytes]
    stamps: Sequence[Stamp]
    empty: Sequence[str] = ()

    def where(self, file: str) -> str:
        return f"{self.path}/{file}"

    def has_image(self, file: str) -> bool:
        """Returns whether a file holds an image, whatever it is called."""
        return image_kind(self.read(file, START)) is not None

    def source(self, format: str, read: Callable[[Path], Contents]) -> Source:
        """Returns the data set in this tree; see `Source`."""
        return Source(format, self.stamps, read, self.path)


@dataclasses.dataclass(frozen=True)
class TreeImages:
    """Images of one class that are files of a tree."""

    tree: Tree
    files: Sequence[str]
    turns: int = 0

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index]

    def where(self, index: int) -> str:
        return self.tree.where(self.files[index])

    def read(self, index: int) -> bytes:
        file = self.files[index]
        whole = file.lower().endswith(USUAL) or self.tree.has_image(file)  # a video is not read to be refused
        return self.tree.read(file) if whole else self.tree.read(file, START)


def unwrapped(tree: Tree, keep: Callable[[str], object]) -> Tree:
    """Returns a tree without the folder around all its files that archives often have, unless `keep` of its name."""
    while tree.files:
        top = tree.files[0].split("/", 1)[0]
        if keep(top) or not all(file.startswith(f"{top}/") for file in (*tree.files, *tree.empty)):
            return tree
        tree = _below(tree, top)
    return tree


def _below(tree: Tree, top: str) -> Tree:
    def cut(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name[len(top) + 1 :] for name in names)

    def read(file: str, size: int = -1) -> bytes:
        return tree.read(f"{top}/{file}", size)

    return Tree(f"{tree.path}/{top}", cut(tree.files), read, tree.stamps, cut(tree.empty))


def stamp(path: Path, root: Path) -> Stamp:
    """Returns the stamp of a file below `root`: it changes where the file does."""
    status = path.stat()
    return path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns


def folder_tree(root: Path) -> Tree:
    """Returns the files under a folder. Links are followed.

    Raises:
        DataError: a link leads nowhere or back to a folder above, something cannot be listed, or is not a file.
    """
    stamps: list[Stamp] = []
    empty: list[str] = []
    _walk(str(root), "", stamps, empty, frozenset())
    stamps.sort()

    def read(file: str, size: int = -1) -> bytes:
        try:
            with open(f"{root}/{file}", "rb", buffering=0) as opened:
                if size < 0 and (whole := os.fstat(opened.fileno()).st_size) > MAX_FILE:
                    raise CorruptImage(
                        f"{root}/{file}: {whole} bytes are more than an image can have; move it elsewhere"
                    )
                return opened.read(size)
        except OSError as error:
            raise CorruptImage(f"{root}/{file}: cannot be read ({error.strerror})") from None

    return Tree(str(root), tuple(name for name, _, _ in stamps), read, stamps, sorted(empty))


def _walk(root: str, below: str, stamps: list[Stamp], empty: list[str], above: frozenset[tuple[int, int]]) -> None:
    """Adds the files and the empty folders under `root/below`; `above` identifies the folders on the way there."""
    try:
        here = os.stat(os.path.join(root, below))
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            raise DataError(f"{root}/{below}: the link leads back to a folder above it; move it elsewhere")
        with os.scandir(os.path.join(root, below)) as entries:
            listed = [entry for entry in entries if not ignored(entry.name)]
    except OSError as error:
        raise DataError(f"{root}/{below}: cannot be listed ({error.strerror})") from None
    if not listed:
        empty.append(below)
    for entry in listed:
        file = check_name(f"{below}/{entry.name}" if below else entry.name, root)
        if entry.is_dir():
            _walk(root, file, stamps, empty, above | {identity})
        else:
            stamps.append((file, *_size_and_time(entry, f"{root}/{file}")))


def _size_and_time(entry: os.DirEntry, where: str) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        raise DataError(
            f"{where}: a link to nothing ({os.readlink(entry.path)}); fix it, or move it elsewhere"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{where}: not a regular file; move it elsewhere")
    return status.st_size, status.st_mtime_ns


def ignored(name: str) -> bool:
    """Returns whether a name is that of a hidden file, or of one that a file manager leaves behind."""
    return name.startswith(".") or name.lower() in IGNORED


def check_name(file: str, path: str) -> str:
    """Returns the name of a file in the folder or archive `path`; raises DataError where it is not UTF-8."""
    try:
        file.encode("utf-8")
    except UnicodeEncodeError:
        raw = file.encode("utf-8", "surrogateescape")
        raise DataError(f"{path}: the file name {raw!r} is not UTF-8; rename it") from None
    return file

"""Files under a folder or in an archive, seen as one thing: relative names and a way to read each."""

import dataclasses
import os
import stat
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.source import Stamp
from mtl_jax.errors import DataError

IGNORED = ("thumbs.db", "desktop.ini", "__macosx")


@dataclasses.dataclass(frozen=True)
class Tree:
    """The files under a folder or in an archive; hidden ones, Thumbs.db and the like are left out.

    place: the folder or archive, for messages.
    files: relative POSIX paths, sorted.
    read: the bytes of one of them.
    stamps: see `Source`.
    empty: folders with nothing in them.
    """

    place: str
    files: Sequence[str]
    read: Callable[[str], bytes]
    stamps: Sequence[Stamp]
    empty: Sequence[str] = ()

    def where(self, file: str) -> str:
        return f"{self.place}/{file}"


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
        return self.tree.read(self.files[index])


def unwrapped(tree: Tree, named: Container[str]) -> Tree:
    """Returns a tree without the folders that all its files are in, as archives often have, but for those `named`."""
    while tree.files:
        top = tree.files[0].split("/", 1)[0]
        if top.lower() in named or not all(file.startswith(f"{top}/") for file in (*tree.files, *tree.empty)):
            return tree
        tree = _below(tree, top)
    return tree


def _below(tree: Tree, top: str) -> Tree:
    def cut(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name[len(top) + 1 :] for name in names)

    return Tree(
        f"{tree.place}/{top}", cut(tree.files), lambda file: tree.read(f"{top}/{file}"), tree.stamps, cut(tree.empty)
    )


def stamp(path: Path, root: Path) -> Stamp:
    """Returns what the cache's key has to know about one file."""
    status = path.stat()
    return path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns


def folder_tree(root: Path) -> Tree:
    """Returns the files under a folder; links to files and folders are followed, dangling ones are an error."""
    stamps: list[Stamp] = []
    empty: list[str] = []
    _walk(str(root), "", stamps, empty, frozenset())
    stamps.sort()

    def read(file: str) -> bytes:
        try:
            with open(f"{root}/{file}", "rb", buffering=0) as opened:
                return opened.read()
        except OSError as error:
            raise CorruptImage(f"{root}/{file}: cannot be read ({error.strerror})") from None

    return Tree(str(root), tuple(name for name, _, _ in stamps), read, stamps, sorted(empty))


def _walk(root: str, below: str, stamps: list[Stamp], empty: list[str], above: frozenset[tuple[int, int]]) -> None:
    try:
        here = os.stat(os.path.join(root, below))
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            raise DataError(f"{root}/{below}: the link leads back to a folder above it; remove it")
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
        raise DataError(f"{where}: a link to nothing ({os.readlink(entry.path)}); remove it or mend it") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{where}: not a regular file; remove it")
    return status.st_size, status.st_mtime_ns


def ignored(name: str) -> bool:
    """Returns whether a file or folder of this name is never data: hidden, or a file manager's own."""
    return name.startswith(".") or name.lower() in IGNORED


def check_name(file: str, place: str) -> str:
    """Returns a relative path; raises DataError where it is not UTF-8."""
    try:
        file.encode("utf-8")
    except UnicodeEncodeError:
        raw = file.encode("utf-8", "surrogateescape")
        raise DataError(f"{place}: the file name {raw!r} is not UTF-8; rename it") from None
    return file

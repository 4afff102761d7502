"""Tar and zip archives as trees of files. Nothing is unpacked: members are read in place."""

import io
import os
import stat
import tarfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from mtl_jax.data.damage import DAMAGE
from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.sources.trees import MAX_FILE, Tree, check_name, folder_tree, ignored, stamp
from mtl_jax.errors import DataError

MAX_MEMBER = MAX_FILE
FOLDER = 0x10  # the attribute of MS-DOS
UTF8 = 0x800  # the flag of a zip's member whose name is UTF-8
MAX_COMPRESSED = 1 << 31  # bytes, uncompressed, of a compressed tar, which is held in memory


def open_tree(path: str | Path) -> Tree:
    """Returns the tree of a folder, a tar (also compressed) or a zip.

    Raises:
        DataError: nothing is there, it is something else or damaged, or a member's name or kind is refused.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return folder_tree(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; data.path must name the data set")
    if _is_tar(path):  # first, since a tar with an .npz at its end looks like a zip
        return tar_tree(path)
    if zipfile.is_zipfile(path):
        return zip_tree(path)
    raise DataError(f"{path}: neither a folder nor a tar or zip archive; data.path must name one")


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except DAMAGE as error:
        raise DataError(f"{path}: damaged archive ({error}); download it again") from None


def safe_member(name: str, path: str) -> str | None:
    """Returns a member's relative path, None to ignore it; raises DataError if it leads outside."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or name.startswith(("/", "\\")) or (parts and ":" in parts[0]):
        raise DataError(f"{path}: the member {name!r} leads outside of the archive; do not use this file")
    if not parts or any(ignored(part) for part in parts):
        return None
    return check_name("/".join(parts), path)


def check_member_size(size: int, file: str, path: str) -> None:
    """Raises DataError for a member too large to be an image or a batch of CIFAR-100."""
    if size > MAX_MEMBER:
        raise DataError(
            f"{path}: the member {file!r} has {size} bytes, more than an image can have; unpack the archive"
        )


def tar_tree(path: Path) -> Tree:
    """Returns the regular files of a tar. A compressed one is held in memory, so it must be small; see `open_tree`."""
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
            compressed = not isinstance(tar.fileobj, io.BufferedReader | io.FileIO)
            blobs, total = {}, 0
            for member in tar:
                file = _tar_file(member, str(path))
                if file is None:
                    continue
                members[file] = (member.offset_data, member.size)
                total += member.size
                if compressed and total > MAX_COMPRESSED:
                    raise DataError(f"{path}: too large to be read compressed; uncompress it to a plain .tar first")
                if compressed:
                    blobs[file] = tar.extractfile(member).read()
            _check_end(tar)
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path}: damaged archive ({error}); download it again") from None
    read = _blob_reader(blobs) if compressed else _range_reader(path, members)
    return Tree(str(path), tuple(sorted(members)), read, [stamp(path, path.parent)])


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError unless the block of zeros that marks the end follows the last member.

    tarfile takes a damaged header, or the end of a file that was cut between two members, for the end of the archive.
    A compressed archive is read to its end, where the decompressor compares the checksum.
    """
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends without the mark of its end, or a member's header is damaged")
    if not isinstance(tar.fileobj, io.BufferedReader | io.FileIO):
        while tar.fileobj.read(1 << 20):
            pass


def _tar_file(member: tarfile.TarInfo, path: str) -> str | None:
    """Returns the relative path of a regular file, None for files to ignore; raises DataError for other kinds."""
    file = safe_member(member.name, path)
    if file is None or member.isdir():
        return None
    if not member.isreg():
        raise DataError(f"{path}: the member {member.name!r} is a link or a device; unpack the archive yourself")
    check_member_size(member.size, file, path)
    return file


def _blob_reader(blobs: Mapping[str, bytes]) -> Callable[..., bytes]:
    def read(file: str, size: int = -1) -> bytes:
        return blobs[file] if size < 0 else blobs[file][:size]

    return read


def _range_reader(path: Path, members: Mapping[str, tuple[int, int]]) -> Callable[..., bytes]:
    """Returns a function that reads a member, given each one's first byte and size in the tar."""
    descriptor = os.open(path, os.O_RDONLY)

    def read(file: str, size: int = -1) -> bytes:
        offset, whole = members[file]
        wanted = whole if size < 0 else min(size, whole)
        data = os.pread(descriptor, wanted, offset)
        if len(data) != wanted:
            raise CorruptImage(f"{path}/{file}: the archive ends within it; download it again")
        return data

    weakref.finalize(read, os.close, descriptor)
    return read


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Returns a member's name; macOS writes UTF-8 without the flag that says so."""
    if info.flag_bits & UTF8 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _is_zip_folder(info: zipfile.ZipInfo) -> bool:
    """Returns whether a member is a folder, also where Windows has written it, with a backslash at its end."""
    return info.filename.endswith(("/", "\\")) or (not info.file_size and bool(info.external_attr & FOLDER))


def zip_tree(path: Path) -> Tree:
    """Returns the files of a zip; see `open_tree`."""
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise DataError(f"{path}: damaged archive ({error}); download it again") from None
    members, size = {}, path.stat().st_size
    for info in archive.infolist():
        file = safe_member(_zip_name(info), str(path))
        if file is None or _is_zip_folder(info):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{path}: the member {info.filename!r} is a link; unpack the archive yourself")
        check_member_size(info.file_size, file, str(path))
        if info.compress_size > size:
            raise DataError(f"{path}: damaged archive (the member {file!r} is larger than it); download it again")
        members[file] = info
    lock = threading.Lock()

    def read(file: str, size: int = -1) -> bytes:
        try:
            with lock, archive.open(members[file]) as opened:
                return opened.read(size)
        except DAMAGE as error:
            raise CorruptImage(f"{path}/{file}: damaged member ({error}); download the archive again") from None

    return Tree(str(path), tuple(sorted(members)), read, [stamp(path, path.parent)])

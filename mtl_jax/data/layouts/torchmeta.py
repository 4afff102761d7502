"""What torchmeta has prepared: images in HDF5, and for each split the names of its classes as JSON.

Either SPLIT_data.hdf5 lies beside SPLIT_labels.json, its classes in the group `datasets` (mini-ImageNet,
tieredImageNet, CUB), or one data.hdf5 lies beside or above them, its classes in groups by alphabet or super-class
(Omniglot, CIFAR-FS, FC100). The images of a class are one array of uint8, or one encoded image an entry.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.damage import DAMAGE, looks_like
from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.files import text
from mtl_jax.data.files.names import split_of_list, split_of_words, stem_of, suffix_of
from mtl_jax.data.source import Contents, Images, Source
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

SUFFIXES = (".hdf5", ".h5")
GROUP = "datasets"
MAX_CHUNK = 1 << 28  # bytes that are decompressed at once
MAX_RATIO = 1100  # of bytes to compressed bytes; deflate reaches 1032
FILTERS = (1, 2, 3, 4, 32000)  # deflate, shuffle, Fletcher's check sum, szip, LZF: those that need no plugin

SplitFiles = Mapping[str, tuple[str, str]]  # split -> HDF5, JSON


@dataclasses.dataclass(frozen=True)
class Entries:
    """Images of one class that are entries of a data set in HDF5."""

    dataset: Any
    path: str
    turns: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return ""

    def where(self, index: int) -> str:
        return f"{self.path}{self.dataset.name}, image {index}"

    def read(self, index: int) -> bytes | np.ndarray:
        try:
            entry = self.dataset[index]
        except DAMAGE as error:
            raise CorruptImage(f"{self.where(index)}: damaged ({error}); download the file again") from None
        return entry.tobytes() if entry.ndim == 1 else entry


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if torchmeta's files are there, else None.

    Raises:
        DataError: there are those of several data sets, and none is called `name`.
    """
    groups = find(tree)
    if not groups:
        return None
    most = max(map(len, groups.values()))
    best = [key for key, files in groups.items() if len(files) == most]
    named = [key for key in best if _plain(name) in map(_plain, key.split("/"))]
    if len(named or best) > 1:
        one, other = (named or best)[:2]
        raise DataError(
            f"{tree.path}: has lists of classes in {one or 'it'} and in {other}; set data.name to the one meant"
        )
    files = groups[(named or best)[0]]
    return tree.source("HDF5 of torchmeta", lambda _: read(tree, files))


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def find(tree: Tree) -> Mapping[str, SplitFiles]:
    """Returns the files of each data set: folder (and the beginning of the files' names) -> split -> files."""
    files = {file.lower(): file for file in tree.files}
    groups: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for file in tree.files:
        stem = stem_of(file).removesuffix("_labels")
        split = split_of_list(f"{stem}.")
        if suffix_of(file) != ".json" or stem == stem_of(file) or split is None:
            continue
        folder = file.rpartition("/")[0]
        places = (f"{folder}/{stem}_data", f"{folder}/data", f"{folder.rpartition('/')[0]}/data")
        names = (f"{place.lstrip('/')}{suffix}".lower() for place in places for suffix in SUFFIXES)
        held = next((files[name] for name in names if name in files), None)
        if held:
            words = split_of_words(stem)[1] if split_of_words(stem)[0] else ""
            groups["/".join(filter(None, (folder, words)))].setdefault(split, (held, file))
    return groups


def read(tree: Tree, files: SplitFiles) -> Contents:
    """Returns the classes of each split.

    Raises:
        DataError: h5py is missing, a file is damaged or has something else, or the tree is an archive.
    """
    if not Path(tree.path).is_dir():
        raise DataError(f"{tree.path}: HDF5 is not read from archives; unpack it and name the folder")
    try:
        import h5py
    except ImportError:
        raise DataError(f"{tree.path}: HDF5 needs h5py, which is not installed; pip install h5py") from None
    opened: dict[str, Any] = {}
    contents = {}
    try:
        for split, (held, labels) in files.items():
            if held not in opened:
                opened[held] = _open(h5py, Path(tree.path) / held)
            contents[split] = _classes(h5py, opened[held], tree.where(held), _names(tree, labels))
    except DataError:
        for file in opened.values():
            file.close()
        raise
    return contents


def _open(h5py: Any, path: Path) -> Any:
    try:
        return h5py.File(path, "r", locking=False)  # it may lie where nothing can be locked
    except DAMAGE as error:
        with open(path, "rb") as file:
            content = looks_like(file.read(512))
        raise DataError(f"{path}: not a readable HDF5 file ({error}) but {content}; download it again") from None


def _names(tree: Tree, file: str) -> Mapping[str, str]:
    """Returns class -> its path in HDF5. A list's entry is a name, or the names of the groups and of the class."""
    path = tree.where(file)
    content = text.decode(tree.read(file), path)
    held = text.parse_json(content, path)
    names: dict[str, str] = {}
    for entry in held if isinstance(held, list) else [None]:
        parts = [entry] if isinstance(entry, str) else entry
        if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part for part in parts):
            raise DataError(f"{path}: not a list of classes ({entry!r:.40}); prepare the data again")
        names["/".join(parts[1:] or parts)] = "/".join(parts)
    return names


def _classes(h5py: Any, file: Any, path: str, names: Mapping[str, str]) -> Mapping[str, Images]:
    classes = {}
    for name in sorted(names):
        try:
            dataset = _dataset(h5py, file, names[name], path)
        except DataError:
            raise
        except DAMAGE as error:
            raise DataError(f"{path}: damaged at class {name!r} ({error}); download it again") from None
        classes[name] = Entries(dataset, path)
    return classes


def _dataset(h5py: Any, file: Any, name: str, path: str) -> Any:
    """Returns a class's data set after checking that it is in the file itself, and as large as it says."""
    group = file[GROUP] if isinstance(file.get(GROUP, getlink=True), h5py.HardLink) else file
    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise DataError(f"{path}: class {name!r} is not there; prepare the data again")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path}: class {name!r} is a link; copy what it leads to into the file")
        group = group[part]
    if not isinstance(group, h5py.Dataset) or group.external or group.is_virtual:
        raise DataError(f"{path}: class {name!r} has no images in the file itself; prepare the data again")
    encoded = h5py.check_vlen_dtype(group.dtype) == np.uint8
    plain = group.dtype == np.uint8 and (group.ndim == 3 or (group.ndim == 4 and group.shape[3] in (1, 3)))
    if not (plain or (encoded and group.ndim == 1)):
        raise DataError(
            f"{path}: class {name!r} is {group.dtype} {list(group.shape)}; expected uint8 [N, H, W] or [N, H, W, 3], "
            "or encoded images"
        )
    _check_size(group, name, path)
    if encoded:
        _check_heap(group, name, path)
    return group


def _check_size(dataset: Any, name: str, path: str) -> None:
    """Raises DataError where a data set says that it is larger than its bytes in the file can be."""
    layout = dataset.id.get_create_plist()
    filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
    if strange := [number for number in filters if number not in FILTERS]:
        raise DataError(f"{path}: class {name!r} has the filter {strange[0]}, which needs a plugin; save it without")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = min(dataset.id.get_storage_size(), Path(dataset.file.filename).stat().st_size)
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    if size > stored * (MAX_RATIO if filters else 1) + chunk or chunk > MAX_CHUNK:
        raise DataError(f"{path}: class {name!r} says that it has {size} bytes, and has {stored}; download it again")


def _check_heap(dataset: Any, name: str, path: str) -> None:
    """Raises DataError where encoded images lie in a damaged heap, in which the HDF5 library may search for ever.

    An entry is a length, the address of a collection, and a number in it; a collection is a chain of objects.
    """
    offset = dataset.id.get_offset()
    entry = np.dtype([("bytes", "<u4"), ("address", "<u8"), ("index", "<u4")])
    with open(dataset.file.filename, "rb") as file:
        file.seek(offset or 0)
        raw = file.read(len(dataset) * entry.itemsize) if offset else b""
        entries = np.frombuffer(raw[: len(raw) // entry.itemsize * entry.itemsize], entry)
        whole = len(entries) == len(dataset) and all(_is_whole(file, int(a)) for a in np.unique(entries["address"]))
    if not whole:
        raise DataError(f"{path}: class {name!r} has images in a damaged heap, or in chunks; prepare the data again")


def _is_whole(file: Any, address: int) -> bool:
    """Returns whether a collection's chain of objects ends where the collection does."""
    size_of_file = file.seek(0, 2)
    if not 0 < address < size_of_file:
        return False
    file.seek(address)
    head = file.read(16)
    place, end = address + 16, address + int.from_bytes(head[8:16], "little")
    if head[:4] != b"GCOL" or end > size_of_file:
        return False
    while place + 16 <= end:
        file.seek(place)
        head = file.read(16)
        size = int.from_bytes(head[8:16], "little")
        if not int.from_bytes(head[:2], "little"):  # the free space at the end
            return place + size == end
        place += 16 + -(-size // 8) * 8
    return place <= end

"""Array files: .pkl, .pickle, .npz and .npy, one or two a split.

Arrays are memory-mapped: a .npy and an uncompressed member of an .npz in place, a compressed member after it was
inflated into the scratch folder. Only a pickle is loaded whole.
"""

import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mtl_jax.data.damage import DAMAGE, looks_like
from mtl_jax.data.files.names import splits_of_files, stem_of, suffix_of
from mtl_jax.data.source import Contents, Images, Source
from mtl_jax.data.sources import arrays, safe_pickle
from mtl_jax.data.sources.splitting import Splitting, split_classes
from mtl_jax.data.sources.trees import Tree, stamp
from mtl_jax.errors import DataError

SUFFIXES = (".pkl", ".pickle", ".npz", ".npy")
# Two of the pickles called miniImageNet_category_split_* are not a split: they hold further training images.
OTHER_PHASES = re.compile(r"train_phase_(val|test)\.")
PART = re.compile(r"(?P<rest>.+)[-_](?P<part>images|labels)(?:_png)?", re.IGNORECASE)

SplitFiles = Mapping[str, Mapping[str, str]]  # split -> 'whole', 'images' or 'labels' -> file


def source(tree: Tree, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if array files named by split lie at the top, else None."""
    files = find(tree)
    if not files:
        return None
    suffixes = {Path(parts.get("whole") or parts.get("images", "")).suffix for parts in files.values()}
    format = f"{' and '.join(sorted(suffixes))} files"
    return tree.source(format, lambda scratch: read(tree, files, name, scratch))


def source_of_file(path: Path, name: str, splitting: Splitting) -> Source | None:
    """Returns the source if `path` is a single array file, whose classes have to be split, else None."""
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        return None
    return Source(
        f"{path.suffix} file",
        [stamp(path, path.parent)],
        lambda scratch: split_classes(read_file(path, scratch), name, splitting, str(path)),
        str(path),
    )


def find(tree: Tree) -> SplitFiles:
    """Returns the array files at the top of a tree; raises DataError where two are the same part of a split."""
    files: dict[str, dict[str, str]] = {}
    names = [file for file in tree.files if "/" not in file and suffix_of(file) in SUFFIXES]
    parts = {file: PART.fullmatch(stem_of(file)) for file in names if not OTHER_PHASES.search(file)}
    split_of_stem = splits_of_files({part["rest"] if part else stem_of(file) for file, part in parts.items()})
    for file, part in parts.items():
        split = split_of_stem.get(part["rest"] if part else stem_of(file))
        role = part["part"].lower() if part else "whole"
        if split is None or (role == "whole" and suffix_of(file) == ".npy"):
            continue
        of_split = files.setdefault(split, {})
        if role in of_split:
            raise DataError(f"{tree.path}: both {of_split[role]} and {file} are the {split} split; keep one of them")
        of_split[role] = file
    return files


def read(tree: Tree, files: SplitFiles, name: str, scratch: Path) -> Contents:
    """Returns the splits in the array files of a folder.

    Args:
        tree: the folder.
        files: see `find`.
        name: of the data set.
        scratch: a folder for what has to be inflated.

    Raises:
        DataError: a file is damaged, holds something else, or lacks its labels; or the tree is an archive.
    """
    if not Path(tree.path).is_dir():
        raise DataError(f"{tree.path}: pickles and arrays are not read from archives; unpack it and name the folder")
    contents = {split: _read_split(Path(tree.path), parts, scratch) for split, parts in files.items()}
    return arrays.name_cifar_classes(name, contents)


def _read_split(root: Path, parts: Mapping[str, str], scratch: Path) -> Mapping[str, Images]:
    if "whole" in parts:
        return read_file(root / parts["whole"], scratch)
    for part, other in (("images", "labels"), ("labels", "images")):
        if part not in parts:
            raise DataError(f"{root / parts[other]}: the file with the {part} is not beside it; put it there")
    images, labels = (open_file(root / parts[part], scratch) for part in ("images", "labels"))
    path = str(root / parts["images"])
    if isinstance(images, Mapping):
        images = arrays.pick(images, arrays.IMAGE_KEYS, path)
    names = None
    if isinstance(labels, Mapping):
        names = arrays.names_in(labels)
        labels = arrays.pick(labels, arrays.LABEL_KEYS, str(root / parts["labels"]))
    return arrays.classes_of(images, labels, path, names)


def read_file(path: Path, scratch: Path) -> Mapping[str, Images]:
    """Returns the classes in a file that has both images and labels."""
    held = open_file(path, scratch)
    if not isinstance(held, Mapping):
        raise DataError(f"{path}: holds {type(held).__name__}, without labels; expected a dict of images and labels")
    return arrays.classes_of_dict(held, str(path))


def open_file(path: Path, scratch: Path) -> Any:
    """Returns the content of an array file: an array, a dict of arrays, or whatever data a pickle holds.

    Raises:
        DataError: it is damaged, cannot be read, or is something else; see `safe_pickle.load` for pickles.
    """
    try:
        if path.suffix.lower() in (".pkl", ".pickle"):
            return arrays.text_keys(safe_pickle.load(path))
        if path.suffix.lower() == ".npz":
            return _open_npz(path, scratch)
        return _open_npy(path, str(path))
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except DAMAGE as error:
        with open(path, "rb") as file:
            content = looks_like(file.read(512))
        raise DataError(
            f"{path}: not a readable {path.suffix} file ({error}) but {content}; download it again"
        ) from None


def _open_npz(path: Path, scratch: Path) -> Mapping[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        return {
            info.filename.removesuffix(".npy"): _open_member(path, archive, info, scratch)
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }


def _open_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, scratch: Path) -> np.ndarray:
    if info.compress_type == zipfile.ZIP_STORED:
        with archive.open(info) as file:
            shape, fortran, dtype = _header(file, f"{path}, {info.filename}")
            offset = _data_offset(path, info) + file.tell()
            while file.read(1 << 20):
                pass  # zipfile compares the checksum at the end of the member; nothing checks a memory map
        order = "F" if fortran else "C"
        if not np.prod(shape):
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", offset, shape, order)
    inflated = scratch / f"{path.name}-{info.header_offset}.npy"
    with archive.open(info) as source, open(inflated, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return _open_npy(inflated, f"{path}, {info.filename}")


def _open_npy(path: Path, where: str) -> np.ndarray:
    with open(path, "rb") as file:
        _header(file, where)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns the shape, whether the order is Fortran's, and the dtype; raises DataError for Python objects."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise DataError(
            f"{where}: an array of Python objects, which NumPy keeps as a pickle; save the images as one uint8 array, "
            "images=np.stack(images), and labels as numbers or texts, labels=np.array(labels.tolist())"
        )
    return shape, fortran, dtype


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Returns where a member's bytes begin: after its local header of 30 bytes, its name and its extra field."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")

"""Finding and opening the array files of a folder: .pkl, .pickle, .npz and .npy, one or two a split.

Arrays are mapped, not loaded: a .npy and a stored member of an .npz where they lie, a compressed member after it was
inflated into the scratch folder. Only a pickle has to be loaded whole.
"""

import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.damage import DAMAGE
from mtl_jax.data.decode import found as what_is
from mtl_jax.data.source import Contents, Images
from mtl_jax.data.sources import arrays, safe_pickle
from mtl_jax.data.sources.trees import Tree
from mtl_jax.errors import DataError

SUFFIXES = (".pkl", ".pickle", ".npz", ".npy")
# Of the pickles called miniImageNet_category_split_*, those of the base classes' other images are not a split.
OTHER_PHASES = re.compile(r"train_phase_(val|test)\.")
WHOLE = re.compile(r"(?:.*[-_])?(?P<split>train|val|test)\.(?:pkl|pickle|npz)")
PARTS = re.compile(r"(?P<split>train|val|test)[-_](?P<part>images|labels)(?:_png)?\.(?:pkl|pickle|npz|npy)")


def find(tree: Tree) -> Mapping[str, Mapping[str, str]]:
    """Returns split -> part ('whole', 'images' or 'labels') -> file, for the array files at the top of a tree."""
    files: dict[str, dict[str, str]] = {}
    for file in tree.files:
        if OTHER_PHASES.search(file):
            continue
        whole, part = WHOLE.fullmatch(file), PARTS.fullmatch(file)
        if not (whole or part):
            continue
        split, name = (part["split"], part["part"]) if part else (whole["split"], "whole")
        here = files.setdefault(split, {})
        if name in here:
            raise DataError(f"{tree.place}: both {here[name]} and {file} are the {split} split; keep one of them")
        here[name] = file
    return files


def read(tree: Tree, files: Mapping[str, Mapping[str, str]], name: str, scratch: Path) -> Contents:
    """Returns the splits of the array files that `find` found; `name` is the data set's."""
    if not Path(tree.place).is_dir():
        raise DataError(f"{tree.place}: pickles and arrays are not read from archives; unpack it and name the folder")
    contents = {split: _read_split(Path(tree.place), parts, scratch) for split, parts in files.items()}
    return arrays.name_cifar_classes(name, contents)


def _read_split(root: Path, parts: Mapping[str, str], scratch: Path) -> Mapping[str, Images]:
    if "whole" in parts:
        return read_file(root / parts["whole"], scratch)
    for part, other in (("images", "labels"), ("labels", "images")):
        if part not in parts:
            raise DataError(f"{root / parts[other]}: the file with the {part} is not beside it; put it there")
    images, labels = (open_file(root / parts[part], scratch) for part in ("images", "labels"))
    place = str(root / parts["images"])
    if isinstance(images, Mapping):
        images = arrays.pick(images, arrays.IMAGE_KEYS, place)
    names = None
    if isinstance(labels, Mapping):
        names = arrays.names_in(labels)
        labels = arrays.pick(labels, arrays.LABEL_KEYS, str(root / parts["labels"]))
    return arrays.classes_of(images, labels, place, names)


def read_file(place: Path, scratch: Path) -> Mapping[str, Images]:
    """Returns the classes of one file that has images and labels."""
    held = open_file(place, scratch)
    if not isinstance(held, Mapping):
        raise DataError(f"{place}: holds {type(held).__name__}, without labels; expected a dict of images and labels")
    return arrays.classes_of_dict(held, str(place))


def open_file(place: Path, scratch: Path) -> Any:
    """Returns the content of an array file: an array, a dict of arrays, or whatever data a pickle holds."""
    try:
        if place.suffix in (".pkl", ".pickle"):
            return arrays.text_keys(safe_pickle.load(place))
        if place.suffix == ".npz":
            return _open_npz(place, scratch)
        return _open_npy(place, str(place))
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror}); make it readable") from None
    except DAMAGE as error:
        with open(place, "rb") as file:
            what = what_is(file.read(512))
        raise DataError(f"{place}: not a readable {place.suffix} file ({error}) but {what}; fetch it again") from None


def _open_npz(place: Path, scratch: Path) -> Mapping[str, np.ndarray]:
    with zipfile.ZipFile(place) as archive:
        return {
            info.filename.removesuffix(".npy"): _open_member(place, archive, info, scratch)
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }


def _open_member(place: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, scratch: Path) -> np.ndarray:
    if info.compress_type == zipfile.ZIP_STORED:
        with archive.open(info) as file:
            shape, fortran, dtype = _header(file, f"{place}, {info.filename}")
            offset = _data_offset(place, info) + file.tell()
            while file.read(1 << 20):
                pass  # to the end, where zipfile compares the check sum: what is mapped has none
        order = "F" if fortran else "C"
        if not np.prod(shape):
            return np.empty(shape, dtype)
        return np.memmap(place, dtype, "r", offset, shape, order)
    inflated = scratch / f"{place.name}-{info.header_offset}.npy"
    with archive.open(info) as source, open(inflated, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return _open_npy(inflated, f"{place}, {info.filename}")


def _open_npy(place: Path, where: str) -> np.ndarray:
    with open(place, "rb") as file:
        _header(file, where)
    return np.load(place, mmap_mode="r", allow_pickle=False)


def _header(file: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise DataError(
            f"{where}: an array of Python objects, which NumPy keeps as a pickle; save the images as one uint8 array, "
            "images=np.stack(images), and labels as numbers or texts, labels=np.array(labels.tolist())"
        )
    return shape, fortran, dtype


def _data_offset(place: Path, info: zipfile.ZipInfo) -> int:
    """Returns where a stored member's bytes begin: after its local header of 30 bytes, its name and its extra field."""
    with open(place, "rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")

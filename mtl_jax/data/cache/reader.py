"""Opens a folder of the cache: for each split three .npy with images, names and digests; and one JSON index."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import features

from mtl_jax.data import overlaps
from mtl_jax.data.damage import DAMAGE
from mtl_jax.data.dataset import Dataset, Overlap, Split
from mtl_jax.data.source import Stamp
from mtl_jax.errors import DataError

VERSION = 1
VARIABLE = "MTL_JAX_CACHE"
INDEX = "index.json"


def directory(cache_dir: str = "") -> Path:
    """Returns where the cache is: `cache_dir`, else $MTL_JAX_CACHE, else ~/.cache/mtl_jax."""
    return Path(cache_dir or os.environ.get(VARIABLE) or "~/.cache/mtl_jax").expanduser()


def key(stamps: Sequence[Stamp], options: Mapping[str, object]) -> str:
    """Returns a digest of all that the content depends on: files, options, the libraries that decode and render."""
    versions = {name: importlib.metadata.version(name) for name in ("pillow", "matplotlib")}
    if importlib.util.find_spec("pillow_heif"):  # without it, `skip_corrupt` has left HEIC images out
        versions["pillow-heif"] = importlib.metadata.version("pillow-heif")
    versions["freetype"] = features.version("freetype2")
    state = hashlib.sha256(json.dumps([dict(options), versions], sort_keys=True, default=str).encode())
    for name, size, time in sorted(stamps):
        state.update(f"{name}\0{size}\0{time}\n".encode())
    return state.hexdigest()[:24]


def open_folder(folder: Path, name: str) -> Dataset:
    """Returns the data set in a folder of the cache; reads no more than its index.

    Raises:
        DataError: the folder is of another version of the cache, or damaged.
    """
    index = _read_index(folder)
    try:
        splits = {split: _open_split(folder, split, facts) for split, facts in index["splits"].items()}
        return Dataset(
            name=name,
            format=index["format"],
            fingerprint=index["fingerprint"],
            splits=splits,
            skipped=tuple(index["skipped"]),
            cache=str(folder),
            overlaps=_overlaps(folder, index, splits),
        )
    except DataError:
        raise
    except DAMAGE as error:
        raise _damaged(folder / INDEX, f"{type(error).__name__}: {error}") from None


def _overlaps(folder: Path, index: dict, splits: Mapping[str, Split]) -> Mapping[str, Overlap]:
    """Returns the overlaps, which are found once and then kept in the index."""
    if "overlaps" not in index:  # just written, or by a version that did not look for them
        index["overlaps"] = overlaps.find(overlaps.by_class(splits), index["format"])
        with contextlib.suppress(OSError):  # the cache may belong to another user
            write_index(folder, index)
    return {kind: Overlap(int(count), list(lines)) for kind, (count, lines) in index["overlaps"].items()}


def write_index(folder: Path, index: Mapping) -> None:
    """Replaces the index of a folder, whole or not at all."""
    unfinished = folder / f"{INDEX}-{uuid.uuid4().hex[:8]}"
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(folder / INDEX)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_index(folder: Path) -> dict:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["version"]
    except DAMAGE as error:
        raise _damaged(path, error) from None
    if version != VERSION:
        raise DataError(
            f"{path}: written by cache version {version}, this is version {VERSION}; "
            f"remove the folder {folder}, or set another place with data.cache_dir or ${VARIABLE}"
        )
    return index


def _open_split(folder: Path, split: str, facts: Mapping) -> Split:
    counts = np.asarray(facts["counts"], np.int32)
    images = _open_array(folder / f"{split}.npy", [int(counts.sum()), *facts["shape"]])
    return Split(
        name=split,
        images=images,
        labels=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        class_names=tuple(facts["class_names"]),
        counts=counts,
        file_names=_open_array(folder / f"{split}.names.npy", [len(images)]),
        digests=_open_array(folder / f"{split}.digests.npy", [len(images), 16]),
    )


def _open_array(path: Path, shape: list[int]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if list(array.shape) != shape:
            raise ValueError(f"shape {list(array.shape)} where the index has {shape}")
    except DAMAGE as error:
        raise _damaged(path, error) from None
    return array


def _damaged(path: Path, fault: object) -> DataError:
    return DataError(f"{path}: damaged cache ({fault}); remove the folder {path.parent} to prepare it again")

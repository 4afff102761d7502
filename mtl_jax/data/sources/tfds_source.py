"""TFDS data sets that are prepared in a random-access format (ArrayRecord), read from their folder without TensorFlow.

Nothing is downloaded and no builder's code is run: the folder says what is in it.
"""

import dataclasses
import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.source import Contents, Images, Source
from mtl_jax.data.sources import arrays, splitting
from mtl_jax.data.sources.class_folders import SPLIT_FOLDERS
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.data.sources.trees import stamp
from mtl_jax.errors import DataError

PREFIX = "tfds:"
OWN = ("fc100", "cifar_fs")
INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Records:
    """Images of one class that are records, each one (split, position)."""

    sources: Mapping[str, Sequence[Any]]
    rows: Sequence[tuple[str, int]]
    place: str
    lock: Any
    turns: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return ""

    def where(self, index: int) -> str:
        split, row = self.rows[index]
        return f"{self.place}, split {split}, record {row}"

    def read(self, index: int) -> bytes:
        split, row = self.rows[index]
        with self.lock:
            return _raw(self.sources[split][row]["image"], self.where(index))


def _raw(image: Any, where: str) -> bytes:
    if not isinstance(image, bytes):
        raise DataError(f"{where}: the feature 'image' is {type(image).__name__}, not an encoded image")
    return image


def find(name: str, path: str, how: Splitting) -> Source:
    """Returns the source of 'tfds:NAME', 'tfds:NAME/CONFIG' or 'tfds:NAME:VERSION'.

    Args:
        name: of the data set, with the prefix.
        path: TFDS's data directory ('' is $TFDS_DATA_DIR, else ~/tensorflow_datasets), or the prepared folder itself.
        how: splits the classes; without it the splits of the data set must be by class, as those of fc100 are.

    Raises:
        DataError: it is not there, there are several, or it is not prepared in a random-access format.
    """
    place = folder(name.removeprefix(PREFIX), path)
    files = sorted(file for file in place.iterdir() if file.is_file())
    return Source("TFDS", [stamp(file, place) for file in files], lambda _: read(place, how), str(place))


def folder(name: str, path: str) -> Path:
    """Returns the folder of a prepared data set, of its newest version."""
    root = Path(path or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if (root / INFO).exists():
        return root
    place = root / name.replace(":", "/")
    found = sorted(info.parent for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}") for info in place.glob(pattern))
    if not found:
        own = f"; prepare it with: python -m mtl_jax.data tfds {name} {root}" if name in OWN else ""
        raise DataError(f"{place}: no TFDS data set is prepared there{own or '; data.path must be the data directory'}")
    if len({place.parent for place in found}) > 1:
        configs = ", ".join(sorted({place.parent.name for place in found}))
        raise DataError(f"{place}: has several configs ({configs}); write tfds:{name}/CONFIG")
    return max(found, key=lambda place: [int(part) if part.isdigit() else 0 for part in place.name.split(".")])


def read(place: Path, how: Splitting) -> Contents:
    """Returns the splits, by class."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(place))
    features = builder.info.features
    missing = {"image", "label"} - set(features)
    if missing:
        raise DataError(
            f"{place}: has no feature {sorted(missing)[0]!r} but {', '.join(features)}; image and label are needed"
        )
    try:
        sources = {
            split: builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            for split in builder.info.splits
        }
    except (NotImplementedError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{place}: not in a random-access format ({reason}); prepare it with file_format='array_record'"
        ) from None
    names = getattr(features["label"], "names", None)
    rows = {split: _rows(split, source, names, str(place)) for split, source in sources.items()}
    return _split(sources, rows, how, str(place))


Rows = Mapping[str, Sequence[tuple[str, int]]]  # class -> records


def _rows(split: str, source: Sequence[Any], names: Sequence[str] | None, place: str) -> Rows:
    labels = [record["label"] for record in source]
    array = np.asarray(labels) if names else labels
    named = arrays.label_names(array, len(labels), f"{place}, split {split}", names)
    rows: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row, name in enumerate(named):
        rows[str(name)].append((split, row))
    return rows


def _split(sources: Mapping[str, Sequence[Any]], rows: Mapping[str, Rows], how: Splitting, place: str) -> Contents:
    """Returns the splits: by `how`, or the data set's own where no class is in two of them."""
    lock = threading.Lock()

    def images(classes: Rows) -> Mapping[str, Images]:
        return {name: Records(sources, classes[name], place, lock) for name in sorted(classes)}

    if not (how.lists or how.fractions):
        own = {SPLIT_FOLDERS[split]: classes for split, classes in rows.items() if split in SPLIT_FOLDERS}
        names = [name for classes in own.values() for name in classes]
        if own and len(own) == len(rows) and len(names) == len(set(names)):
            return {split: images(classes) for split, classes in own.items()}
    pooled: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for classes in rows.values():
        for name, records in classes.items():
            pooled[name].extend(records)
    return splitting.split(images(pooled), "", how, place)

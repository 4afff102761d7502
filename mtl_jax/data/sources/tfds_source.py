"""TFDS data sets that are prepared in a random-access format (ArrayRecord), read from their folder without TensorFlow.

Nothing is downloaded, and no builder's code is run: the folder says what is in it.
"""

import dataclasses
import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.files.names import split_of
from mtl_jax.data.source import Contents, Images, Source
from mtl_jax.data.sources import arrays
from mtl_jax.data.sources.splitting import Splitting, split_classes
from mtl_jax.data.sources.trees import stamp
from mtl_jax.errors import DataError, first_line

PREFIX = "tfds:"
OWN = ("fc100", "cifar_fs")
INFO = "dataset_info.json"

Record = tuple[str, int]  # TFDS split, position in it
ByClass = Mapping[str, Sequence[Record]]


@dataclasses.dataclass(frozen=True)
class Records:
    """Images of one class that are records of a data set."""

    sources: Mapping[str, Sequence[Any]]
    rows: Sequence[Record]
    path: str
    lock: Any
    turns: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return ""

    def where(self, index: int) -> str:
        split, row = self.rows[index]
        return f"{self.path}, split {split}, record {row}"

    def read(self, index: int) -> bytes:
        split, row = self.rows[index]
        with self.lock:
            return _raw(self.sources[split][row]["image"], self.where(index))


def _raw(image: Any, where: str) -> bytes:
    if not isinstance(image, bytes):
        raise DataError(f"{where}: the feature 'image' is {type(image).__name__}, not an encoded image")
    return image


def source(name: str, path: str, splitting: Splitting) -> Source:
    """Returns the source of 'tfds:NAME', 'tfds:NAME/CONFIG' or 'tfds:NAME:VERSION'.

    Args:
        name: of the data set, with the prefix.
        path: TFDS's data directory ('' is $TFDS_DATA_DIR, else ~/tensorflow_datasets), or the prepared folder itself.
        splitting: how to split the classes, unless the data set's own splits are by class, as those of fc100 are.

    Raises:
        DataError: it is not there, there are several, or it is not prepared in a random-access format.
    """
    folder = prepared_folder(name.removeprefix(PREFIX), path)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return Source("TFDS", [stamp(file, folder) for file in files], lambda _: read(folder, splitting), str(folder))


def prepared_folder(name: str, path: str) -> Path:
    """Returns the folder of a prepared data set in its newest version; see `source`."""
    root = Path(path or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if (root / INFO).exists():
        return root
    folder = root / name.replace(":", "/")
    versions = sorted(info.parent for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}") for info in folder.glob(pattern))
    if not versions:
        own = f"; prepare it with: python -m mtl_jax.data tfds {name} {root}" if name in OWN else ""
        raise DataError(
            f"{folder}: no TFDS data set is prepared there{own or '; data.path must be the data directory'}"
        )
    configs = sorted({version.parent for version in versions})
    if len(configs) > 1:
        names = ", ".join(sorted(config.name for config in configs))
        raise DataError(f"{folder}: has several configs ({names}); write tfds:{name}/CONFIG")
    return max(versions, key=lambda version: [int(part) if part.isdigit() else 0 for part in version.name.split(".")])


def read(path: Path, splitting: Splitting) -> Contents:
    """Returns the splits of a prepared folder; see `source`."""
    require_array_record(str(path))
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(path))
    features = builder.info.features
    missing = {"image", "label"} - set(features)
    if missing:
        raise DataError(
            f"{path}: has no feature {sorted(missing)[0]!r} but {', '.join(features)}; image and label are needed"
        )
    try:
        sources = {
            split: builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            for split in builder.info.splits
        }
    except (NotImplementedError, ValueError, ImportError) as error:
        reason = first_line(error)
        raise DataError(
            f"{path}: not in a random-access format ({reason}); prepare it with file_format='array_record'"
        ) from None
    names = getattr(features["label"], "names", None)
    rows = {split: _rows(split, source, names, str(path)) for split, source in sources.items()}
    return _split(sources, rows, splitting, str(path))


def require_array_record(path: str) -> None:
    """Raises DataError where array_record is not installed: Windows has no wheels of it."""
    try:
        import array_record  # noqa: F401
    except ImportError:
        raise DataError(
            f"{path}: TFDS data sets need array_record: pip install array_record (Linux, and macOS on ARM); on Windows "
            "use WSL, or the data set's own files"
        ) from None


def _rows(split: str, source: Sequence[Any], names: Sequence[str] | None, path: str) -> ByClass:
    labels = [record["label"] for record in source]
    array = np.asarray(labels) if names else labels
    class_of_record = arrays.label_names(array, len(labels), f"{path}, split {split}", names)
    rows: dict[str, list[Record]] = defaultdict(list)
    for row, name in enumerate(class_of_record):
        rows[str(name)].append((split, row))
    return rows


def _split(
    sources: Mapping[str, Sequence[Any]], rows: Mapping[str, ByClass], splitting: Splitting, path: str
) -> Contents:
    """Returns the splits that the user asks for, or else the data set's own, if no class is in two of them."""
    lock = threading.Lock()

    def images(classes: ByClass) -> Mapping[str, Images]:
        return {name: Records(sources, classes[name], path, lock) for name in sorted(classes)}

    if not (splitting.lists or splitting.fractions):
        own = {split_of(split): classes for split, classes in rows.items() if split_of(split)}
        names = [name for classes in own.values() for name in classes]
        if own and len(own) == len(rows) and len(names) == len(set(names)):
            return {split: images(classes) for split, classes in own.items()}
    pooled: dict[str, list[Record]] = defaultdict(list)
    for classes in rows.values():
        for name, records in classes.items():
            pooled[name].extend(records)
    return split_classes(images(pooled), "", splitting, path)

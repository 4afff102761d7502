"""The file format: JSON, gzipped if the name ends in .gz.

    {"format": "few-shot episodes", "version": 1, "sha256": HASH, "split": "test", "dataset": NAME, "fingerprint": HEX,
     "way": N, "shot": K, "query": Q, "num_tasks": T, "seed": SEED or null,
     "images": [{"class": NAME, "digest": HEX, "file": NAME or ""}, ...],
     "tasks": [[[support, query], ... one pair per class, each a list of positions in "images"], ...]}

An image is identified by its class name and a digest of its decoded pixels before any resizing: BLAKE2b of 16 bytes,
with "HxWxC" as its salt, of the uint8 array [H, W, C]. The hash of the tasks is the SHA-256 over, task by task and
class by class: the BLAKE2b of 16 bytes of the class name, then the digests of the support images, then those of the
query images. So the same tasks have the same hash, whatever image format they were read from.
"""

import gzip
import hashlib
import json
import logging
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mtl_jax.data import Dataset, Split
from mtl_jax.episodes import check_table
from mtl_jax.errors import DataError
from mtl_jax.evaluation import FRESH, Protocol, Tasks, sample_all
from mtl_jax.workdir import write_bytes_atomic, writing

_logger = logging.getLogger(__name__)
FORMAT, VERSION = "few-shot episodes", 1
MAX_BYTES = 1 << 30
DIGEST_BYTES = 16


class Frozen(NamedTuple):
    """The content of a file.

    facts: sha256, split, dataset, fingerprint, way, shot, query, num_tasks, seed.
    class_names, digests (hexadecimal), file_names: one per image.
    tasks: positions in these lists.
    """

    facts: dict[str, Any]
    class_names: list[str]
    digests: list[str]
    file_names: list[str]
    tasks: Tasks


class Replay(NamedTuple):
    """Tasks as positions in a split, and how many of their images were found by file name, not by their pixels."""

    tasks: Tasks
    by_file_name: int


def content_hash(split: Split, tasks: Tasks) -> str:
    """The SHA-256 of tasks (positions in a split), as the module's docstring defines it."""
    return _hash(split.class_names, split.labels, np.asarray(split.digests), tasks)


def _hash(class_names: Sequence[str], labels: np.ndarray, digests: np.ndarray, tasks: Tasks) -> str:
    """The hash of tasks among images: labels [images] are positions in `class_names`, digests uint8 [images, 16]."""
    digested = [hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).digest() for name in class_names]
    names = np.frombuffer(b"".join(digested), np.uint8).reshape(-1, DIGEST_BYTES)
    positions = np.concatenate(tasks, axis=2)
    images = digests[positions]
    classes = names[labels[positions[:, :, 0]]][:, :, None]
    return hashlib.sha256(memoryview(np.ascontiguousarray(np.concatenate([classes, images], axis=2)))).hexdigest()


def freeze(split: Split, tasks: Tasks, *, dataset: str, fingerprint: str, seed: int | None = None) -> Frozen:
    """The file content for tasks (positions in a split) of the data set with this name and fingerprint.

    seed: the `evaluate.seed` that the tasks were drawn with, if any.
    """
    rows, positions = np.unique(np.concatenate(tasks, axis=2), return_inverse=True)
    positions = positions.reshape(*tasks.support.shape[:2], -1)
    support, query = np.split(positions, [tasks.support.shape[2]], axis=2)
    count, way, shot = tasks.support.shape
    facts = {
        "sha256": content_hash(split, tasks), "split": split.name, "dataset": dataset, "fingerprint": fingerprint,
        "way": way, "shot": shot, "query": tasks.query.shape[2], "num_tasks": count, "seed": seed,
    }  # fmt: skip
    return Frozen(
        facts,
        [split.class_names[split.labels[row]] for row in rows],
        [bytes(split.digests[row]).hex() for row in rows],
        [split.file_names[row].decode() for row in rows],
        Tasks(support, query),
    )


def write(path: str | Path, frozen: Frozen) -> None:
    """Writes a file of episodes. The same content gives the same bytes. Raises DataError if it cannot be written."""
    columns = zip(frozen.class_names, frozen.digests, frozen.file_names, strict=True)
    images = [{"class": name, "digest": digest, "file": file} for name, digest, file in columns]
    support, query = (part.tolist() for part in frozen.tasks)
    tasks = [[list(pair) for pair in zip(*task, strict=True)] for task in zip(support, query, strict=True)]
    content = {"format": FORMAT, "version": VERSION, **frozen.facts, "images": images, "tasks": tasks}
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    with writing(path, error_type=DataError):
        write_bytes_atomic(Path(path), gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def read(path: str | Path) -> Frozen:
    """Reads a file of episodes and checks its hash.

    Raises:
      DataError: the file is missing, of another format, damaged, or changed since it was written.
    """
    content = _read_json(Path(path))
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DataError(
            f"{path}: format {content.get('format')!r}, version {content.get('version')!r}; expected {FORMAT!r}, "
            f"version {VERSION}: file made by python -m mtl_jax.frozen_episodes make"
        )
    try:
        frozen = _parse(content)
        actual = _own_hash(frozen)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{path}: damaged file of episodes ({type(error).__name__}: {error}); make it again") from error
    if actual != frozen.facts["sha256"]:
        stored = str(frozen.facts["sha256"])[:12]
        raise DataError(f"{path}: its tasks have the hash {actual[:12]}, not {stored}: it was changed; make it again")
    return frozen


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            data = _read_bounded(file)
        content = json.loads(data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as a file of episodes: {reason}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a file of episodes: expected a JSON object")
    return content


def _read_bounded(file: BinaryIO) -> bytes:
    # In blocks: a single read of MAX_BYTES would allocate all of it first.
    blocks, size = [], 0
    while block := file.read(1 << 20):
        blocks.append(block)
        size += len(block)
        if size > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES} bytes")
    return b"".join(blocks)


def _parse(content: Mapping[str, Any]) -> Frozen:
    keys = ("sha256", "split", "dataset", "fingerprint", "way", "shot", "query", "num_tasks", "seed")
    facts = {name: content[name] for name in keys}
    count, way = int(facts["num_tasks"]), int(facts["way"])
    support = np.array([[pair[0] for pair in task] for task in content["tasks"]], np.int64)
    query = np.array([[pair[1] for pair in task] for task in content["tasks"]], np.int64)
    expected = [(count, way, facts["shot"]), (count, way, facts["query"])]
    if [support.shape, query.shape] != expected or not support.size:
        raise ValueError(f"tasks of shapes {support.shape} and {query.shape}, expected {expected}")
    if min(support.min(), query.min(initial=0)) < 0:
        raise ValueError("a negative position")
    names, digests, files = ([str(image[key]) for image in content["images"]] for key in ("class", "digest", "file"))
    return Frozen(facts, names, digests, files, Tasks(support, query))


def _own_hash(frozen: Frozen) -> str:
    """The hash of a file's tasks, computed from its own list of images."""
    classes = sorted(set(frozen.class_names))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[name] for name in frozen.class_names])
    digests = np.frombuffer(bytes.fromhex("".join(frozen.digests)), np.uint8).reshape(-1, DIGEST_BYTES)
    task_labels = labels[np.concatenate(frozen.tasks, axis=2)]
    if (task_labels != task_labels[:, :, :1]).any():
        raise ValueError("a class of a task has images of several classes")
    return _hash(classes, labels, digests, frozen.tasks)


def choose_tasks(dataset: Dataset, split: Split, protocol: Protocol, episodes: Frozen | None) -> Tasks:
    """The tasks to evaluate on: drawn by the protocol, or those of a file, as positions in the split.

    On the validation split they differ from the tasks that chose the checkpoint, though the seed is the same.

    Raises:
      DataError: the split is too small for the protocol, or lacks an image of the file.
    """
    if episodes is None:
        sizes = {"way": protocol.way, "shot": protocol.shot, "query": protocol.query}
        check_table(split.table(), split.class_names, **sizes, split=split.name)
        return sample_all(split.table(), protocol, first=FRESH if split.name == "val" else 0)
    replayed = replay(episodes, split, dataset.fingerprint)
    if replayed.by_file_name:
        _logger.warning("%d images were found by file name alone: their pixels differ", replayed.by_file_name)
    return replayed.tasks


def replay(frozen: Frozen, split: Split, fingerprint: str = "") -> Replay:
    """Finds the images of a file's tasks in a split, by class and digest.

    If the digest is not there, because another decoder gave other pixels, the image is found by its file name.

    Args:
      frozen: the file.
      split: the images to search.
      fingerprint: of the data set, for messages.

    Raises:
      DataError: names the first image that is not there.
    """
    label_of = {name: label for label, name in enumerate(split.class_names)}
    by_digest, by_file = _index(split)
    rows, by_file_name = np.empty(len(frozen.digests), np.int64), 0
    for i, (name, digest, file) in enumerate(zip(frozen.class_names, frozen.digests, frozen.file_names, strict=True)):
        label = label_of.get(name, -1)
        row = by_digest.get((label, digest))
        if row is None and file:
            candidates = by_file.get((label, file), [])
            row = candidates[0] if len(candidates) == 1 else None
            by_file_name += row is not None
        if row is None:
            raise DataError(_not_found(frozen, split, fingerprint, i))
        rows[i] = row
    return Replay(Tasks(*(rows[part] for part in frozen.tasks)), by_file_name)


def _index(split: Split) -> tuple[dict[tuple[int, str], int], dict[tuple[int, str], list[int]]]:
    """Rows of a split by (label, digest) and by (label, file name)."""
    by_digest: dict[tuple[int, str], int] = {}
    by_file: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row, (label, digest, file) in enumerate(zip(split.labels, split.digests, split.file_names, strict=True)):
        by_digest.setdefault((int(label), bytes(digest).hex()), row)
        by_file[int(label), file.decode()].append(row)
    return by_digest, by_file


def _not_found(frozen: Frozen, split: Split, fingerprint: str, image: int) -> str:
    name, facts = frozen.class_names[image], frozen.facts
    missing = f"class {name!r}"
    if name in split.class_names:
        missing = f"image {frozen.file_names[image] or frozen.digests[image]} of {missing}"
    return (
        f"{split.name} split: {missing} of the episodes is not there; they were made from {facts['dataset']} "
        f"({facts['split']} split, fingerprint {facts['fingerprint'][:12]}), this data set has the fingerprint "
        f"{fingerprint[:12] or 'unknown'}: give the data that the episodes were made from"
    )

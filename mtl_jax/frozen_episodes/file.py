"""Frozen episodes: a list of test tasks as a file that any program in any framework can replay.

    python -m mtl_jax.frozen_episodes make --workdir=runs/glyphs --output=episodes.json.gz
    python -m mtl_jax.frozen_episodes show episodes.json.gz
    python evaluate.py --workdir=runs/glyphs --episodes=episodes.json.gz

The file is JSON (gzipped where its name ends in .gz):

    {"format": "few-shot episodes", "version": 1, "sha256": HASH, "split": "test", "dataset": NAME, "fingerprint": HEX,
     "way": N, "shot": K, "query": Q, "num_tasks": T, "seed": SEED or null,
     "images": [{"class": NAME, "digest": HEX, "file": NAME or ""}, ...],
     "tasks": [[[support, query], ... a pair of lists of positions in "images" for each class], ...]}

An image is known by its class's name and the digest of its decoded pixels before any resizing: BLAKE2b of 16 bytes,
with "HxWxC" as its salt, of the uint8 array [H, W, C]. The hash of a list of tasks is the SHA-256 of, task by task and
class by class: BLAKE2b of 16 bytes of the class's name, then the digests of its support images, then those of its query
images. So it is the same for the same tasks, whatever format the images were read from.
"""

import gzip
import hashlib
import json
import logging
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mtl_jax.data import Dataset, Split
from mtl_jax.episodes import check_table
from mtl_jax.errors import DataError
from mtl_jax.evaluation import FRESH, Protocol, Tasks, sample_all
from mtl_jax.workdir import write_bytes_atomic

_logger = logging.getLogger(__name__)
FORMAT, VERSION = "few-shot episodes", 1
MAX_BYTES = 1 << 30
DIGEST_BYTES = 16


class Frozen(NamedTuple):
    """A file of episodes.

    facts: what stands in it besides images and tasks: sha256, split, dataset, fingerprint, way, shot, query, num_tasks,
    seed. class_names, digests (hexadecimal), file_names: of each of its images. tasks: positions among these.
    """

    facts: dict[str, Any]
    class_names: list[str]
    digests: list[str]
    file_names: list[str]
    tasks: Tasks


class Replay(NamedTuple):
    """Tasks found again in a split, and how many of their images were known by class and file name alone."""

    tasks: Tasks
    by_file_name: int


def content_hash(split: Split, tasks: Tasks) -> str:
    """The SHA-256 of tasks (positions in a split), as the module's docstring defines it."""
    names = [hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).digest() for name in split.class_names]
    names = np.frombuffer(b"".join(names), np.uint8).reshape(-1, DIGEST_BYTES)
    rows = np.concatenate(tasks, axis=2)
    images = np.asarray(split.digests)[rows]
    classes = names[split.labels[rows[:, :, 0]]][:, :, None]
    return hashlib.sha256(np.ascontiguousarray(np.concatenate([classes, images], axis=2))).hexdigest()


def freeze(split: Split, tasks: Tasks, *, dataset: str, fingerprint: str, seed: int | None = None) -> Frozen:
    """The content of a file for tasks (positions in a split).

    Args:
      split: the images.
      tasks: the tasks.
      dataset, fingerprint: the data set's name and fingerprint.
      seed: `evaluate.seed` that the tasks were drawn by, if any.
    """
    rows, places = np.unique(np.concatenate(tasks, axis=2), return_inverse=True)
    support, query = np.split(places.reshape(*tasks.support.shape[:2], -1), [tasks.support.shape[2]], axis=2)
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
    """Writes a file of episodes, the same bytes for the same content; gzipped where the name ends in .gz.

    Raises:
      DataError: it cannot be written.
    """
    columns = zip(frozen.class_names, frozen.digests, frozen.file_names, strict=True)
    images = [{"class": name, "digest": digest, "file": file} for name, digest, file in columns]
    support, query = (part.tolist() for part in frozen.tasks)
    tasks = [[list(pair) for pair in zip(*task, strict=True)] for task in zip(support, query, strict=True)]
    content = {"format": FORMAT, "version": VERSION, **frozen.facts, "images": images, "tasks": tasks}
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    try:
        write_bytes_atomic(Path(path), gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def read(path: str | Path) -> Frozen:
    """Reads a file of episodes and checks it against its hash.

    Raises:
      DataError: no such file, not of this format, damaged, or changed since it was written.
    """
    content = _read_json(Path(path))
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DataError(
            f"{path}: format {content.get('format')!r}, version {content.get('version')!r}; expected {FORMAT!r}, "
            f"version {VERSION}: a file of python -m mtl_jax.frozen_episodes make"
        )
    try:
        frozen = _parse(content)
        found = _own_hash(frozen)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{path}: damaged file of episodes ({type(error).__name__}: {error}); make it again") from error
    if found != frozen.facts["sha256"]:
        said = frozen.facts["sha256"][:12]
        raise DataError(f"{path}: its tasks have the hash {found[:12]}, not {said}: it was changed; make it again")
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
        raise DataError(f"{path}: not a file of episodes: a JSON object was expected")
    return content


def _read_bounded(file: BinaryIO) -> bytes:
    # In blocks: one read of the limit's size would make room for all of it first.
    blocks, size = [], 0
    while block := file.read(1 << 20):
        blocks.append(block)
        size += len(block)
        if size > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES} bytes")
    return b"".join(blocks)


def _parse(content: Mapping[str, Any]) -> Frozen:
    names = ("sha256", "split", "dataset", "fingerprint", "way", "shot", "query", "num_tasks", "seed")
    facts = {name: content[name] for name in names}
    count, way = int(facts["num_tasks"]), int(facts["way"])
    support = np.array([[pair[0] for pair in task] for task in content["tasks"]], np.int64)
    query = np.array([[pair[1] for pair in task] for task in content["tasks"]], np.int64)
    expected = [(count, way, facts["shot"]), (count, way, facts["query"])]
    if [support.shape, query.shape] != expected or not support.size:
        raise ValueError(f"tasks of shapes {support.shape} and {query.shape} where {expected} are said")
    images = content["images"]
    if min(support.min(), query.min(initial=0)) < 0:
        raise ValueError("a negative position")
    columns = ([str(image[key]) for image in images] for key in ("class", "digest", "file"))
    return Frozen(facts, *columns, Tasks(support, query))


def _own_hash(frozen: Frozen) -> str:
    """The hash of a file's tasks from its own list of images."""
    classes = sorted(set(frozen.class_names))
    number = {name: i for i, name in enumerate(classes)}
    digests = np.frombuffer(bytes.fromhex("".join(frozen.digests)), np.uint8).reshape(-1, DIGEST_BYTES)
    labels = np.array([number[name] for name in frozen.class_names])
    of_class = labels[np.concatenate(frozen.tasks, axis=2)]
    if (of_class != of_class[:, :, :1]).any():
        raise ValueError("a class of a task has images of several classes")
    counts = np.bincount(labels)
    stand_in = Split("", np.empty(0), labels, tuple(classes), counts, np.empty(0), digests)
    return content_hash(stand_in, frozen.tasks)


def choose_tasks(dataset: Dataset, split: Split, protocol: Protocol, episodes: Frozen | None) -> Tasks:
    """The tasks of a protocol, or those of a file, found again in the split. Raises DataError where there are none.

    On validation they are not those that chose the checkpoint, which have the same seed.
    """
    if episodes is None:
        sizes = {"way": protocol.way, "shot": protocol.shot, "query": protocol.query}
        check_table(split.table(), split.class_names, **sizes, split=split.name)
        return sample_all(split.table(), protocol, first=FRESH if split.name == "val" else 0)
    found = replay(episodes, split, dataset.fingerprint)
    if found.by_file_name:
        _logger.warning("%d images were known by file name alone: their pixels differ", found.by_file_name)
    return found.tasks


def replay(frozen: Frozen, split: Split, fingerprint: str = "") -> Replay:
    """Finds the images of a file's tasks in a split, by class and digest.

    An image that is not there by its digest, because another decoder gave other pixels, is known by its file name.

    Args:
      frozen: the file.
      split: where to look; its name must be the file's.
      fingerprint: the data set's, for the message.

    Raises:
      DataError: names the first image that is not there.
    """
    names = {name: i for i, name in enumerate(split.class_names)}
    by_digest, by_file = _index(split)
    positions, by_file_name = np.empty(len(frozen.digests), np.int64), 0
    for i, (name, digest, file) in enumerate(zip(frozen.class_names, frozen.digests, frozen.file_names, strict=True)):
        label = names.get(name)
        found = by_digest.get((label, digest))
        if found is None and file:
            candidates = by_file.get((label, file), [])
            found = candidates[0] if len(candidates) == 1 else None
            by_file_name += found is not None
        if found is None:
            raise DataError(_not_found(frozen, split, fingerprint, name, digest, file))
        positions[i] = found
    return Replay(Tasks(*(positions[part] for part in frozen.tasks)), by_file_name)


def _index(split: Split) -> tuple[dict[tuple[int, str], int], dict[tuple[int, str], list[int]]]:
    by_digest: dict[tuple[int, str], int] = {}
    by_file: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row, (label, digest, file) in enumerate(zip(split.labels, split.digests, split.file_names, strict=True)):
        by_digest.setdefault((int(label), bytes(digest).hex()), row)
        by_file[int(label), file.decode()].append(row)
    return by_digest, by_file


def _not_found(frozen: Frozen, split: Split, fingerprint: str, name: str, digest: str, file: str) -> str:
    what = f"image {file or digest} of class {name!r}" if name in split.class_names else f"class {name!r}"
    return (
        f"{split.name} split: {what} of the episodes is not there; they were made from {frozen.facts['dataset']} "
        f"({frozen.facts['split']} split, fingerprint {frozen.facts['fingerprint'][:12]}), this is the data set "
        f"{fingerprint[:12] or 'at hand'}: give the data that the episodes were made from"
    )

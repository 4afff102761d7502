"""The manifest of a checkpoint: a digest of every array and every file, sealed with a digest of its own."""

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.errors import CheckpointError
from mtl_jax.workdir import named_arrays
from mtl_jax.workdir.workdir import plain, read_bounded

FILE = "manifest.json"
MAX_MANIFEST_BYTES = 32 << 20
MAX_ARRAY_BYTES = 8 << 30  # a file that claims more is refused; the largest network with its optimizer takes 0.2 GiB


class ArrayRecord(NamedTuple):
    """What an array was when it was saved; the digest is of dtype, shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


class FileRecord(NamedTuple):
    """What a file was when it was saved."""

    size: int
    digest: str


class Manifest(NamedTuple):
    """What is known of a checkpoint without reading its arrays.

    arrays: by item, then by the array's path in the tree. files: by path relative to the checkpoint.
    """

    step: int
    metadata: dict[str, Any]
    arrays: dict[str, dict[str, ArrayRecord]]
    files: dict[str, FileRecord]


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON in one canonical form, with its own digest among the keys, so that `unseal` notices any changed byte.

    Infinities and NaN are written as Python's json writes them: a score may be infinite.
    """
    digest = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical({**content, "digest": digest}) + b"\n"


def unseal(data: bytes) -> dict[str, Any]:
    """The content that was sealed. Raises ValueError where a single byte is not what `seal` wrote."""
    try:
        content = json.loads(data)
        del content["digest"]
        whole = seal(content) == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a sealed JSON file") from error
    if not whole:
        raise ValueError("its digest is not that of its content")
    return content


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), default=plain).encode()


def record_array(array: np.ndarray) -> ArrayRecord:
    """The record of an array, bit patterns of NaN and of -0.0 included."""
    digest = hashlib.sha256(f"{array.dtype}{list(array.shape)}".encode())
    digest.update(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
    return ArrayRecord(str(array.dtype), tuple(array.shape), digest.hexdigest())


def fingerprint(facts: Any, params: Mapping[str, Any], batch_stats: Mapping[str, Any]) -> str:
    """A digest of a network: of facts about it, plain JSON, and of every array. Other orders of keys change nothing."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    arrays = named_arrays.flatten({"params": params, "batch_stats": batch_stats})
    for name in sorted(arrays):
        digest.update(f"{name} {record_array(arrays[name]).digest}\n".encode())
    return digest.hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """The records of all files under a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _record_file(path) for path in paths}


def _record_file(path: Path) -> FileRecord:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(file.tell(), digest)


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest's file."""
    return seal({**manifest._asdict(), "format": 1})


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError where it is missing or not as it was written."""
    path = folder / FILE
    try:
        return _parse(unseal(read_bounded(path, MAX_MANIFEST_BYTES)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: damaged checkpoint: {reason}") from error


def _parse(content: dict[str, Any]) -> Manifest:
    if content["format"] != 1:
        raise ValueError(f"format {content['format']} is not known to this version, which reads format 1")
    arrays = {
        item: {name: _parse_array(*record) for name, record in records.items()}
        for item, records in content["arrays"].items()
    }
    files = {name: FileRecord(int(size), str(digest)) for name, (size, digest) in content["files"].items()}
    if wrong := [name for name in [*files, *arrays] if name.startswith("/") or "\0" in name or ".." in name.split("/")]:
        raise ValueError(f"{wrong[0]!r} is not a name inside the checkpoint")
    records = [record for named in arrays.values() for record in named.values()]
    claimed = sum(math.prod(record.shape) * np.dtype(record.dtype).itemsize for record in records)
    if claimed > MAX_ARRAY_BYTES:
        raise ValueError(f"it claims {claimed} bytes of arrays; at most {MAX_ARRAY_BYTES} are read")
    return Manifest(int(content["step"]), dict(content["metadata"]), arrays, files)


def _parse_array(dtype: str, shape: list[int], digest: str) -> ArrayRecord:
    sizes = tuple(map(int, shape))
    if str(np.dtype(dtype)) != dtype or np.dtype(dtype).hasobject or min(sizes, default=0) < 0:
        raise ValueError(f"{dtype}{list(sizes)} is not an array of numbers")
    return ArrayRecord(dtype, sizes, digest)


def check_files(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Raises CheckpointError, naming the first file that is missing, cut, or changed in any byte.

    Files that were added (by a file browser, say) do not matter: nothing reads them.
    """
    for name, record in files.items():
        path = folder / name
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "not a regular file")
            if status.st_size != record.size:
                raise OSError(0, f"{status.st_size} bytes, {record.size} were written")
            if _record_file(path) != record:
                raise OSError(0, "its content has changed since it was written")
        except OSError as error:
            raise CheckpointError(f"{path}: damaged checkpoint: {error.strerror}") from error


def check_arrays(folder: Path, arrays: Mapping[str, np.ndarray], records: Mapping[str, ArrayRecord]) -> None:
    """Raises CheckpointError, naming the first array that is missing, surplus, or not bit for bit what was saved."""
    for name in sorted(records.keys() ^ arrays.keys()):
        state = "missing" if name in records else "not in the manifest"
        raise CheckpointError(f"{folder}: damaged checkpoint: array {name} is {state}")
    for name, array in arrays.items():
        if record_array(array) != records[name]:
            raise CheckpointError(f"{folder}: damaged checkpoint: array {name} is not what was saved")

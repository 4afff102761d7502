"""A workdir: where each file of a run lies, how small files are written whole or not at all, and the lock of a run."""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_jax.errors import MtlError

_logger = logging.getLogger(__name__)
_held: set[int] = set()  # file descriptors of the locks that this process holds


def _leave_locks_to_parent() -> None:
    # flock belongs to the open file, which a forked child shares: a decoding process that outlives a killed run would
    # keep the workdir locked. Closing the child's copy leaves the parent's lock as it is.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


@dataclass(frozen=True)
class Workdir:
    """The paths of one run's files under `path`. Nothing is created by asking for a path."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    @property
    def config(self) -> Path:
        """The resolved config, JSON."""
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        """What the run was trained on, JSON: data sets, classes. Beside it data.digests, 16 bytes an image."""
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        """Step and scalars, a JSON line a record: the same bytes for the same run."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """Rates and wall times, JSON lines: all that differs between two runs of the same config."""
        return self.path / "timing.jsonl"

    @property
    def log(self) -> Path:
        """The text log."""
        return self.path / "log.txt"

    @property
    def commands(self) -> Path:
        """The commands that were started in this workdir, JSON lines."""
        return self.path / "commands.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events, a folder a phase."""
        return self.path / "tensorboard"

    def checkpoints(self, phase: str) -> Path:
        """The folder of a phase's checkpoints (`pretrain` or `meta`): STEP/ and best.json."""
        return self.path / phase

    def evaluation(
        self, split: str, suffix: str, *, way: int | None = None, shot: int | None = None, episodes: str = "",
        dataset: str = "", fingerprint: str = "",
    ) -> Path:  # fmt: skip
        """`evaluation/SPLIT-{way}way-{shot}shot.SUFFIX`; without way and shot, `evaluation/SPLIT.SUFFIX`.

        Results on a file of episodes have the first 8 digits of its hash after the protocol; those on other data than
        the run's have its name and the first 8 digits of its fingerprint before the split.
        """
        protocol = "" if way is None else f"-{way}way-{shot}shot"
        given = f"-{episodes[:8]}" if episodes else ""
        data = f"{re.sub('[:/]', '-', dataset)}-{fingerprint[:8]}-" if dataset else ""
        return self.path / "evaluation" / f"{data}{split}{protocol}{given}.{suffix}"

    def create(self) -> "Workdir":
        """Makes the folder. Raises MtlError where that is not possible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MtlError(f"{self.path}: cannot be a workdir: {error.strerror}; give another --workdir") from error
        return self


def plain(value: Any) -> Any:
    """`json.dumps(default=plain)`: NumPy and JAX scalars as Python numbers, arrays as lists, paths and mappings too."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: a rename survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a kill at any moment, finds the old content or the new, never a part.

    Raises:
      OSError: as the system says it; the old file is then untouched and the temporary one is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json_atomic(path: Path, content: Any) -> None:
    """Writes `content` as strict, indented JSON (keys in the order given), whole or not at all.

    Raises:
      MtlError: the file cannot be written; the old one is then untouched.
      ValueError: a NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(content, indent=2, allow_nan=False, default=plain)
    try:
        write_bytes_atomic(path, text.encode() + b"\n")
    except OSError as error:
        raise MtlError(f"{path}: cannot be written: {error.strerror}; free space or mend the rights") from error


def record_command(path: str | Path, argv: Sequence[str]) -> None:
    """Appends a command (`sys.argv`) to the workdir's commands.jsonl, with the time and the versions it ran under.

    Raises:
      MtlError: the workdir cannot be written.
    """
    place = Workdir(path).create()
    time = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    program = Path(argv[0])
    own = program.parent if program.name == "__main__.py" else program.parent / program.stem
    words = ["-m", f"mtl_jax.{own.name}"] if own.parent.name == "mtl_jax" else [program.name]
    command = shlex.join(["python", *words, *argv[1:]])
    versions = {name: importlib.metadata.version(name) for name in ("mtl_jax", "jax", "jaxlib", "flax", "numpy")}
    line = json.dumps({"time": time, "command": command, "python": platform.python_version(), **versions})
    try:
        with open(place.commands, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise MtlError(f"{place.commands}: cannot be written: {error.strerror}; give another --workdir") from error


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Holds a workdir for this process, so that no second run writes into it.

    The kernel's flock, not the file's existence, is the lock: it ends with the process, however that ends, so neither a
    dead run nor a recycled process number stands in the way. The file only names the holder. Where the file system
    has no locks, a warning says so and the run goes on.

    Raises:
      MtlError: another process has it; the message names the process and its host.
    """
    path = Workdir(path).create().path
    descriptor = _open_lock(path / ".lock")
    try:
        _acquire(descriptor, path)
        _held.add(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _open_lock(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise MtlError(f"{file}: cannot be written: {error.strerror}; give another --workdir") from error


def _acquire(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 400, 0).decode(errors="replace").strip() or "a process that gave no name"
        raise MtlError(
            f"{path}: in use by {holder}; wait for it, stop it, or give this run another --workdir"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        _logger.warning("%s: this file system has no locks: see to it that no second run uses the folder", path)
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {started}\n"
    # On a full disk the lock holds all the same; only the name of its holder is lost.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)

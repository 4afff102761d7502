"""A workdir: where each file of a run lies, how small files are read and written whole, and the lock of a run."""

import contextlib
import datetime
import errno
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mtl_jax.errors import MtlError

_logger = logging.getLogger(__name__)


class Workdir:
    """The paths of one run's files under `path`. Asking for a path creates nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"  # the resolved config
        self.data = self.path / "data.json"  # data sets and classes of the training; `digests` has 16 bytes an image
        self.digests = self.data.with_suffix(".digests")
        self.metrics = self.path / "metrics.jsonl"  # step and scalars, a line a record; the same bytes for the same run
        self.timing = self.path / "timing.jsonl"  # rates and wall times: all that differs between two runs of a config
        self.log = self.path / "log.txt"
        self.commands = self.path / "commands.jsonl"  # the commands that were started in this workdir
        self.tensorboard = self.path / "tensorboard"  # TensorBoard events, a folder a phase

    def checkpoints(self, phase: str) -> Path:
        """The folder of a phase's checkpoints (`pretrain` or `meta`): STEP/ and best.json."""
        return self.path / phase

    def evaluation(
        self, split: str, suffix: str, *, way: int | None = None, shot: int | None = None, episodes: str = "",
        dataset: str = "", fingerprint: str = "",
    ) -> Path:  # fmt: skip
        """`evaluation/SPLIT-{way}way-{shot}shot.SUFFIX`; without way and shot, `evaluation/SPLIT.SUFFIX`.

        Results on a file of episodes have the first 8 digits of its hash after the protocol. Results on other data than
        the run's have its name and the first 8 digits of its fingerprint before the split.
        """
        protocol = "" if way is None else f"-{way}way-{shot}shot"
        digest = f"-{episodes[:8]}" if episodes else ""
        data = f"{re.sub('[:/]', '-', dataset)}-{fingerprint[:8]}-" if dataset else ""
        return self.path / "evaluation" / f"{data}{split}{protocol}{digest}.{suffix}"

    def create(self) -> "Workdir":
        """Makes the folder. Raises MtlError where that is not possible."""
        with self._refused():
            self.path.mkdir(parents=True, exist_ok=True)
        return self

    def check_writable(self) -> None:
        """Checks, by a file without a name, that a run could write there; makes no folder. Raises MtlError."""
        with self._refused():
            there = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
            with tempfile.TemporaryFile(dir=there):
                pass

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MtlError(f"{self.path}: cannot be a workdir: {error.strerror}; give another --workdir") from error


@contextlib.contextmanager
def writing(path: str | Path, advice: str = "", error_type: type[MtlError] = MtlError) -> Iterator[None]:
    """Turns an OSError of the body into `error_type`, in one line: the file, the system's reason, what to do."""
    try:
        yield
    except OSError as error:
        advice = advice and f"; {advice}"
        raise error_type(f"{path}: cannot be written: {error.strerror}{advice}") from error


def plain(value: Any) -> Any:
    """`json.dumps(default=plain)`: NumPy and JAX scalars as Python numbers, arrays as lists, paths and mappings too."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OSError for anything else."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(0, f"longer than {limit} bytes")
    return data


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: a rename survives a power cut only after this. Windows opens no folder."""
    if os.name == "nt":
        return
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
    with writing(path, "free space or fix the rights"):
        write_bytes_atomic(path, text.encode() + b"\n")


def record_command(path: str | Path, argv: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Appends a command (`sys.argv`) to the workdir's commands.jsonl, with the time and the versions it ran under.

    `facts` are added to the record: those of the devices.

    Raises:
      MtlError: the workdir cannot be written.
    """
    file = Workdir(path).create().commands
    program = Path(argv[0])
    module = program.parent if program.name == "__main__.py" else program.parent / program.stem
    words = ["-m", f"mtl_jax.{module.name}"] if module.parent.name == "mtl_jax" else [program.name]
    record = {"time": _now(), "command": shlex.join(["python", *words, *argv[1:]]), "python": platform.python_version()}
    record |= {name: importlib.metadata.version(name) for name in ("mtl_jax", "jax", "jaxlib", "flax", "numpy")}
    record |= facts
    with writing(file, "give another --workdir"), open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Holds a workdir for this process, so that no second run writes into it.

    The kernel's flock, not the file's existence, is the lock. It ends with the process, however that ends, so neither a
    dead run nor a recycled process number stands in the way; a forked child does not inherit it. The file only names
    the holder. Where the file system has no locks, a warning says so and the run continues.

    Raises:
      MtlError: another process has it; the message names the process and its host.
    """
    path = Workdir(path).create().path
    file = path / ".lock"
    file_lock = FileLock(file, blocking=False, fallback_to_soft=False)
    try:
        file_lock.acquire()
    except Timeout as error:
        holder = file.read_text(errors="replace")[:400].strip() or "a process that gave no name"
        raise MtlError(
            f"{path}: in use by {holder}; wait for it, stop it, or give this run another --workdir"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise MtlError(f"{file}: cannot be written: {error.strerror}; give another --workdir") from error
        _logger.warning("%s: this file system has no locks: see to it that no second run uses the folder", path)
    with contextlib.suppress(OSError):  # on a full disk only the holder's name is lost, not the lock
        file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n")
    try:
        yield
    finally:
        file_lock.release()

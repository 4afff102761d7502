"""Folders that belong to one process at a time. The system's lock ends with the process, however that ends.

The lock's file lies beside the folder and not in it, since its holder renames or removes the folder.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

_SUFFIX = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder if it is not there, and keeps other processes out of it. Waits while another has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = _file(folder)
    with FileLock(file, fallback_to_soft=False):
        try:
            folder.mkdir(exist_ok=True)
            yield
        finally:
            if not folder.exists():
                _remove(file)


def remove_abandoned(root: Path, pattern: str) -> None:
    """Removes the folders in `root` of a name like `pattern` that belonged to processes that no longer run."""
    for file in root.glob(f"{pattern}{_SUFFIX}"):
        # held, gone, or on a file system without locks
        with contextlib.suppress(OSError), FileLock(file, blocking=False, fallback_to_soft=False):
            shutil.rmtree(file.with_name(file.name.removesuffix(_SUFFIX)), ignore_errors=True)
            _remove(file)


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_SUFFIX}")


def _remove(file: Path) -> None:
    """Removes a lock's file while the lock is held: who waits for it then makes another."""
    with contextlib.suppress(OSError):  # Windows removes none that is open; filelock does it when it has closed it
        file.unlink()

"""Folders that belong to one process at a time. The kernel's lock ends with the process, however that ends.

Not by the filelock library, since the lock lies in the folder that it guards, and its holder renames or removes that:
in filelock 4 a waiting process then fails, instead of making the folder anew; asking creates a missing lock file, so a
folder that another process has just made would look abandoned; and on a file system without flock, the existence of a
file is the lock, which a killed process leaves behind.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK = "lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder if it is not there, and keeps other processes out of it. Waits while another has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(folder / LOCK, "w")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            continue  # the process that had it has just removed it
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_file_at(lock, folder / LOCK):
                yield
                return


def is_abandoned(folder: Path) -> bool:
    """Returns whether a folder was locked by a process that no longer runs."""
    try:
        with open(folder / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:  # held, or not locked yet, or gone, or on a file system without locks
        return False


def _is_file_at(lock: IO[str], path: Path) -> bool:
    """Returns whether an open file is still the one at `path`, and not one that was removed."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False

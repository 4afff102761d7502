"""Folders that belong to one process at a time. The kernel's lock ends with the process, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK = "lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder if it is not there, and keeps other processes out of it; waits for one that is in."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(folder / LOCK, "w")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            continue  # the process that was in it has just removed it
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock, folder / LOCK):
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


def _is_at(lock: IO[str], place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), place.stat())
    except FileNotFoundError:
        return False

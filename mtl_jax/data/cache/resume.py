"""Going on with a preparation that was stopped: classes that are ready are kept beside the cache's folder.

Only for sources that take long. Two processes that prepare the same data take turns, so the second finds it done.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtl_jax.data.cache import locks
from mtl_jax.data.cache.blocks import ClassBlock


@contextlib.contextmanager
def kept_blocks(folder: Path, wanted: bool) -> Iterator[Path | None]:
    """Yields the locked folder with the classes that are ready, None if not `wanted`; removes it once all is done."""
    if not wanted:
        yield None
        return
    place = folder.with_name(f".partial-{folder.name}")
    with locks.locked(place):
        yield place
        if folder.exists():
            shutil.rmtree(place, ignore_errors=True)


def save_block(place: Path, block: ClassBlock) -> None:
    """Keeps a class, whole or not at all."""
    facts = json.dumps({"names": block.names, "skipped": block.skipped}).encode()
    unfinished = place.with_suffix(".tmp")
    with open(unfinished, "wb") as file:
        np.savez(
            file, images=block.images, order=block.order, digests=block.digests, facts=np.frombuffer(facts, np.uint8)
        )
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(place)


def load_block(place: Path) -> ClassBlock | None:
    """Returns a class that was kept, None if it was not."""
    if not place.exists():
        return None
    with np.load(place, allow_pickle=False) as held:
        facts = json.loads(held["facts"].tobytes())
        return ClassBlock(held["images"], held["order"], facts["names"], held["digests"], facts["skipped"])

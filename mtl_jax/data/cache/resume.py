"""Going on with a preparation that was stopped: finished classes are kept beside the cache's folder.

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
    """Yields the locked folder of the finished classes, None if not `wanted`. Removes it once `folder` is there."""
    if not wanted:
        yield None
        return
    kept = folder.with_name(f".partial-{folder.name}")
    with locks.locked(kept):
        yield kept
        if folder.exists():
            shutil.rmtree(kept, ignore_errors=True)


def save_block(path: Path, block: ClassBlock) -> None:
    """Writes a finished class, whole or not at all."""
    facts = json.dumps({"names": block.names, "skipped": block.skipped}).encode()
    unfinished = path.with_suffix(".tmp")
    with open(unfinished, "wb") as file:
        np.savez(
            file, images=block.images, order=block.order, digests=block.digests, facts=np.frombuffer(facts, np.uint8)
        )
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_block(path: Path) -> ClassBlock | None:
    """Returns a finished class, None if it was not kept."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        return ClassBlock(arrays["images"], arrays["order"], facts["names"], arrays["digests"], facts["skipped"])

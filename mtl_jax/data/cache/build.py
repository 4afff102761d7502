"""From what a reader found to the cache: decode in parallel, order, write.

Images are decoded by threads, a class at a time, and written in order, so the memory in use is a few classes, whatever
the size of the set. Threads, since Pillow lets go of the interpreter while it decodes; processes would each have to
import JAX again, and would need the caller's program to be guarded against being started by them.
"""

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mtl_jax.data import decode
from mtl_jax.data.cache import blocks, resume
from mtl_jax.data.cache.blocks import ClassBlock, Work, class_block, unequal
from mtl_jax.data.cache.writer import Writer
from mtl_jax.data.dataset import SPLITS
from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.source import Contents, Images, Source
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

THREADS = ((64 * 64, 1), (256 * 256, 4))  # images under so many pixels, threads at most
MEMORY = 512 << 20  # bytes of decoded classes that wait to be written

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # images done, images in all
Inspect = Callable[[Contents], None]  # raises where what was found does not do


def build(
    source: Source,
    folder: Path,
    transform: Transform,
    *,
    skip_corrupt: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
    inspect: Inspect | None = None,
) -> None:
    """Writes the cache's folder for a source; `workers` threads decode (0: as many as there are processors).

    `inspect` sees what is there before an image is decoded.

    Raises:
        DataError: an image, a class or a split is not what it should be, or the disk has no room.
    """
    with resume.kept_blocks(folder, source.resumable) as kept:
        if source.resumable and folder.exists():
            return  # another process made it while this one waited for it
        with Writer(folder) as writer:
            contents = source.read(writer.scratch)
            check_contents(contents, source.place)
            if inspect:
                inspect(contents)
            shape, transform = stored_shape(contents, transform)
            totals = {split: sum(map(len, classes.values())) for split, classes in contents.items()}
            copies = 2 if source.resumable else 1
            writer.check_room(copies * sum(totals.values()) * (int(np.prod(shape)) + 64))
            work = Work(transform, shape, skip_corrupt, writer.scratch, kept)
            threads = workers or default_threads(contents)
            done = _Counter(sum(totals.values()), progress)
            for split in (split for split in SPLITS if split in contents):
                ready = _blocks(split, contents[split], work, threads, done)
                writer.write_split(split, tuple(contents[split]), ready, totals[split], shape)
            skipped = writer.index["skipped"]
            if skipped:
                log.warning("%d corrupt images of %d were left out", len(skipped), sum(totals.values()))
            writer.commit({"format": source.format, "place": source.place})


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def add(self, count: int) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.total)


def check_contents(contents: Contents, place: str) -> None:
    """Raises DataError where a split is missing or a class is empty."""
    found = [split for split in SPLITS if split in contents]
    if found not in (list(SPLITS), ["test"]):
        missing = ", ".join(split for split in SPLITS if split not in contents)
        raise DataError(
            f"{place}: the splits found are {', '.join(found) or 'none'}, missing are {missing}; "
            "give all three, or only test for evaluation"
        )
    for split, classes in contents.items():
        if not classes:
            raise DataError(f"{place}: split {split} has no classes; add some")
        for name, images in classes.items():
            if not len(images):
                raise DataError(f"{place}: class {name!r} of split {split} has no images; add some or remove it")


def stored_shape(contents: Contents, transform: Transform) -> tuple[tuple[int, int, int], Transform]:
    """Returns [H, W, C] of the stored images, and the transform with its channels settled.

    Both come from the first image of every class where they are not set: colour if any of these has colour.
    """
    sizes, channels = {}, 1
    for images in (images for classes in contents.values() for images in classes.values()):
        size, depth = probe(images)
        if size == (0, 0):
            continue
        sizes.setdefault(size, images.where(0))
        channels = max(channels, depth)
        if transform.image_size and transform.channels:
            break
    if not transform.image_size and len(sizes) > 1:
        raise unequal(*list(sizes.items())[:2])
    height, width = (transform.image_size,) * 2 if transform.image_size else next(iter(sizes), (1, 1))
    channels = transform.channels or channels
    # A set that looks grey keeps channels = 0, so that an image in colour further on is noticed.
    settled = dataclasses.replace(transform, channels=3 if channels == 3 else transform.channels)
    return (height, width, channels), settled


def default_threads(contents: Contents) -> int:
    """Returns how many threads decode: few for small images, where the interpreter, which they share, does most."""
    images = next(iter(next(iter(contents.values())).values()))
    (height, width), _ = probe(images)
    processors = os.cpu_count() or 1
    return next((min(threads, processors) for pixels, threads in THREADS if height * width < pixels), processors)


def probe(images: Images) -> tuple[tuple[int, int], int]:
    """Returns (height, width), or (0, 0), and the channels of a class's first readable image, from its header."""
    for index in range(len(images)):
        try:
            raw = images.read(index)
            if isinstance(raw, np.ndarray):
                return raw.shape[:2], raw.shape[2] if raw.ndim == 3 else 1
            image = decode.open_image(raw, images.where(index))
        except CorruptImage:
            continue  # decoding will refuse it, or leave it out
        return image.size[::-1], 1 if image.mode in ("1", "L", *decode.SIXTEEN_BIT) else 3
    return (0, 0), 1


def _blocks(
    split: str, classes: Mapping[str, Images], work: Work, workers: int, done: _Counter
) -> Generator[ClassBlock, None, None]:
    """Yields the classes in order while `workers` threads decode those ahead, as far as `MEMORY` allows."""
    largest = max(map(len, classes.values())) * int(np.prod(work.shape))
    ahead = max(1, min(workers + 2, MEMORY // min(largest, blocks.IN_MEMORY)))
    pending: deque = deque()
    waiting = iter(classes.items())
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(pending) < ahead and (item := next(waiting, None)):
                    pending.append(pool.submit(_kept_block, split, *item, work))
                if not pending:
                    return
                block = pending.popleft().result()
                done.add(len(block.order) + len(block.skipped))
                yield block
        finally:
            for future in pending:
                future.cancel()


def _kept_block(split: str, name: str, images: Images, work: Work) -> ClassBlock:
    """Returns a class as an earlier run has left it, or decodes it and leaves it for a later one."""
    if work.kept is None:
        return class_block(split, name, images, work)
    place = work.kept / f"{split}-{name}.npz"
    block = resume.load_block(place)
    if block is None:
        block = class_block(split, name, images, work)
        resume.save_block(place, block)
    return block

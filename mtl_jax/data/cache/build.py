"""Prepares a source into the cache: decodes it in parallel, sorts it, writes it.

Threads decode a class each, and classes are written in order, so only a few are in memory, however large the data set.
Threads suffice, since Pillow releases the interpreter lock while it decodes; each process would have to import JAX
again, and the caller's program would need a guard against running again in them.
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
from mtl_jax.data.transforms import MAX_PIXELS, Transform
from mtl_jax.errors import DataError
from mtl_jax.words import counted

THREADS = ((64 * 64, 1), (256 * 256, 4))  # (pixels, threads): at most so many threads for images under so many pixels
MEMORY = 512 << 20  # bytes of decoded classes that wait to be written

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # (images done, images in all)
Inspect = Callable[[Contents], None]  # raises if the classes will not do


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
    """Writes the cache's folder of a source.

    Args:
        source: what to read.
        folder: where to write.
        transform: how images are stored.
        skip_corrupt: leave out damaged images instead of refusing the data set.
        workers: threads that decode; 0 is one a processor, fewer for small images.
        progress: called after each class with the number of images done and of all.
        inspect: called with the images by split and class before one is decoded; may raise.

    Raises:
        DataError: an image, a class or a split is not what it should be, or the disk is full.
    """
    with resume.kept_blocks(folder, source.resumable) as kept:
        if source.resumable and folder.exists():
            return  # another process made it while this one waited
        with Writer(folder) as writer:
            contents = source.read(writer.scratch)
            check_contents(contents, source.path)
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
                more = " (and others)" if len(skipped) > 1 else ""
                images = counted(sum(totals.values()), "image")
                log.warning("%d of %s left out: %s%s", len(skipped), images, skipped[0], more)
            writer.commit({"format": source.format, "place": source.path})


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def add(self, count: int) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.total)


def check_contents(contents: Contents, path: str) -> None:
    """Raises DataError if a split is missing, or a split or class is empty."""
    splits = [split for split in SPLITS if split in contents]
    if splits not in (list(SPLITS), ["test"]):
        missing = ", ".join(split for split in SPLITS if split not in contents)
        raise DataError(
            f"{path}: the splits found are {', '.join(splits) or 'none'}, missing are {missing}; "
            "give all three, or only test for evaluation"
        )
    for split, classes in contents.items():
        if not classes:
            raise DataError(f"{path}: split {split} has no classes; add some")
        for name, images in classes.items():
            if not len(images):
                raise DataError(
                    f"{path}: class {name!r} of split {split} has no images; add some, or move it elsewhere"
                )


def stored_shape(contents: Contents, transform: Transform) -> tuple[tuple[int, int, int], Transform]:
    """Returns [H, W, C] of the stored images, and the transform with its channels settled.

    What the transform leaves open comes from the first image of every class. If one of these is in colour, all are.
    """
    sizes, channels = {}, 1
    for images in (images for classes in contents.values() for images in classes.values()):
        size, depth = probe(images, transform.max_pixels)
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
    # If these are all grey, channels stay 0, so that a later image in colour is noticed.
    settled = dataclasses.replace(transform, channels=3 if channels == 3 else transform.channels)
    return (height, width, channels), settled


def default_threads(contents: Contents) -> int:
    """Returns how many threads decode: few for small images, since they share the interpreter, which then does most."""
    images = next(iter(next(iter(contents.values())).values()))
    (height, width), _ = probe(images)
    processors = os.cpu_count() or 1
    return next((min(threads, processors) for pixels, threads in THREADS if height * width < pixels), processors)


def probe(images: Images, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], int]:
    """Returns (height, width) and channels of a class's first readable image, by its header; (0, 0), 1 without any."""
    for index in range(len(images)):
        try:
            raw = images.read(index)
            if isinstance(raw, np.ndarray):
                return raw.shape[:2], raw.shape[2] if raw.ndim == 3 else 1
            image = decode.open_image(raw, images.where(index), max_pixels)
        except CorruptImage:
            continue  # decoding will refuse it or leave it out
        return image.size[::-1], 1 if image.mode in ("1", "L", *decode.SIXTEEN_BIT) else 3
    return (0, 0), 1


def _blocks(
    split: str, classes: Mapping[str, Images], work: Work, workers: int, done: _Counter
) -> Generator[ClassBlock, None, None]:
    """Yields the classes in order, while `workers` threads decode the next ones, as far as `MEMORY` allows."""
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
    """Returns a class that an earlier run has kept, or decodes it and keeps it for a later run."""
    if work.kept is None:
        return class_block(split, name, images, work)
    path = work.kept / f"{split}-{name}.npz"
    block = resume.load_block(path)
    if block is None:
        block = class_block(split, name, images, work)
        resume.save_block(path, block)
    return block

"""Row g: preparing 6,000 JPEGs of 84 x 84 pixels and opening them again; decoding them one by one instead."""

import itertools
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data import pictures
from benchmarks.worker import Measured, Work, timed
from mtl_jax import data

COUNT = {False: 6000, True: 100}
EACH = {False: 60, True: 10}  # images a class


def write(folder: Path, quick: bool) -> Path:
    """Class folders of JPEGs, all different."""
    root = folder / "jpegs"
    for number, (_, encoded) in enumerate(pictures(COUNT[quick])):
        path = root / "test" / f"class{number // EACH[quick]:03d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    return root


def prepare_cache(row: str, folder: Path, quick: bool) -> Work:
    """mtl_jax's side: decoded once into a memory-mapped cache, which later runs open."""
    root, numbers = write(folder, quick), itertools.count()
    kept = folder / "cache"

    def load(cache: Path) -> None:
        found = data.load("folder", str(root), image_size=84, channels=3, cache_dir=str(cache))
        assert len(found.splits["test"].images) == COUNT[quick]

    def prepare() -> Measured:
        cache = folder / f"cache-{next(numbers)}"
        measured = timed(lambda: load(cache))
        shutil.rmtree(cache)
        return measured

    return Work({"prepare": prepare, "open": lambda: timed(lambda: load(kept))}, warm=lambda: load(kept))


def prepare_files(row: str, folder: Path, quick: bool) -> Work:
    """What a data set that keeps files does in every epoch: each opened and decoded by Pillow, on one core."""

    def decode() -> None:
        for path in sorted((folder / "jpegs").glob("*/*/*.jpg")):
            with Image.open(path) as image:
                np.asarray(image.convert("RGB"))

    return Work({"decode": lambda: timed(decode)})

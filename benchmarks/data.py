"""What preparing and opening data sets costs: time on a folder of JPEGs, memory on a synthetic set of any size.

python benchmarks/data.py speed FOLDER                     prepare FOLDER (class folders) and open it again
python benchmarks/data.py memory SCRATCH [--images 44870]  files, tar, npz: prepare, and gather episodes

`memory` makes as many 84 x 84 images as is said, 1,278 a class (the train split of tieredImageNet has 448,695),
prepares them in a process of its own from each format, then gathers episodes with the prefetching thread, and prints
the most anonymous memory (RssAnon, which leaves out the pages of mapped files) that the process had, less what it had
before.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASS_SIZE = 1278
SIDE = 84


def anonymous_memory() -> int:
    """Returns the anonymous resident memory of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        facts = dict(line.split(":", 1) for line in lines)
    return int(facts["RssAnon"].split()[0]) * 1024


class Peak:
    """Watches the anonymous memory of this process in a thread; `most` is the most over what it was at the start."""

    def __enter__(self) -> "Peak":
        self.first = self.last = anonymous_memory()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.005):
            self.last = max(self.last, anonymous_memory())

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()

    @property
    def most(self) -> int:
        return self.last - self.first


def speed(folder: Path) -> None:
    """Prints how long preparing and opening again take, and preparing's processor time, which other work moves less."""
    from mtl_jax import data

    with tempfile.TemporaryDirectory() as cache:
        times, used = [], []
        for _ in range(2):
            start, processor = time.perf_counter(), time.process_time()
            found = data.load("folder", str(folder), image_size=SIDE, channels=3, cache_dir=cache)
            times.append(time.perf_counter() - start)
            used.append(time.process_time() - processor)
    images = sum(len(split.images) for split in found.splits.values())
    print(
        f"{images} images: prepared in {times[0]:.2f} s ({images / times[0]:.0f} a second; {used[0]:.2f} s of one "
        f"processor), opened in {times[1]:.3f} s"
    )


def pictures(count: int):
    """Yields class and JPEG of `count` images, all different and about as large as photographs of their size."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (64, 12, 12, 3), np.uint8)
    for i in range(count):
        image = Image.fromarray(np.roll(coarse[i % 64], i // 64, axis=1) ^ np.uint8(i % 251))
        file = io.BytesIO()
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        yield i % -(-count // CLASS_SIZE), file.getvalue()


def write_sets(scratch: Path, count: int) -> None:
    """Writes the synthetic set as class folders, a tar of them, and an .npz."""
    images = np.lib.format.open_memmap(scratch / "images.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    labels = np.empty(count, np.int64)
    with tarfile.open(scratch / "set.tar", "w") as tar:
        for i, (label, encoded) in enumerate(pictures(count)):
            name = f"test/c{label:03d}/{i}.jpg"
            (scratch / "folders" / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / "folders" / name).write_bytes(encoded)
            member = tarfile.TarInfo(name)
            member.size = len(encoded)
            tar.addfile(member, io.BytesIO(encoded))
            images[i], labels[i] = np.asarray(Image.open(io.BytesIO(encoded))), label
    (scratch / "npz").mkdir()
    np.savez(scratch / "npz" / "test.npz", images=images, labels=labels)
    del images
    (scratch / "images.npy").unlink()


def measure(path: Path, cache: Path) -> dict[str, float]:
    """Prepares one format and gathers 500 meta-batches of 4 tasks from it; in a process of its own."""
    import jax

    from mtl_jax import data, episodes
    from mtl_jax.data.prefetch import Prefetch

    with Peak() as prepare:
        start = time.perf_counter()
        found = data.load("folder", str(path), channels=3, cache_dir=str(cache))
        seconds = time.perf_counter() - start
    split = found.splits["test"]
    table = jax.tree.map(jax.numpy.asarray, split.table())
    draw = jax.jit(jax.vmap(lambda key: episodes.sample_episode(key, table, way=5, shot=5, query=15)))
    with Peak() as gather:
        keys = (jax.random.split(jax.random.fold_in(jax.random.key(0), step), 4) for step in range(500))
        start = time.perf_counter()
        with Prefetch(split.images, map(draw, keys)) as batches:
            tasks = 4 * sum(1 for _ in batches)
        rate = tasks / (time.perf_counter() - start)
    return {
        "seconds": seconds,
        "prepare": prepare.most,
        "gather": gather.most,
        "rate": rate,
        "bytes": split.images.nbytes,
    }


def memory(scratch: Path, count: int) -> None:
    """Prints the memory and time of every format."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        root = Path(place)
        write_sets(root, count)
        for name in ("folders", "set.tar", "npz"):
            command = [sys.executable, __file__, "measure", str(root / name), str(root / f"cache-{name}")]
            facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{name}: {count} images, {facts['bytes'] / 1e9:.2f} GB: prepared in {facts['seconds']:.1f} s with "
                f"{facts['prepare'] / 1e6:.0f} MB, tasks gathered with {facts['gather'] / 1e6:.0f} MB more "
                f"at {facts['rate']:.0f} a second"
            )


def main() -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["speed", "memory", "measure"])
    parser.add_argument("path", type=Path)
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=44_870)
    flags = parser.parse_args()
    if flags.command == "speed":
        speed(flags.path)
    elif flags.command == "memory":
        memory(flags.path, flags.images)
    else:
        print(json.dumps(measure(flags.path, flags.cache)))


if __name__ == "__main__":
    main()

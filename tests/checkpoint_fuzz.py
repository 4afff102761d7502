"""Damages checkpoints at random and counts what is accepted all the same: `python tests/checkpoint_fuzz.py 200`."""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from mtl_jax.errors import CheckpointError
from mtl_jax.workdir.checkpoint import Checkpoints


def sample_items(rng: np.random.Generator) -> dict:
    """Items like those of a run: parameters of a few layers, and a state with counters, flags and averages."""
    layers = {f"block{i}": {"kernel": rng.standard_normal((3, 3, 4, 8), np.float32)} for i in range(3)}
    state = {"step": np.int32(7), "pool": rng.integers(0, 9, 40, np.int32), "done": np.array([True, False])}
    return {"params": layers, "state": state}


def flip(rng: np.random.Generator, files: list[Path]) -> None:
    """Changes one bit of one file."""
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def truncate(rng: np.random.Generator, files: list[Path]) -> None:
    """Cuts one file anywhere."""
    path = rng.choice(files)
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def append(rng: np.random.Generator, files: list[Path]) -> None:
    """Adds bytes to the end of a file."""
    path = rng.choice(files)
    path.write_bytes(path.read_bytes() + rng.bytes(rng.integers(1, 20)))


def overwrite(rng: np.random.Generator, files: list[Path]) -> None:
    """Writes noise over a part of a file."""
    path = rng.choice(files)
    data = path.read_bytes()
    at = rng.integers(len(data))
    noise = rng.bytes(rng.integers(1, 64))
    path.write_bytes((data[:at] + noise + data[at + len(noise) :])[: len(data)])


def delete(rng: np.random.Generator, files: list[Path]) -> None:
    """Deletes one file."""
    rng.choice(files).unlink()


def delete_folder(rng: np.random.Generator, files: list[Path]) -> None:
    """Deletes a folder inside the checkpoint, with all that is in it."""
    top = min(len(path.parts) for path in files)
    shutil.rmtree(rng.choice([path.parent for path in files if len(path.parts) > top]))


def swap(rng: np.random.Generator, files: list[Path]) -> None:
    """Gives two files each other's names."""
    one, other = rng.choice(files, 2, replace=False)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def replace_by_link(rng: np.random.Generator, files: list[Path]) -> None:
    """Puts a link to a device that never ends in a file's place."""
    path = rng.choice(files)
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGES = (flip, truncate, append, overwrite, delete, delete_folder, swap, replace_by_link)


def fuzz(directory: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Damages a checkpoint `count` times, each time anew, and asks for it.

    Returns:
      How many damages were tried, refused by CheckpointError, and accepted (which must be none). Anything but a
      CheckpointError is raised.
    """
    rng = np.random.default_rng(seed)
    checkpoints = Checkpoints(directory)
    checkpoints.save(7, sample_items(rng), {"config": {"seed": 1, "backbone": {"name": "conv4"}}, "best": 0.5})
    whole, folder = directory / "whole", directory / "7"
    shutil.copytree(folder, whole)
    counts = {"tried": 0, "refused": 0, "accepted": 0}
    while counts["tried"] < count:
        damage = DAMAGES[counts["tried"] % len(DAMAGES)]
        damage(rng, sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
        if not _same(folder, whole):
            counts["tried"] += 1
            counts["accepted" if _accepted(checkpoints) else "refused"] += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
    checkpoints.read(7)  # whole, it is accepted
    return counts


def _accepted(checkpoints: Checkpoints) -> bool:
    try:
        checkpoints.read(7)
    except CheckpointError as error:
        assert "\n" not in str(error) and str(checkpoints.directory / "7") in str(error), error
        return False
    return True


def _same(folder: Path, whole: Path) -> bool:
    def content(path: Path) -> dict:
        files = (file for file in path.rglob("*") if not file.is_dir())
        return {
            file.relative_to(path): file.is_file() and not file.is_symlink() and file.read_bytes() for file in files
        }

    return folder.is_dir() and content(folder) == content(whole)


def main() -> None:
    """Prints the counts; status 1 where a damaged checkpoint was accepted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        counts = fuzz(Path(directory), options.count, options.seed)
    print(f"checkpoints damaged: {counts['tried']}, refused: {counts['refused']}, accepted: {counts['accepted']}")
    raise SystemExit(counts["accepted"] > 0)


if __name__ == "__main__":
    main()

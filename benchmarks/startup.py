"""Row h: seconds from the command to the first finished step of `train.py`, for the first time and again."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.worker import ROOT, Measured, Work

LIMIT = 300  # seconds until a start is given up


def _to_first_step(folder: Path, name: str) -> Measured:
    """Starts the demo's training and waits for its first line of metrics, which is written once step 1 is done."""
    place = folder / name
    command = [sys.executable, "train.py", "--config=configs/glyphs.py", f"--workdir={place}"]
    command += ["--config.runtime.log_every=1", "--config.pretrain.val_tasks=0"]
    caches = {"MTL_JAX_CACHE": str(folder / "images"), "MTL_JAX_COMPILATION_CACHE": str(folder / "compiled")}
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_ENABLE_COMPILATION_CACHE")}
    start = time.perf_counter()
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**environment, **caches}, stdout=log, stderr=log)
        try:
            while not _has_line(place / "metrics.jsonl"):
                if process.poll() is not None or time.perf_counter() - start > LIMIT:
                    raise RuntimeError(f"{folder / name}.log: no first step")
                time.sleep(0.02)
            return Measured(time.perf_counter() - start)
        finally:
            process.kill()
            process.wait()


def _has_line(path: Path) -> bool:
    return path.exists() and b"\n" in path.read_bytes()


def prepare_again(row: str, folder: Path, quick: bool) -> Work:
    """With the caches that an earlier start has left: of images, of compiled programs."""
    numbers = itertools.count()
    return Work({"": lambda: _to_first_step(folder, f"again-{next(numbers)}")}, warm=lambda: None)


def prepare_first(row: str, folder: Path, quick: bool) -> Work:
    """With empty caches."""
    numbers = itertools.count()

    def run() -> Measured:
        for cache in ("images", "compiled"):
            shutil.rmtree(folder / cache, ignore_errors=True)
        return _to_first_step(folder, f"first-{next(numbers)}")

    return Work({"": run}, warm=lambda: None)

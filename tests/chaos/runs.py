"""A training run of seconds, watched from outside, and what two ends of it are compared by."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mtl_jax.workdir import manifest
from mtl_jax.workdir.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
STEPS, VALIDATE = 40, 20  # of each phase
PHASES = ("pretrain", "meta")
LIMIT = 600  # seconds that anything here may take, on a machine that may be busy
WORDS = {
    "data.name": "folder", "backbone.width": 0.05, "inner.steps": 2,
    "pretrain.steps": STEPS, "pretrain.batch_size": 8, "pretrain.val_every": VALIDATE, "pretrain.val_tasks": 200,
    "meta.steps": STEPS, "meta.val_every": VALIDATE, "meta.val_tasks": 200, "meta.way": 3, "meta.query": 2,
    "meta.tasks_per_step": 4, "hard_tasks.enabled": True, "hard_tasks.round": 3, "hard_tasks.extra": 4,
    "runtime.log_every": 1, "runtime.checkpoint_every": 4,
}  # fmt: skip


class Position(NamedTuple):
    """How far a run is by its metrics: the phase's number, the last line's step, and whether it is a validation."""

    phase: int
    step: int
    validated: bool = False


class Setting(NamedTuple):
    """Where the harness works: `folder` has the data and all caches; `devices` are virtual ones."""

    folder: Path
    devices: int = 1

    def command(self, workdir: Path) -> list[str]:
        """train.py on the tiny data set in a workdir."""
        words = [f"--config.{key}={value}" for key, value in {**WORDS, "data.path": self.folder / "data"}.items()]
        return [sys.executable, str(ROOT / "train.py"), "--config=configs/default.py", f"--workdir={workdir}", *words]

    def environment(self) -> dict[str, str]:
        """One compilation cache for all runs, which makes starts short; it is filled before anything is killed."""
        return {
            **os.environ, "JAX_PLATFORMS": "cpu", "MTL_JAX_CACHE": str(self.folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"), "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}",
        }  # fmt: skip


def make_data(folder: Path) -> None:
    """Grey 16 x 16 noise as .npz files: 6 training classes, 3 of each other split, 8 images each."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, classes in (("train", 6), ("val", 3), ("test", 3)):
        images = rng.integers(0, 256, (classes * 8, 16, 16, 1), np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=np.repeat(np.arange(classes), 8))


class Run:
    """A process of train.py, started; its last words are in `workdir`.stderr."""

    _all: ClassVar[list["Run"]] = []

    @classmethod
    def end_all(cls) -> None:
        """Kills what still runs of those that this process has started, those held still as well."""
        for run in cls._all:
            if run._process.poll() is None:
                run.send(signal.SIGKILL)
                run._process.wait()

    def __init__(self, setting: Setting, workdir: Path) -> None:
        self.workdir, self._said = workdir, workdir.with_name(workdir.name + ".stderr")
        with open(self._said, "wb") as file:
            self._process = subprocess.Popen(
                setting.command(workdir), env=setting.environment(), stderr=file, stdout=subprocess.DEVNULL, cwd=ROOT
            )
        self.pid = self._process.pid
        self._all.append(self)

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition of the workdir; False where the run has ended without it."""
        started = time.monotonic()
        while not condition():
            if self._process.poll() is not None:
                return False
            if time.monotonic() - started > LIMIT:
                self.send(signal.SIGKILL)
                raise AssertionError(f"{self.workdir}: nothing happened in {LIMIT} s\n{self.said()}")
            time.sleep(0.002)
        return True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to this process and no other."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        try:
            return self._process.wait(LIMIT)
        except subprocess.TimeoutExpired as error:
            self.send(signal.SIGKILL)
            raise AssertionError(f"{self.workdir}: did not end in {LIMIT} s\n{self.said()}") from error

    def said(self) -> str:
        """What it wrote to stderr."""
        return self._said.read_text(errors="replace")


def position(workdir: Path) -> Position:
    """How far the run is; (0, 0) before the first line."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return Position(0, 0)
    if not lines:
        return Position(0, 0)
    record = json.loads(lines[-1])
    phase = max(PHASES.index(name.split("/")[0]) for name in record if name != "step")
    return Position(phase, record["step"], any("/val_" in name for name in record))


def is_saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written or deleted: it has a temporary name then."""
    for phase in PHASES:
        try:
            names = os.listdir(workdir / phase)
        except FileNotFoundError:
            continue
        if any(".tmp" in name or ".old" in name for name in names):
            return True
    return False


def is_validating(workdir: Path) -> bool:
    """Whether a validation is due and has not been written."""
    at = position(workdir)
    return at.step > 0 and at.step % VALIDATE == 0 and not at.validated and not is_saving(workdir)


def newest(workdir: Path) -> tuple[Position, bool]:
    """Where the newest checkpoint stands, and whether all that a restart would read is whole."""
    whole, at = True, Position(0, 0)
    for number, phase in enumerate(PHASES):
        checkpoints = Checkpoints(workdir / phase)
        if checkpoints.steps():
            found = checkpoints.read().step
            whole, at = whole and found == checkpoints.steps()[-1], Position(number, found)
    return at, whole


def end(workdir: Path, steps: int = STEPS) -> dict[str, Any]:
    """What must be the same at the end: bytes of metrics.jsonl, digests of all arrays, what best.json points at."""
    found: dict[str, Any] = {"metrics.jsonl": (workdir / "metrics.jsonl").read_bytes()}
    for phase in PHASES:
        checkpoints = Checkpoints(workdir / phase)
        best = checkpoints.best()
        for step in {steps, best["step"]}:
            checkpoints.read(step)  # verifies it
            saved = manifest.read(workdir / phase / str(step))
            own = {name: value for name, value in saved.metadata.items() if name != "config"}
            found[f"{phase}/{step}"] = saved.arrays, own
        found[f"{phase}/best.json"] = best
    return found

"""`python -m results gpu`: pre-training, meta-training and tests of one data set in the minutes that a GPU is lent.

A plan names what runs in which order. Pre-training gets as many epochs as fit its share of the time, by the rate that
the first steps show; then come the rows, the most wanted first. What does not fit any more is named and left out. A
row's network is rounded to half precision, read back and tested as it is kept. The pre-trained network is kept whole,
of rows with SS only Φ and the head, of fine-tuned rows the figures. All of it is packed into files of 15 MiB.
"""

import argparse
import io
import os
import signal
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from mtl_jax.configs import fc100, miniimagenet

from mtl_jax import ablation, config, parallel, workdir
from mtl_jax.config import build, presets
from mtl_jax.config.presets import Facts
from mtl_jax.data import Dataset
from mtl_jax.errors import ConfigError
from mtl_jax.reference_weights import kept_networks
from mtl_jax.train import loop, train
from results import keep, measure

PIECE = 15 << 20  # bytes of a packed file
BEFORE_A_ROW = 45.0  # seconds without which no row is begun: it compiles first


class Plan(NamedTuple):
    """What runs.

    get_config, facts: of the data set. epochs: of pre-training, fewer where the time is short. share: of the minutes,
    for pre-training. options: by dotted key, for all runs. rows: (row of the ablation, shot), in order. minutes: how
    long the parts should take on a GPU of the H100 class, for the reader.
    """

    get_config: Callable[[str], ConfigDict]
    facts: Facts
    epochs: int
    share: float
    options: Mapping[str, Any]
    rows: tuple[tuple[str, int], ...]
    minutes: Mapping[str, float]


ROWS = tuple((row, shot) for row in ("train_head", "ss_all", "ss_all_hard", "ft_all") for shot in (5, 1))
_RUNTIME = {
    "runtime.dtype": "auto", "runtime.steps_per_dispatch": 10, "runtime.memory_gb": 60.0, "runtime.log_every": 100,
    "data.device_budget_gb": 8.0,
}  # fmt: skip
_META = {"meta.steps": 400, "meta.val_every": 100, "meta.tasks_per_step": 4, "meta.lr": 3e-4, "hard_tasks.extra": 8}
# Rotations as SKD has them (arXiv 2006.09785) where a step is cheap; at no cost, as EASY (arXiv 2201.09699), where not.
_FC100 = {
    "pretrain.rotation": 0.5, "pretrain.rotation_head": "logits", "backbone.dropout": 0.1, "backbone.dropblock": 2,
}  # fmt: skip
_MINIIMAGENET = {
    "pretrain.rotation": 1.0, "pretrain.rotation_views": "quarter", "backbone.dropout": 0.1, "backbone.dropblock": 5,
    "pretrain.batch_size": 128, "pretrain.lr": 0.1,
}  # fmt: skip
PLANS = {
    "fc100": Plan(
        fc100.get_config, presets.FC100, 65, 0.6, {**_RUNTIME, **_META, **_FC100}, ROWS,
        {"data": 0.2, "pretrain": 4.8, "a row": 0.4},
    ),
    "miniimagenet": Plan(
        miniimagenet.get_config, presets.MINIIMAGENET, 100, 0.65, {**_RUNTIME, **_META, **_MINIIMAGENET}, ROWS,
        {"data": 0.3, "pretrain": 5.2, "a row": 0.4},
    ),
}  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--data", required=True, help="a folder with a folder a data set: fc100, miniimagenet")
    parser.add_argument("--plan", required=True, choices=sorted(PLANS))
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything, preparing the data included")
    parser.add_argument("--workdir", default="runs/gpu", help="for the runs; one that was stopped goes on")
    parser.add_argument("--output", default="runs/gpu-results", help="for the packed rows and networks")
    parser.add_argument("--init", default="", help="a pre-trained network that an earlier plan kept, to go on from")
    parser.add_argument("--commit", default="", help="that this runs at, for the rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="below 1 for a rehearsal: width, epochs, steps, tasks")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and end")


def main(flags: argparse.Namespace) -> int:
    """Runs a plan; 1 where not a single row was measured."""
    session = Session(flags)
    print(session.describe(), flush=True)
    if flags.dry_run:
        return 0
    try:
        session.run()
    finally:
        for path in pack(session.kept, Path(flags.output)):
            print(f"packed: {path} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)
    return int(not session.measured)


class Session:
    """One run of a plan: its clock, its folders and what it has measured so far."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags, self.plan = flags, PLANS[flags.plan]
        self.end = time.monotonic() + 60 * flags.minutes
        self.runs = Path(flags.workdir) / flags.plan
        self.kept = Path(flags.workdir) / f"{flags.plan}-kept"
        self.measured: dict[tuple[str, int], Any] = {}
        self.base: Path | None = None  # the file of the pre-trained network, once it is written

    def left(self) -> float:
        """Seconds until the time is up."""
        return self.end - time.monotonic()

    def describe(self) -> str:
        """What will run, in which order, and how long each part should take."""
        plan, parts = self.plan, self.plan.minutes
        init = f"pre-training from {self.flags.init}" if self.flags.init else (
            f"pre-training: up to {plan.epochs} epochs in at most {plan.share * self.flags.minutes:.1f} min "
            f"(about {parts['pretrain']:g})"
        )  # fmt: skip
        lines = [f"plan {self.flags.plan}, {self.flags.minutes:g} minutes", f"data: about {parts['data']:g} min", init]
        lines += [f"{row}, {shot}-shot: about {parts['a row']:g} min" for row, shot in plan.rows]
        return "\n".join(lines)

    def config(self, shot: int) -> ConfigDict:
        """The config of a shot's runs, scaled down for a rehearsal."""
        settings = self.plan.get_config(f"resnet12_640,{shot}shot")
        settings.data.path = str(Path(self.flags.data) / self.flags.plan)
        settings.seed = self.flags.seed
        settings = measure.changed(settings, self.plan.options)
        scale = self.flags.scale
        if parallel.on_cpu():  # which computes convolutions in a loop many times more slowly than outside
            settings.runtime.steps_per_dispatch = 1
        if scale < 1:
            settings.backbone.width = scale
            dispatch = settings.runtime.steps_per_dispatch
            settings.meta.update({"steps": _whole(scale * settings.meta.steps, dispatch), "val_every": dispatch})
            settings.meta.val_tasks = settings.pretrain.val_tasks = max(20, round(scale * settings.meta.val_tasks))
        return settings

    def run(self) -> None:
        """Everything that the time allows."""
        base = self.config(5)
        dataset = build.dataset(base.data)
        self.say("the data is ready")
        init = self.flags.init or self.pretrain(base)
        for row, shot in self.plan.rows:
            if self.left() < BEFORE_A_ROW * self.flags.scale:
                print(f"{row}, {shot}-shot: not run, the time is up", flush=True)
                continue
            self.row(row, shot, init, dataset)

    def pretrain(self, settings: ConfigDict) -> str:
        """Pre-trains for as many epochs as fit, and returns the workdir."""
        until = time.monotonic() + self.plan.share * 60 * self.flags.minutes
        before = workdir.Workdir(self.runs / "pretrain").config
        if before.exists():  # as many epochs as a run that was stopped had planned
            return self.train(config.read(before), "pretrain", until)
        settings = settings.copy_and_resolve_references()
        settings.meta.learn = "none"
        epoch = self.plan.facts.images // settings.pretrain.batch_size
        wanted = max(1, round(self.plan.epochs * min(1.0, self.flags.scale)))
        rate = self.steps_per_second(settings)
        fitting = int(0.95 * (until - time.monotonic()) * rate / epoch)
        epochs = max(1, min(wanted, fitting))
        print(f"{rate:.1f} steps a second: {epochs} of {wanted} epochs fit", flush=True)
        dispatch = settings.runtime.steps_per_dispatch
        presets.three_drops(settings, _whole(epochs * epoch, dispatch))
        settings.pretrain.dropblock_ramp = settings.pretrain.steps
        settings.pretrain.val_every = _whole(settings.pretrain.steps / 10, dispatch)
        settings.runtime.checkpoint_every = settings.pretrain.val_every
        return self.train(settings, "pretrain", until)

    def steps_per_second(self, settings: ConfigDict) -> float:
        """The rate of pre-training once it is compiled, by some steps in a workdir of their own."""
        settings = settings.copy_and_resolve_references()
        dispatch = settings.runtime.steps_per_dispatch
        settings.pretrain.update({"steps": 12 * dispatch, "val_every": 0})
        settings.runtime.update({"log_every": 2 * dispatch, "checkpoint_every": 12 * dispatch})
        marks: list[tuple[int, float]] = []
        with tempfile.TemporaryDirectory() as folder:
            train(settings, folder, hooks=[lambda step, _: marks.append((step, time.monotonic()))])
        (first, start), (last, stop) = marks[1], marks[-1]
        return (last - first) / (stop - start)

    def train(self, settings: ConfigDict, name: str, until: float | None = None) -> str:
        """A run in a workdir of its own, stopped and saved when its time is up; returns the workdir."""
        path = str(self.runs / name)
        alarm = threading.Timer(
            max(1.0, (until or self.end) - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM)
        )
        alarm.daemon = True
        before = signal.signal(signal.SIGTERM, lambda *_: None)  # it may ring when training has just ended
        alarm.start()
        try:
            train(settings, path)
        except loop.Stopped:
            print(f"{name}: stopped, its time is up; its best checkpoint counts", flush=True)
        finally:
            alarm.cancel()
            signal.signal(signal.SIGTERM, before)
        metrics = workdir.Workdir(path).metrics
        if metrics.exists() and metrics.stat().st_size:
            (self.kept / "metrics").mkdir(parents=True, exist_ok=True)
            workdir.write_bytes_atomic(self.kept / "metrics" / f"{name}.jsonl", metrics.read_bytes())
        self.say(f"{name} is trained")
        return path

    def row(self, row: str, shot: int, init: str, dataset: Dataset) -> None:
        """Trains a row, keeps its network, tests it as it is kept and writes its record."""
        settings = ablation.apply_row(self.config(shot), row)
        settings.pretrain.init = init
        started = time.monotonic()
        path = self.train(settings, f"{shot}shot-{row}")
        minutes = (time.monotonic() - started) / 60
        found = measure.load(row, path, dataset, way=settings.meta.way, shot=shot)
        name = keep.row_name(row, "", settings, settings.meta.way, shot)
        file = self.weights(name, found)
        tested = kept_networks.read(file) if file else found
        measured = measure.test(tested, dataset)
        record = keep.record_of(row, "", tested, measured, self.measured.get(("train_head", shot)))
        record |= {
            "commands": [self.command()], "commit": {"training": self.flags.commit}, "device": keep.device(),
            "minutes_training": round(minutes, 1), "weights": f"weights/{file.name}" if file else "",
            "weights_sha256": kept_networks.digest(file) if file else "",
            "weights_bytes": file.stat().st_size if file else 0, "note": "",
        }  # fmt: skip
        self.measured[row, shot] = measured
        workdir.write_json_atomic(self.kept / f"{name}.json", record)
        self.say(f"{name}: {100 * record['figures'][0]['accuracy']:.2f} %")

    def weights(self, name: str, found: kept_networks.Kept) -> Path | None:
        """The file of a row's network in half precision, the first one whole; None where it is not kept."""
        if not found.model.learned.keys() <= {"ss", "head"}:
            return None
        file = self.kept / "weights" / f"{name}.safetensors"
        kept_networks.write(file, found, base=self.base, dtype=np.float16)
        self.base = self.base or file
        return file

    def command(self) -> str:
        """The command of this plan, with this machine's paths replaced."""
        flags = self.flags
        words = f"--plan={flags.plan} --minutes={flags.minutes:g} --seed={flags.seed} --scale={flags.scale:g}"
        return f"python -m results gpu --data=D {words}"

    def say(self, what: str) -> None:
        print(f"[{self.flags.minutes - self.left() / 60:5.1f} min] {what}", flush=True)


def _whole(steps: float, dispatch: int) -> int:
    """The nearest whole number of dispatches, at least one, in steps."""
    return dispatch * max(1, round(steps / dispatch))


def pack(folder: Path, output: Path) -> list[Path]:
    """All files of a folder as one archive, cut into pieces of at most 15 MiB: output/part0, part1, ..."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        if folder.exists():
            archive.add(folder, arcname=".")
    output.mkdir(parents=True, exist_ok=True)
    content, paths = buffer.getvalue(), []
    for number, start in enumerate(range(0, len(content), PIECE)):
        paths.append(output / f"part{number}")
        paths[-1].write_bytes(content[start : start + PIECE])
    return paths


def unpack(parts: list[Path], folder: Path) -> None:
    """The files of `pack` again. Raises ConfigError where a piece is missing or damaged."""
    try:
        content = io.BytesIO(b"".join(path.read_bytes() for path in parts))
        with tarfile.open(fileobj=content, mode="r:gz") as archive:
            archive.extractall(folder, filter="data")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{parts[0].parent}: not all pieces of a packed plan ({error})") from error

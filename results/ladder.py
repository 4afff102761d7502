"""`python -m results ladder`: FC100's recipe one part at a time, each rung paired with the one that it is built on.

A rung is a pre-training by `configs/fc100_cpu.py:resnet12_640` with other values for some keys. Its network is tested
on the same 10,000 tasks at both shots, and how many query images each task got right is kept, so that rungs that were
trained at different times can still be compared task by task.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from mtl_jax.configs import fc100_cpu

from mtl_jax import config, metrics, workdir
from mtl_jax.config import build, presets
from mtl_jax.data import Dataset
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import network
from mtl_jax.evaluation import Model, Protocol, Tasks, adapt_on_bank, embed_all, sample_all
from mtl_jax.meta import Inner
from mtl_jax.reference_weights import kept_networks
from mtl_jax.reference_weights.kept_networks import Kept
from mtl_jax.train import train
from mtl_jax.workdir.checkpoint import Checkpoints
from results import heads, keep, measure
from results.records import LADDER, ladder_name

SHOTS = (1, 5)
QUERIES = 5 * 15  # of a task
# Of MTL's head: what is done to features before it, and the inner rate that the grid is around.
MTL_HEADS = {"mtl": ("l2", 3.0), "mtl_plain": ("plain", 0.03)}


class Rung(NamedTuple):
    """A part of the recipe: the rung that it is built on, and the values that it changes by dotted key.

    teacher: the rung whose network is learned from, if any.
    """

    label: str
    after: str | None
    options: Mapping[str, Any]
    teacher: str = ""


RUNGS: Mapping[str, Rung] = {
    "tensorflow_block": Rung("the TensorFlow implementation's block, at its rate", None, {
        "backbone.name": "resnet12", "pretrain.lr": 0.01, "pretrain.label_smoothing": 0.1,
        "pretrain.augment.pad": "edge", "pretrain.augment.jitter": 0.0,
    }),
    "published_block": Rung("`resnet12_640`, rate 0.05", "tensorflow_block", {
        "backbone.name": "resnet12_640", "pretrain.lr": 0.05,
    }),
    "no_smoothing": Rung("no label smoothing", "published_block", {"pretrain.label_smoothing": 0.0}),
    "black": Rung("crops padded with black", "no_smoothing", {"pretrain.augment.pad": "zero"}),
    "jitter": Rung("colour jitter 0.4", "black", {"pretrain.augment.jitter": 0.4}),
    "rotation_quarter": Rung("each image at one of four angles, told from the features", "jitter", {
        "pretrain.rotation": 1.0, "pretrain.rotation_views": "quarter",
    }),
    "rotation_quarter_logits": Rung("the angle told from the class logits", "rotation_quarter", {
        "pretrain.rotation_head": "logits",
    }),
    "rotation_all": Rung("each image at all four angles, at four times the cost", "rotation_quarter", {
        "pretrain.rotation_views": "all",
    }),
    "distilled": Rung("a second network taught by the first", "jitter", {}, "jitter"),
    "rotation_distilled": Rung("a second network taught by that one", "rotation_quarter", {}, "rotation_quarter"),
}  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--data", required=True, help="a folder with a folder a data set: fc100")
    parser.add_argument("--workdir", required=True, help="a folder for the runs; one that was stopped goes on")
    parser.add_argument("--width", type=float, default=0.25, help="of the network")
    parser.add_argument("--epochs", type=int, default=15, help="of pre-training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", required=True, help="that the runs were trained with")
    parser.add_argument("--keep", action="store_true", help="keep the networks, in half precision, to go on from")
    parser.add_argument("rungs", nargs="*", help="without any: all, in order")


def main(flags: argparse.Namespace) -> int:
    """Trains and tests the rungs that have no record yet, and writes a record of each."""
    if unknown := set(flags.rungs) - set(RUNGS):
        raise ConfigError(f"rung {min(unknown)!r} is unknown, expected one of {', '.join(RUNGS)}")
    for rung in flags.rungs or RUNGS:
        name = ladder_name(rung, vars(flags))
        if (LADDER / f"{name}.json").exists():
            print(f"{name}: recorded before")
            continue
        settings = config_of(rung, flags)
        path = Path(flags.workdir) / name
        train(settings, str(path))
        dataset = build.dataset(settings.data)
        trained = network_of(settings, path, dataset)
        _keep(name, rung, flags, *measure_run(settings, path, dataset, trained.model), keep.minutes(path, "pretrain"))
        if flags.keep:
            kept_networks.write(LADDER / f"{name}.safetensors", trained, dtype=np.float16)
    return 0


def config_of(rung: str, flags: argparse.Namespace) -> ConfigDict:
    """The config of a rung: what the rungs below change, and then its own."""
    settings = fc100_cpu.get_config("resnet12_640,1shot")
    settings.data.path = str(Path(flags.data) / "fc100")
    settings.seed, settings.meta.learn, settings.backbone.width = flags.seed, "none", flags.width
    presets.three_drops(settings, flags.epochs * (presets.FC100.images // settings.pretrain.batch_size))
    if teacher := RUNGS[rung].teacher:
        settings.pretrain.teacher = str(Path(flags.workdir) / ladder_name(teacher, vars(flags)))
    return measure.changed(settings, options_of(rung))


def options_of(rung: str) -> dict[str, Any]:
    """All values that a rung and those below it change."""
    below = RUNGS[rung].after
    return {**(options_of(below) if below else {}), **RUNGS[rung].options}


def network_of(settings: ConfigDict, path: Path, dataset: Dataset) -> Kept:
    """The network of a run, which `pretrain.init` takes once it is written."""
    shape = dataset.splits["val"].images.shape[1:]
    step, model = network.trained(settings, workdir.Workdir(path), shape)
    return Kept(config.to_json(settings), step, shape, model)


def measure_run(
    settings: ConfigDict, path: Path, dataset: Dataset, model: Model
) -> tuple[int, list[dict[str, Any]], dict[str, np.ndarray]]:
    """The checkpoint's step, an entry a shot and head, and by "SHOT-HEAD" how many queries of each task were right."""
    banks = {split: embed_all(model, dataset.splits[split].images) for split in ("val", "test")}
    entries, right = [], {}

    def add(shot: int, head: str, accuracies: np.ndarray, **more: Any) -> None:
        entries.append({"shot": shot, "head": head, **measure.compared(accuracies, None), **more})
        right[f"{shot}-{head}"] = np.rint(accuracies * QUERIES).astype(np.uint8)
        figure = metrics.in_percent(entries[-1]["accuracy"], entries[-1]["ci95"])
        print(f"{path.name}, {shot}-shot, {head}: {figure} %", flush=True)

    for shot in SHOTS:
        for head, (features, lr) in MTL_HEADS.items():
            accuracies, chosen, tasks = test_bank(model, dataset, banks, _protocol(settings, shot, features, lr))
            add(shot, head, accuracies, inner_lr=float(f"{chosen.lr:.6g}"), inner_steps=chosen.steps)
        for head in heads.HEADS:
            add(shot, head, heads.of_features(np.asarray(banks["test"]), tasks, head, heads.JOBS))
    best = Checkpoints(workdir.Workdir(path).checkpoints("pretrain")).best()
    return best["step"] if best else settings.pretrain.steps, entries, right


def _protocol(settings: ConfigDict, shot: int, features: str, lr: float) -> Protocol:
    protocol = build.protocol(settings)
    inner = protocol.inner._replace(features=features, lr=lr)
    return protocol._replace(shot=shot, num_tasks=measure.TASKS[-1], inner=inner)


def test_bank(
    model: Model, dataset: Dataset, banks: Mapping[str, Any], protocol: Protocol
) -> tuple[np.ndarray, Inner, Tasks]:
    """Accuracies on the test tasks, from features by split; the inner loop that validation tasks chose; the tasks."""
    head = model.learned["head"]

    def score(tried: Protocol, **options: Any) -> np.ndarray:
        table = dataset.splits["val"].table()
        return adapt_on_bank(head, banks["val"], None, table, tried, chunk=measure.CHUNK, **options)

    chosen = measure.choose_by(protocol, score)
    split = dataset.splits["test"]
    tasks = sample_all(split.table(), chosen)
    accuracies = adapt_on_bank(head, banks["test"], None, split.table(), chosen, tasks=tasks, chunk=measure.CHUNK)
    return accuracies, chosen.inner, tasks


def _keep(name: str, rung: str, flags: argparse.Namespace, step: int, entries: Any, right: Any, minutes: float) -> None:
    words = f"--width={flags.width:g} --epochs={flags.epochs} --seed={flags.seed} {rung}"
    part = RUNGS[rung]
    record = {
        "rung": rung, "number": list(RUNGS).index(rung), "label": part.label, "after": part.after,
        "options": dict(part.options), "width": flags.width, "epochs": flags.epochs, "seed": flags.seed,
        "commit": flags.commit, "checkpoint_step": step, "num_tasks": measure.TASKS[-1], "queries": QUERIES,
        "entries": entries, "minutes_training": minutes,
        "command": f"python -m results ladder --data=D --workdir=runs/ladder --commit={flags.commit} {words}",
    }  # fmt: skip
    LADDER.mkdir(exist_ok=True)
    np.savez_compressed(LADDER / f"{name}.npz", **right)
    workdir.write_json_atomic(LADDER / f"{name}.json", record)

"""`python -m results sweep`: what meta-training adds to one pre-training, one option at a time, by validation alone.

Every variant is meta-trained from the same network and scored on the same validation tasks before it starts and every
so many steps, so one run also shows how many tasks it takes. No test task is looked at.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from mtl_jax.configs import fc100_cpu

from mtl_jax import ablation, metrics, workdir
from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import network
from mtl_jax.evaluation import evaluate_tasks
from mtl_jax.train import train
from results import measure
from results.records import SWEEP

# Values that belong together change together; every variant differs from "ss" alone.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ss": ("ss_all", {}),
    "lr_1e-4": ("ss_all", {"meta.lr": 1e-4}),
    "lr_1e-3": ("ss_all", {"meta.lr": 1e-3}),
    "lr_3e-3": ("ss_all", {"meta.lr": 3e-3}),
    "first_order": ("ss_all", {"inner.first_order": True}),
    "head_he": ("ss_all", {"inner.head_init": "he"}),
    "head_frozen": ("ss_all", {"meta.head_lr": 0.0}),
    "plain_features": ("ss_all", {"inner.features": "plain", "inner.lr": 0.03}),
    "inner_lr_10": ("ss_all", {"inner.lr": 10.0}),
    "inner_lr_1": ("ss_all", {"inner.lr": 1.0}),
    "last_block": ("ss_last", {}),
    "hard_tasks": ("ss_all_hard", {}),
    "head_alone": ("ft_head", {}),
    "fine_tuning": ("ft_all", {}),
    "fine_tuning_lr_1e-4": ("ft_all", {"meta.lr": 1e-4}),
    "fine_tuning_lr_1e-5": ("ft_all", {"meta.lr": 1e-5}),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--data", required=True, help="a folder with a folder a data set: fc100")
    parser.add_argument("--init", required=True, help="the workdir or kept network of the pre-training")
    parser.add_argument("--workdir", required=True, help="a folder for the runs; one that was stopped goes on")
    parser.add_argument("--width", type=float, default=0.25, help="of the network")
    parser.add_argument("--shot", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="of meta-training, 4 tasks each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", required=True, help="that the runs were trained with")
    parser.add_argument("variants", nargs="*", help="without any: all")


def main(flags: argparse.Namespace) -> int:
    """Trains the variants that have no record yet, and writes a record of each."""
    if unknown := set(flags.variants) - set(VARIANTS):
        raise ConfigError(f"variant {min(unknown)!r} is unknown, expected one of {', '.join(VARIANTS)}")
    dataset = None
    for variant in flags.variants or VARIANTS:
        name = f"fc100-w{flags.width:g}-{flags.shot}shot-{variant}-seed{flags.seed}"
        if (SWEEP / f"{name}.json").exists():
            print(f"{name}: recorded before")
            continue
        settings = config_of(variant, flags)
        dataset = dataset or build.dataset(settings.data)
        before = untrained(settings, Path(flags.workdir) / f"{name}-before", dataset)
        train(settings, str(Path(flags.workdir) / name))
        curve = validations(Path(flags.workdir) / name)
        step, best = max(curve, key=lambda point: point[1])
        words = f"--width={flags.width:g} --shot={flags.shot} --steps={flags.steps} --seed={flags.seed} {variant}"
        record = {
            "variant": variant, "row": VARIANTS[variant][0], "options": dict(VARIANTS[variant][1]),
            "width": flags.width, "shot": flags.shot, "seed": flags.seed, "commit": flags.commit,
            "tasks_per_step": settings.meta.tasks_per_step, "val_tasks": settings.meta.val_tasks,
            "before": before, "best": best, "best_step": step, "curve": curve,
            "command": f"python -m results sweep --data=D --init=runs/{Path(flags.init).name} --workdir=W "
            f"--commit={flags.commit} {words}",
        }  # fmt: skip
        SWEEP.mkdir(exist_ok=True)
        workdir.write_json_atomic(SWEEP / f"{name}.json", record)
        print(f"{name}: {100 * before:.2f} % before, {100 * best:.2f} % at step {step}", flush=True)
    return 0


def config_of(variant: str, flags: argparse.Namespace) -> ConfigDict:
    """The config of a variant: the row of the ablation, and then its own values."""
    row, options = VARIANTS[variant]
    settings = fc100_cpu.get_config(f"resnet12_640,{flags.shot}shot")
    settings.data.path = str(Path(flags.data) / "fc100")
    settings.seed, settings.backbone.width, settings.pretrain.init = flags.seed, flags.width, flags.init
    settings.meta.update({"steps": flags.steps, "val_every": flags.steps // 8, "val_tasks": measure.VALIDATION_TASKS})
    return measure.changed(ablation.apply_row(settings, row), options)


def untrained(settings: ConfigDict, path: Path, dataset: Dataset) -> float:
    """Validation accuracy before meta-training, by the same tasks and inner loop."""
    settings = settings.copy_and_resolve_references()
    settings.meta.learn = "none"
    split = dataset.splits["val"]
    _, model = network.trained(settings, workdir.Workdir(path), split.images.shape[1:])
    protocol = build.validation(settings, settings.meta)
    return metrics.mean_interval(evaluate_tasks(model, split.images, split.table(), protocol, chunk=measure.CHUNK))[0]


def validations(path: Path) -> list[tuple[int, float]]:
    """(step, accuracy) of every validation of a run's meta-training."""
    lines = [json.loads(line) for line in workdir.Workdir(path).metrics.read_text().splitlines()]
    return [(line["step"], line["meta/val_accuracy"]) for line in lines if "meta/val_accuracy" in line]

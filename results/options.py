"""`python -m results options`: what single options change, from one pre-training and on the same tasks."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from mtl_jax.configs import glyphs

from mtl_jax import ablation, workdir
from mtl_jax.ablation import Scores
from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.train import train
from results import measure
from results.records import OPTIONS

TASKS = 1000  # of validation, to choose the inner loop by, and of test
STEPS = 100  # of meta-training
# What paper, implementations and this project do not agree on, one by one; values that belong together change together.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "first_order": {"inner.first_order": True},
    "per_shot": {"inner.loss_scale": "per_shot"},
    "tensorflow_inner": {"inner.lr": 1e-3, "evaluate.inner_steps": 100},
    "pytorch_inner": {"inner.steps": 100, "inner.lr": 0.01},
    "head_he": {"inner.head_init": "he"},
    "norm_affine": {"meta.norm_affine": True},
    "norm_train": {"meta.batch_norm": "train"},
    "adam_eps": {"meta.adam_eps": "before"},
    "lr": {"meta.lr": 1e-3},
    "hard_tasks": {"hard_tasks.enabled": True},
    "flips": {"evaluate.flips": True},
    "more_steps": {"evaluate.inner_steps": 100},
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--workdir", required=True, help="a folder for the runs; done ones stay")


def main(flags: argparse.Namespace) -> int:
    """Trains and tests the variants and writes their JSON file."""
    path, config = Path(flags.workdir), glyphs.get_config("1shot")
    config.meta.steps = STEPS
    config.pretrain.init = ablation.pretrain(config, path / "pretraining")
    dataset, records, first = build.dataset(config.data), [], None
    for name, options in VARIANTS.items():
        accuracies, lr, steps = test(measure.changed(config, options), path, name, dataset)
        first = accuracies if first is None else first
        inner = {"inner_lr": float(f"{lr:.6g}"), "inner_steps": steps}
        records.append({"name": name, "options": dict(options), **inner, **measure.compared(accuracies, first)})
        print(f"{name}: {100 * accuracies.mean():.2f} %", flush=True)
    OPTIONS.parent.mkdir(exist_ok=True)
    data = {"data": dataset.name, "fingerprint": dataset.fingerprint}
    workdir.write_json_atomic(OPTIONS, {**data, "num_tasks": TASKS, "variants": records})
    return 0


def test(settings: ConfigDict, path: Path, name: str, dataset: Dataset) -> Scores:
    """A variant's accuracies; one that changes nothing in training is tested with the default's network."""
    trains = any(not key.startswith("evaluate.") for key in VARIANTS[name])
    place = path / (name if trains else "default")
    train(_training(settings), str(place))
    steps = settings.evaluate.inner_steps or settings.inner.steps
    return ablation.test(settings, workdir.Workdir(place), dataset, TASKS, steps=steps)


def _training(settings: ConfigDict) -> ConfigDict:
    """The config without what is only asked for at test, so that several tests can share a run."""
    settings = settings.copy_and_resolve_references()
    settings.evaluate = glyphs.get_config("1shot").evaluate
    return settings

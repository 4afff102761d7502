"""Runs of seconds for the tests of what works on a trained workdir. Each is trained once a test session."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from mtl_jax.configs import glyphs

from mtl_jax.config import build
from mtl_jax.config.build import dataset
from mtl_jax.data import Split
from mtl_jax.train import train
from mtl_jax.workdir.checkpoint import Checkpoints


def tiny_config(shot=1, seed=0, **backbone):
    """conv4 with 16 channels and a few steps on glyphs."""
    config = glyphs.get_config(f"{shot}shot")
    config.seed = seed
    config.backbone.update({"width": 0.25, **backbone})
    config.pretrain.update({"steps": 40, "lr": 1e-2, "val_every": 20, "val_tasks": 20})
    config.meta.update({"steps": 4, "lr": 1e-2, "val_every": 2, "val_tasks": 20, "tasks_per_step": 2, "query": 5})
    config.inner.update({"head_init": "zero", "lr": 1.0})
    config.evaluate.update({"num_tasks": 30, "query": 5})
    config.runtime.update({"log_every": 2, "checkpoint_every": 200})
    return config


_made: dict[str, Path] = {}
asked: set[str] = set()  # the splits whose images the training of `tiny_run` has asked for


class WatchedSplit(Split):
    """A split that notes when its images are asked for; sizes and names may be looked at."""

    def __getattribute__(self, name):
        if name == "images":
            asked.add(self.name)
        return super().__getattribute__(name)


def watched_dataset(*given, **options):
    found = dataset(*given, **options)
    return dataclasses.replace(found, splits={name: WatchedSplit(**vars(s)) for name, s in found.splits.items()})


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The workdir of a trained tiny network. Tests write nothing into it but evaluations."""
    if "tiny" not in _made:  # a fixture that modules import is one of its own in each
        path = tmp_path_factory.mktemp("runs") / "tiny"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "dataset", watched_dataset)
            train(tiny_config(), str(path))
        _made["tiny"] = path
    return _made["tiny"]


@pytest.fixture(scope="session")
def other_tiny_run(tiny_run):
    """The same run with other scales in SS: as good as another training, and made in no time."""
    if "other" not in _made:
        path = tiny_run.with_name("other")
        shutil.copytree(tiny_run, path)
        checkpoints = Checkpoints(path / "meta")
        found = checkpoints.read(checkpoints.best()["step"])
        rng = np.random.default_rng(0)
        found.items["learned"]["ss"] = jax.tree.map(
            lambda a: (a + rng.normal(0, 0.3, a.shape)).astype(a.dtype), found.items["learned"]["ss"]
        )
        checkpoints.save(found.step, found.items, found.metadata)
        checkpoints.mark_best(found.step, 0.5)
        _made["other"] = path
    return _made["other"]

"""Training compiles each kind of step, validation and saving once, and nothing more."""

import jax
import numpy as np
import pytest
from mtl_jax.configs import default

from mtl_jax import ClassTable
from mtl_jax.config import build
from mtl_jax.evaluation import Model, Protocol, evaluate_tasks
from mtl_jax.meta import Frozen
from mtl_jax.pretrain import init_backbone
from mtl_jax.train import train

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """The number of compilations so far, in a list of one."""
    count = [0]

    def listen(event, duration, **_):
        count[0] += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


def small_run(path, budget):
    """A config of twelve steps a phase on an archive of noise, validated and saved every fourth, with hard tasks."""
    rng = np.random.default_rng(0)
    for split, classes in (("train", 4), ("val", 2), ("test", 2)):
        images = rng.integers(0, 256, (8 * classes, 28, 28, 1), dtype=np.uint8)
        np.savez(path / f"{split}.npz", images=images, labels=np.repeat(np.arange(classes), 8))
    config = default.get_config()
    config.data.update({"name": "folder", "path": str(path), "device_budget_gb": budget})
    config.backbone.width = 0.05
    config.pretrain.update({"steps": 12, "batch_size": 8, "val_every": 4, "val_tasks": 10})
    config.meta.update({"steps": 12, "val_every": 4, "val_tasks": 10, "way": 2, "query": 2, "tasks_per_step": 2})
    config.hard_tasks.update({"enabled": True, "round": 2, "extra": 2})
    config.runtime.update({"log_every": 1, "checkpoint_every": 2})
    return config


@pytest.mark.parametrize("budget", [1.0, 0.0], ids=["on the device", "on the host"])
def test_nothing_is_compiled_after_the_first_of_each_kind(tmp_path, compilations, budget):
    seen = {}

    def hook(step, scalars):
        for name in scalars:
            seen[step, name.split("/")[0]] = compilations[0]

    (tmp_path / "data").mkdir()
    train(small_run(tmp_path / "data", budget), str(tmp_path / "run"), hooks=[hook])
    for phase in ("pretrain", "meta"):
        first, last = seen[6, phase], seen[12, phase]  # by step 6 all has happened once
        assert first > 0
        assert last == first


def test_a_second_evaluation_of_an_equal_model_compiles_nothing(compilations):
    """Each makes its embedding anew from the config, as programs do."""
    settings = default.get_config()
    settings.backbone.width = 0.05
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28, 1), dtype=np.uint8)
    table = ClassTable(np.arange(12, dtype=np.int32).reshape(3, 4), np.full(3, 4))
    variables = init_backbone(jax.random.key(0), build.backbone(settings.backbone), images.shape[1:])
    head = {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
    seen = []
    for mode in ("running", "batch", "running", "batch"):
        embed = build.embedding(settings)._replace(batch_statistics=mode)
        model = Model(embed, {"head": head}, Frozen(variables["params"], variables["batch_stats"]))
        before = compilations[0]
        evaluate_tasks(model, images, table, Protocol(2, 1, 2, 3, 0, build.inner(settings.inner)))
        seen.append(compilations[0] - before)
    assert min(seen[:2]) > 0 and seen[2:] == [0, 0]
    assert build.prepare(settings.data) == build.prepare(settings.data)
    settings.data.crop = 20
    assert build.embedding(settings) != embed._replace(batch_statistics="running")

"""`train.py --replay`: a step of a run again, as it was."""

import json
import re

import numpy as np
import pytest
from mtl_jax.configs import default
from PIL import Image

from mtl_jax import hard_tasks, meta, pretrain, train
from mtl_jax.augment import normalize
from mtl_jax.config import build
from mtl_jax.episodes import sample_tasks, task_keys
from mtl_jax.errors import ConfigError, NotFiniteError
from mtl_jax.train import meta_training, replay
from mtl_jax.train.task_sources import Source
from tests.chaos import runs


def _config(folder, **words):
    if not (folder / "data").exists():
        runs.make_data(folder / "data")
    config = default.get_config()
    settings = {
        "data.name": "folder", "data.path": str(folder / "data"), "data.cache_dir": str(folder / "cache"),
        "backbone.width": 0.05, "inner.steps": 1, "inner.first_order": True, "pretrain.steps": 3,
        "pretrain.batch_size": 8, "pretrain.val_every": 0, "meta.steps": 6, "meta.val_every": 0, "meta.way": 2,
        "meta.query": 2, "meta.tasks_per_step": 2, "runtime.log_every": 1, "runtime.checkpoint_every": 2,
    }  # fmt: skip
    config.update_from_flattened_dict(settings | words)
    return config


def _lines(workdir, name):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in found if f"{name}/loss" in line}


def _files(workdir):
    """All that a run has written, but for what `replay` adds."""
    found = {path.relative_to(workdir): path for path in sorted(workdir.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name.parts[0] != "replay"}


@pytest.mark.slow
def test_the_step_that_stopped_a_run_is_not_finite_again_and_the_run_is_left_as_it_is(tmp_path):
    config, workdir = _config(tmp_path, **{"meta.lr": 1e30}), tmp_path / "run"
    with pytest.raises(NotFiniteError) as caught:
        train.train(config, str(workdir))
    word = re.search(r"--replay=(\S+)", str(caught.value))[1]
    assert replay.wanted(word) == ("meta", 2)
    before = _files(workdir)
    found = replay.replay(config, str(workdir), replay.wanted(word))
    (part,) = found.parts
    assert not found.finite and not part.finite and np.isnan(found.loss) and part.bad == (0, 1)
    assert not np.isfinite(list(part.norms.values())).any()
    assert "nan" in part.cause and "mtl_jax/" in part.cause
    text = replay.describe(found)
    assert "meta step 2, run again from the start: loss nan" in text and str(part.picture) in text
    with Image.open(part.picture) as picture:
        picture.load()
        assert picture.height > 200
    assert set(part.norms) == {"head", "ss"}
    assert _files(workdir) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        {"data.device_budget_gb": 0.0},
        {"runtime.steps_per_dispatch": 2, "pretrain.steps": 4, "runtime.log_every": 2},
        {"hard_tasks.enabled": True, "hard_tasks.round": 3, "hard_tasks.extra": 4, "runtime.chunk": 1},
        {
            "backbone.name": "resnet12_640",
            "backbone.dropout": 0.3,
            "backbone.dropblock": 1,
            "pretrain.dropblock_ramp": 4,
        },
    ],
    ids=["host", "dispatches of two", "hard tasks in chunks", "dropblock"],
)
def test_every_kind_of_run_can_be_replayed(tmp_path, words):
    config, workdir = _config(tmp_path, **words), tmp_path / "run"
    train.train(config, str(workdir))
    every = config.runtime.log_every
    for name, step in (("meta", 6), ("meta", 3), ("pretrain", 2), ("pretrain", 3)):
        found = replay.replay(config, str(workdir), (name, step))
        assert found.finite and not found.parts[0].cause and found.parts[0].loss == pytest.approx(found.loss, rel=1e-4)
        assert len(found.parts) == (3 if name == "meta" and config.hard_tasks.enabled else 1)
        if every == 1:
            assert found.loss == _lines(workdir, name)[step][f"{name}/loss"]
        else:
            other = replay.replay(config, str(workdir), (name, step - 1 + 2 * (step % 2)))
            assert np.mean([found.loss, other.loss]) == _lines(workdir, name)[step + step % 2][f"{name}/loss"]
        if config.hard_tasks.enabled and name == "meta":
            hard = [part.loss for part in found.parts[1:]]
            assert np.mean(hard) == pytest.approx(_lines(workdir, name)[step]["meta/hard_loss"], rel=1e-4)


@pytest.mark.parametrize("text", ["0", "-3", "meta", "test:3", "1.5", "", "meta:", "3:meta"])
def test_what_is_no_step_is_said_in_a_line(text):
    with pytest.raises(ConfigError, match=r"--replay=.*metrics\.jsonl"):
        replay.wanted(text)


def test_a_step_that_the_run_does_not_have_is_said_before_anything_is_compiled(tmp_path):
    config = _config(tmp_path)
    with pytest.raises(ConfigError, match="no run to replay here"):
        replay.replay(config, str(tmp_path / "run"), ("meta", 1))


def _poison(monkeypatch):
    """Images of one value all over become NaN on their way into the network."""

    def taint(images, floats):
        same = (images == images[..., :1, :1, :]).all((-3, -2, -1), keepdims=True)
        return floats * np.float32(1) + (floats * 0 / ~same)

    def view(images):
        return taint(images, normalize(images, mean=(0.5,), std=(0.5,)))

    monkeypatch.setattr(build, "prepare", lambda config: view)
    monkeypatch.setattr(build, "augmentation", lambda *groups: lambda keys, images: view(images))


def _poisoned(config, folder):
    data = dict(np.load(folder / "data" / "train.npz"))
    data["images"][11] = 255
    np.savez(folder / "data" / "train.npz", **data)
    split = build.dataset(config.data).splits["train"]
    return split, int(np.flatnonzero((split.images == 255).all((1, 2, 3)))[0])


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1.0, 0.0], ids=["device", "host"])
@pytest.mark.parametrize("chunk", [0, 1])
def test_steps_on_a_poisoned_image_are_skipped_in_both_phases_and_their_tasks_are_not_drawn_again(
    tmp_path, monkeypatch, budget, chunk
):
    _poison(monkeypatch)
    config = _config(tmp_path, **{
        "data.device_budget_gb": budget, "runtime.skip_nonfinite": 40, "pretrain.steps": 7, "meta.steps": 40,
        "hard_tasks.enabled": True, "hard_tasks.round": 2, "hard_tasks.extra": 2, "runtime.chunk": chunk,
    })  # fmt: skip
    split, image = _poisoned(config, tmp_path)
    train.train(config, str(tmp_path / "run"))
    # Of the six batches of the first epoch one has the image, and the first of the next epoch may have it.
    orders = [np.asarray(pretrain.epoch_order(build.keys(config).order, e, 48)) for e in (0, 1)]
    batches = [row for order in orders for row in order.reshape(6, 8)][:7]
    assert _counts(tmp_path / "run", "pretrain") == list(np.cumsum([image in batch for batch in batches]))
    table, key = split.table(), build.keys(config).tasks
    tainted = []
    for step in range(40):
        sets = sample_tasks(task_keys(key, step, np.arange(2)), table, way=2, shot=1, query=2)
        tainted.append(any((np.asarray(part) == image).any() for part in sets))
    assert 2 < sum(tainted) < 20
    steps = np.diff([0, *_counts(tmp_path / "run", "meta")])
    assert list(steps[::2]) == list(np.array(tainted, int)[::2])  # after the others there are hard tasks as well
    assert (steps[1::2] >= np.array(tainted)[1::2]).all() and steps.max() == 1
    assert (steps[1::2] > np.array(tainted)[1::2]).any()


def _counts(workdir, name):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line[f"{name}/skipped"] for line in found if f"{name}/skipped" in line]


def test_the_pool_keeps_no_classes_of_a_step_that_is_not_finite(monkeypatch):
    state = meta.MetaState(np.int32(3), {}, {}, (), hard_tasks.empty_pool(4))
    source = Source(lambda *_: (None, np.zeros((2, 2), np.int32)), arguments=None, count=0)
    recipe, kind = build.meta_training(default.get_config()), meta_training._Kind(source, counts=4)
    for finite, counted in ((True, 2), (False, 0)):
        found = {"class_accuracy": np.ones((2, 2)), "finite": np.bool_(finite)}
        monkeypatch.setattr(meta, "train_step", lambda state, *_, found=found, **__: (state, found))
        new, _ = meta_training._step(recipe, kind, 0, None, state, None)
        assert int(new.pool.sum()) == counted

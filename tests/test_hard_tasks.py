"""Hard tasks: failure classes, the pool, re-sampling, and that they leave the normal tasks and the schedule alone."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import ClassTable, hard_tasks, meta, optimizers
from mtl_jax.config import validate
from mtl_jax.errors import ConfigError
from mtl_jax.train import train
from mtl_jax.types import Episode
from mtl_jax.workdir.checkpoint import Checkpoints

VIRTUAL = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": "1"}


def test_the_failure_class_is_the_one_with_the_lowest_accuracy_and_the_first_of_a_tie():
    classes = jnp.array([[7, 3, 5], [4, 0, 2]])
    accuracy = jnp.array([[0.5, 0.2, 0.9], [0.4, 0.1, 0.1]])
    assert hard_tasks.failure_classes(classes, accuracy).tolist() == [3, 0]


def test_the_pool_counts_by_base_class_and_over_a_mapped_axis():
    pool = jnp.array([0, 1, 0, 2], jnp.int32)
    classes, accuracy = jnp.array([[3, 1], [0, 3]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    assert hard_tasks.collect(pool, classes, accuracy).tolist() == [0, 1, 0, 4]
    spread = jax.vmap(lambda c, a: hard_tasks.collect(pool, c[None], a[None], axis_name="d"), axis_name="d")
    assert spread(classes, accuracy).tolist() == [[0, 1, 0, 4]] * 2


def draws(pool, way, count=4000):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: hard_tasks.sample_classes(key, pool, way)))(keys))


def test_classes_come_from_the_pool_alone_where_it_has_enough_uniformly_whatever_their_counts():
    pool = jnp.array([0, 9, 1, 0, 1, 1], jnp.int32)
    drawn = draws(pool, 2)
    assert set(drawn.ravel()) == {1, 2, 4, 5}
    assert (drawn[:, 0] != drawn[:, 1]).all()
    shares = np.bincount(drawn[:, 0], minlength=6)[[1, 2, 4, 5]] / len(drawn)
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_a_small_pool_is_taken_whole_and_the_rest_is_uniform_over_the_other_classes():
    drawn = draws(jnp.array([0, 0, 3, 0, 0], jnp.int32), 3)
    assert (drawn == 2).sum(1).tolist() == [1] * len(drawn)
    others = np.bincount(drawn[drawn != 2], minlength=5)[[0, 1, 3, 4]] / (2 * len(drawn))
    np.testing.assert_allclose(others, 0.25, atol=0.03)
    columns = np.bincount(np.argmax(drawn == 2, axis=1)) / len(drawn)
    np.testing.assert_allclose(columns, 1 / 3, atol=0.03)  # a hard class is not known by its column


def test_hard_tasks_draw_distinct_images_of_the_pool_s_classes():
    table = ClassTable(jnp.arange(30).reshape(6, 5), jnp.full(6, 5))
    pool = jnp.array([1, 0, 1, 0, 0, 0], jnp.int32)
    keys = jax.random.split(jax.random.key(1), 20)
    support, query = hard_tasks.sample_tasks(keys, table, pool, way=2, shot=2, query=3)
    images = np.concatenate([support, query], axis=2)
    assert {tuple(sorted(task)) for task in images[:, :, 0] // 5} == {(0, 2)}
    assert (np.sort(images.reshape(20, -1)) == np.r_[0:5, 10:15]).all()
    assert len({task.tobytes() for task in np.asarray(support)}) > 10  # new images each time


def test_a_hard_step_is_an_optimiser_step_that_no_schedule_counts():
    rate = optimizers.schedule(0.1, decay="steps", every=1)
    optimizer = optimizers.by_group({"head": optimizers.adam(rate)}, optimizers.adam(rate, eps="before"))
    learned = {"head": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    state = meta.init_state(learned, {}, optimizer)._replace(pool=jnp.ones(4, jnp.int32))
    features = jax.random.normal(jax.random.key(0), (1, 6, 3))
    labels = jnp.array([[0, 1]]), jnp.array([[0, 0, 1, 1]])
    tasks = Episode(features[:, :2], labels[0], features[:, 2:], labels[1])
    options = {"embed": _Features(), "inner": meta.Inner(1, 0.1), "optimizer": optimizer}
    hard, _ = hard_tasks.train_step(state, {}, tasks, **options)
    normal, _ = meta.train_step(state, {}, tasks, **options)
    jax.tree.map(np.testing.assert_array_equal, hard.learned, normal.learned)
    assert not np.array_equal(hard.learned["head"]["kernel"], learned["head"]["kernel"])
    assert (int(hard.step), int(normal.step)) == (0, 1)
    counts = {type(node): [] for node in (optax.ScaleByScheduleState(0), optax.ScaleByAdamState(0, 0, 0))}
    jax.tree.map(
        lambda node: counts[type(node)].append(int(node.count)) if type(node) in counts else None,
        hard.opt_state, is_leaf=lambda node: type(node) in counts,
    )  # fmt: skip
    assert counts == {optax.ScaleByScheduleState: [0, 0], optax.ScaleByAdamState: [1, 1]}


class _Features:
    """An embedding whose images are features."""

    batch_statistics = "running"

    def __call__(self, params, batch_stats, images):
        return images, batch_stats


@functools.cache
def device_runs():
    script = Path(__file__).with_name("hard_tasks_run.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env={**os.environ, **VIRTUAL}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("which", ["four", "host, scan", "host, chunks"])
def test_tasks_and_results_are_the_same_however_they_are_spread_fed_and_cut(which):
    """Every device contributes to one pool; a split on the host gives the same tasks; chunks the same gradient."""
    one, other = device_runs()["one"], device_runs()[which]
    assert other["mined"] == one["mined"]
    assert len(one["mined"]) == 2
    assert other["pools"][-1] == one["pools"][-1]
    assert which != "four" or other["pools"] == one["pools"]
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-9)
    for a, b in zip(one["leaves"], other["leaves"], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)
    assert other["step"] == 4


def test_the_pool_fills_within_a_round_and_is_empty_after_it():
    one = device_runs()["one"]
    assert [sum(pool) for pool in one["pools"]] == [4, 0, 4, 0]  # a failure class a task
    assert one["mined"][0].startswith("hard tasks after step 2: ")
    counts = [int(part.split(")")[0]) for part in one["mined"][0].split("(")[1:]]
    assert sum(counts) == 8


def hard_config(init="", enabled=True):
    """At rates of 0 nothing is learned, so that a loss depends on its tasks alone; Adam's moments do move."""
    config = tiny_config()
    config.pretrain.init = init
    config.hard_tasks.update({"enabled": enabled, "round": 2, "extra": 2})
    config.meta.update({"steps": 4, "val_every": 0, "lr": 0.0, "head_lr": 0.0})
    config.runtime.update({"log_every": 1, "checkpoint_every": 1, "keep": 10})
    return config


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):  # noqa: F811
    """Runs with and without hard tasks from one pre-training."""
    made = {name: tmp_path_factory.mktemp("hard") / name for name in ("on", "off")}
    for name, path in made.items():
        train(hard_config(str(tiny_run), name == "on"), str(path))
    return made


def scalars(path, name):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_on_and_off_share_their_normal_tasks(runs):
    assert scalars(runs["on"], "meta/loss") == scalars(runs["off"], "meta/loss")
    assert len(set(scalars(runs["on"], "meta/loss").values())) == 4
    assert sorted(scalars(runs["on"], "meta/hard_loss")) == [2, 4]
    assert not scalars(runs["off"], "meta/hard_loss")
    assert "hard tasks after step 4: " in (runs["on"] / "log.txt").read_text()


def test_the_pool_is_saved_and_a_run_goes_on_from_the_middle_of_a_round_bit_for_bit(runs, tiny_run, tmp_path):  # noqa: F811
    whole = Checkpoints(runs["on"] / "meta")
    pools = [int(whole.read(step).items["hard_tasks"]["pool"].sum()) for step in whole.steps()]
    assert pools == [2, 0, 2, 0]
    half, found = Checkpoints(tmp_path / "meta", keep=10), whole.read(3)
    half.save(3, found.items, found.metadata)
    whole_metrics = (runs["on"] / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole_metrics[: found.metadata["position"]])
    train(hard_config(str(tiny_run)), str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, half.read(4).items, whole.read(4).items)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole_metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 3}, "hard_tasks.extra is 3, expected a multiple of config.meta.tasks_per_step, 2"),
        ({"round": 0}, "hard_tasks.round is 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, message):
    config = hard_config()
    config.hard_tasks.update(change)
    with pytest.raises(ConfigError, match=message):
        validate(config)

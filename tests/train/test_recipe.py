"""A phase runs from Python: a `Recipe` made by hand and arrays, without a config or a workdir."""

import jax
import numpy as np
import pytest
from mtl_jax.configs import default

from mtl_jax import create_backbone, meta, optimizers
from mtl_jax.config import build
from mtl_jax.config.recipe import (
    Batches,
    HardTasks,
    Intervals,
    Keys,
    Learned,
    Limits,
    MetaRecipe,
    Prepare,
    PretrainRecipe,
    TaskSizes,
    check,
)
from mtl_jax.data import Split
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation import Protocol
from mtl_jax.train import meta_training, pretraining

INNER = meta.Inner(2, 0.1, first_order=False)
TASKS = TaskSizes(2, 1, 2)
KEYS = Keys.from_seed(3)
EMBED = meta.Embed(create_backbone("conv4", width=0.05), "running", Prepare())


def split(name, classes):
    """Eight images of noise a class."""
    count = 8 * classes
    pixels = np.random.default_rng(classes).integers(0, 256, (count, 28, 28, 1), np.uint8)
    labels = np.repeat(np.arange(classes, dtype=np.int32), 8)
    return Split(name, pixels, labels, tuple("abcdef"[:classes]), np.full(classes, 8), file_names=(), digests=())


SPLITS = {"train": split("train", 4), "val": split("val", 2)}


def hand_made(limits):
    """Both phases, without a config."""
    validation = Protocol(*TASKS, num_tasks=10, seed=1, inner=INNER)
    intervals, optimizer = Intervals(steps=4), optimizers.adam(1e-3)
    shared = {"embed": EMBED, "keys": KEYS, "intervals": intervals, "validation": validation, "limits": limits}
    first = PretrainRecipe(optimizer=optimizer, batches=Batches(8), **shared)
    second = MetaRecipe(optimizer=optimizer, inner=INNER, learned=Learned(), tasks=TASKS, tasks_per_step=2, **shared)
    return first, second


def from_config(limits):
    """The same two phases from a config."""
    config = default.get_config()
    config.seed, config.backbone.width, config.inner.head_init = 3, 0.05, "zero"
    config.data.device_budget_gb = limits.device_bytes / 1e9
    config.inner.update({"steps": 2, "lr": 0.1})
    config.meta.update({**TASKS._asdict(), "tasks_per_step": 2})
    config.pretrain.batch_size = 8
    for group in (config.pretrain, config.meta):
        group.update({"steps": 4, "lr": 1e-3, "decay": "constant", "val_tasks": 10, "val_every": 0})
    recipe = build.recipe(config)
    return recipe.pretraining, recipe.meta_training


def run(phase):
    """The losses of all steps, the state and the validation after them."""
    state, losses = phase.state, []
    for step in range(0, phase.steps, phase.per_dispatch):
        state, metrics = phase.dispatch(state, step)
        losses.append(float(metrics["loss"]))
    phase.close()
    return losses, state, phase.validate(state)


def run_both(recipes):
    devices = jax.local_devices()[:1]
    first = run(pretraining.phase(recipes[0], SPLITS, devices))
    backbone, stats = first[1].params["backbone"], first[1].batch_stats
    second = run(meta_training.phase(recipes[1], SPLITS, devices, backbone, stats))
    jax.block_until_ready((backbone, stats))  # a step overwrites its own state, never what it was given
    return first, second


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(Limits(), id="on the device"),
        pytest.param(Limits(device_bytes=0), id="on the host", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_and_arrays_are_enough_and_give_what_a_config_gives(limits):
    by_hand, by_config = run_both(hand_made(limits)), run_both(from_config(limits))
    for (losses, state, (score, scalars)), other in zip(by_hand, by_config, strict=True):
        assert np.isfinite(losses).all() and len(set(losses)) == 4 and int(state.step) == 4
        assert 0 <= score <= 1 and scalars["accuracy"] == score
        assert losses == other[0] and score == other[2][0]
        # A constant schedule counts its steps, a plain rate does not.
        one, two = (final._replace(opt_state=()) for final in (state, other[1]))
        jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"intervals": Intervals(steps=4, per_dispatch=3)}, r"intervals.steps of the recipe is 4, .* multiple of 3"),
        (1, {"intervals": Intervals(steps=4, per_dispatch=2, log_every=5)}, "intervals.log_every of the recipe is 5"),
        (1, {"hard_tasks": HardTasks(round=2, extra=3)}, "hard_tasks.extra of the recipe is 3, .* multiple of 2"),
    ],
)
def test_sizes_that_would_leave_something_out_are_refused(number, change, message):
    recipe = hand_made(Limits())[number]._replace(**change)
    with pytest.raises(ConfigError, match=message):
        (meta_training.phase if number else pretraining.phase)(recipe, SPLITS, [None], *[{}] * (2 * number))


@pytest.mark.parametrize("name", ["batches.size", "tasks_per_step"])
def test_batches_that_cannot_be_spread_over_the_devices_are_refused(name):
    recipe = hand_made(Limits())[name == "tasks_per_step"]
    with pytest.raises(ConfigError, match=f"{name} of the recipe is ., expected a multiple of 3"):
        check(recipe, 3)


def test_without_tasks_or_a_split_to_validate_on_a_phase_has_no_validation():
    recipe, _ = hand_made(Limits())
    devices = jax.local_devices()[:1]
    for own, splits in ((recipe, {"train": SPLITS["train"]}), (recipe._replace(validation=None), SPLITS)):
        phase = pretraining.phase(own, splits, devices)
        phase.close()
        assert phase.validate is None

"""The plan of a run: chunks that fit the budget, refusals with numbers, what --dry_run prints."""

import copy

import jax
import numpy as np
import pytest
from mtl_jax.configs import default

from mtl_jax import train, workdir
from mtl_jax.config import build, to_json
from mtl_jax.data import Dataset, Split
from mtl_jax.errors import ConfigError
from mtl_jax.train import cost, meta_training, plan, pretraining


def dataset(side=32, channels=1):
    """Eight classes of twenty images."""
    images = np.zeros((160, side, side, channels), np.uint8)
    labels, counts = np.repeat(np.arange(8, dtype=np.int32), 20), np.full(8, 20, np.int32)
    names, digests = np.full(160, b""), np.zeros((160, 16), np.uint8)
    split = Split("train", images, labels, tuple("abcdefgh"), counts, names, digests)
    return Dataset("folder", "class folders", "0" * 64, {"train": split})


def settings(**runtime):
    config = default.get_config()
    config.backbone.width = 0.25
    config.meta.update({"way": 2, "query": 5, "tasks_per_step": 8})
    config.runtime.update(runtime)
    return config


def test_a_budget_that_holds_all_tasks_cuts_nothing_and_a_smaller_one_does():
    whole = plan.make(settings(), dataset(), 1)
    assert whole.chunk == 8
    assert [phase.name for phase in whole.phases] == ["pretrain", "meta"]
    config = settings(memory_gb=0.7 * whole.phases[1].bytes / 1e9)
    config.pretrain.init = "elsewhere"
    chunked = plan.make(config, dataset(), 1)
    assert chunked.chunk in (4, 2)
    assert chunked.phases[0].bytes <= 0.7 * whole.phases[1].bytes
    np.testing.assert_allclose(chunked.phases[0].flops, whole.phases[1].flops, rtol=1e-6)
    assert plan.make(settings(), dataset(), 4).chunk == 2


def test_what_cannot_fit_is_refused_with_the_numbers_before_anything_is_compiled():
    config = settings(memory_gb=0.01)
    with pytest.raises(ConfigError, match=r"pretrain.batch_size is 64, whose step needs about 0\.\d\d GB a device"):
        plan.make(config, dataset(), 1)
    config.pretrain.init = "elsewhere"
    config.runtime.memory_gb = 0.001
    with pytest.raises(ConfigError, match=r"memory_gb is 0.001, but a meta-training .* 1 of its tasks"):
        plan.make(config, dataset(), 1)


def test_a_chunk_of_ones_own_is_kept_or_refused():
    assert plan.make(settings(chunk=4), dataset(), 1).chunk == 4
    with pytest.raises(ConfigError, match=r"runtime.chunk is 3, expected a divisor of the 8 tasks"):
        plan.make(settings(chunk=3), dataset(), 1)
    with pytest.raises(ConfigError, match="needs steps_per_dispatch 1"):
        plan.make(settings(chunk=4, steps_per_dispatch=5), dataset(), 1)


@pytest.mark.parametrize("runtime", [{"chunk": 3}, {"chunk": 16}, {"chunk": 4, "steps_per_dispatch": 5}])
def test_without_a_plan_a_dispatch_leaves_no_task_out(runtime):
    """Of eight tasks three at a time it took six; of five steps in chunks it took one."""
    with pytest.raises(ConfigError, match=r"config.runtime.(chunk is|steps_per_dispatch is 5)"):
        meta_training.dispatcher(build.meta_training(settings(**runtime)), None, jax.local_devices()[:1], None)


def test_a_run_goes_on_with_the_chunk_it_was_planned_with_where_that_still_divides_the_tasks(tmp_path):
    place, first = workdir.Workdir(tmp_path), settings()
    first.pretrain.init = "elsewhere"
    half = copy.deepcopy(first)
    half.runtime.memory_gb = 0.7 * plan.make(first, dataset(), 1).phases[0].bytes / 1e9
    chunk = train.run._planned(half, dataset(), 1, place)[0].runtime.chunk
    assert chunk in (4, 2)
    half.runtime.chunk = chunk
    workdir.write_json_atomic(place.config, to_json(half))
    assert train.run._planned(first, dataset(), 1, place)[0].runtime.chunk == chunk  # though now all would fit
    assert train.run._planned(first, dataset(), 8 // chunk, place)[0].runtime.chunk == chunk
    assert train.run._planned(first, dataset(), 8, place)[0].runtime.chunk == 1  # on so many devices it cannot be kept


def test_the_pretraining_estimate_bounds_what_the_compiler_says():
    config, data = settings(), dataset()
    split = data.splits["train"]
    init, take = pretraining.make_parts(build.pretraining(config), split)
    view = build.augmentation(config.data, config.pretrain.augment)

    def step(state, images, labels, key):
        return take(state, view(jax.random.split(key, 64), images), labels, key)

    arguments = init(jax.random.key(0)), split.images[:64], split.labels[:64], jax.random.key(1)
    memory = jax.jit(step).lower(*arguments).compile().memory_analysis()
    actual = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    planned = plan.make(config, data, 1).phases[0].bytes - split.images.nbytes
    assert actual <= planned <= 1.2 * cost.MARGIN * actual


def test_the_description_has_the_numbers():
    config, data = settings(), dataset()
    text = plan.describe(config, data, plan.make(config, data, 1), 1)
    assert "train: 8 classes, 160 images of 32x32x1" in text
    assert "meta: 500 steps of 8 tasks" in text and "tasks at a time on a device: 8" in text

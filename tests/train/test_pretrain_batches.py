"""Which images a pre-training step sees: orders, the last partial batch, dispatches of several steps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mtl_jax.configs import default

from mtl_jax import pretrain
from mtl_jax.config import build
from mtl_jax.errors import ConfigError
from mtl_jax.train import pretraining

COUNT, BATCH = 10, 4


def batches(steps, repeat=1, host=False, count=COUNT, **group):
    """The images that each step sees, of `count` whose labels are their numbers."""
    config = default.get_config()
    config.pretrain.update({"batch_size": BATCH, **group})
    config.pretrain.steps = steps
    config.runtime.steps_per_dispatch = repeat
    config.data.device_budget_gb = 0.0 if host else 1.0
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 28, 28, 1))
    split = SimpleNamespace(images=pixels, labels=np.arange(count, dtype=np.int32), class_names=("",) * count)

    def take(state, images, labels, key, axis_name):
        assert images.shape == (len(labels), 28, 28, 1)
        return state._replace(step=state.step + 1), {"labels": labels, "pixels": images[:, 14, 14, 0]}

    recipe = build.pretraining(config)
    recipe = recipe._replace(keys=recipe.keys._replace(order=jax.random.key(0), augment=jax.random.key(1)))
    dispatch = pretraining.dispatcher(recipe, split, jax.local_devices()[:1], take)
    state, seen = pretrain.PretrainState(jnp.int32(0), {}, {}, {}), []
    for step in range(0, steps, repeat):
        state, metrics = dispatch.run(state, step)
        shown = np.asarray(metrics["pixels"]) * 0.5 + 0.5  # undo the default normalisation
        np.testing.assert_allclose(shown * 255, metrics["labels"], atol=1e-4)
        seen += np.asarray(metrics["labels"]).reshape(repeat, -1).tolist()
    dispatch.close()
    return seen


def images(seen):
    """All images of some batches."""
    return [image for batch in seen for image in batch]


def test_the_last_partial_batch_is_kept_or_left_out():
    kept = batches(6, drop_last=False)
    assert [len(batch) for batch in kept] == [4, 4, 2, 4, 4, 2]
    assert sorted(images(kept[:3])) == sorted(images(kept[3:])) == list(range(COUNT))
    left = batches(4, drop_last=True)
    assert [len(batch) for batch in left] == [4, 4, 4, 4]
    assert left[:2] == kept[:2]
    assert len(set(images(left[:2]))) == 8


def test_an_order_an_epoch_or_one_for_all():
    anew = batches(6, drop_last=False)
    assert anew[:3] != anew[3:]
    once = batches(6, drop_last=False, shuffle="once")
    assert once[:3] == once[3:] == anew[:3]


def test_a_dispatch_of_several_steps_sees_the_same_batches():
    assert batches(6, repeat=3) == batches(6)


@pytest.mark.parametrize("options", [{"drop_last": False}, {"repeat": 3}])
def test_batches_from_the_host_are_the_same(options):
    assert batches(6, host=True, **options) == batches(6, **options)


def test_a_partial_batch_within_a_dispatch_is_refused():
    with pytest.raises(ConfigError, match=r"drop_last is false, but an epoch's last batch of 2 images"):
        batches(3, repeat=3, drop_last=False)


@settings(deadline=None, max_examples=6, derandomize=True)
@given(st.integers(1, 14), st.integers(1, 6), st.integers(1, 9), st.integers(1, 2))
@example(count=13, batch=4, repeat=10, dispatches=2)
@example(count=3, batch=5, repeat=4, dispatches=2)
def test_however_many_epochs_a_dispatch_spans_each_step_has_its_own_batch(count, batch, repeat, dispatches):
    """From the devices, from the host, and as the orders of the epochs say, one after the other."""
    sizes = {"steps": repeat * dispatches, "repeat": repeat, "count": count, "batch_size": batch}
    seen = batches(**sizes)
    assert seen == batches(**sizes, host=True)
    each = max(1, count // batch)
    orders = [np.asarray(pretrain.epoch_order(jax.random.key(0), epoch, count)) for epoch in range(len(seen))]
    wanted = [np.resize(order, each * batch).reshape(each, batch).tolist() for order in orders]
    assert seen == [rows for epoch in wanted for rows in epoch][: len(seen)]

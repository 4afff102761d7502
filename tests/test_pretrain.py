"""Pre-training: the classifier, its loss, its step, the order of an epoch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax import optimizers, pretrain
from mtl_jax.layers import BatchNorm

LABELS = np.array([0, 1, 2, 0, 1, 2])
IMAGES = np.random.default_rng(0).normal(size=(6, 4, 4, 1)) + LABELS[:, None, None, None]


class Small(nn.Module):
    """A backbone that compiles in no time: two features of each image's pixels, batch norm, dropout."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, images, train=False, batch_statistics="running"):
        x = nn.Dense(2, name="dense")(images.reshape(len(images), -1))
        x = BatchNorm(name="norm")(x[:, None, None], batch_statistics)[:, 0, 0]
        return nn.Dropout(self.rate, deterministic=not train)(x)


def start(optimizer, backbone=None, classifier=None, rotation=0.0):
    backbone, classifier = backbone or Small(), classifier or pretrain.Classifier(3)
    state = pretrain.init_state(jax.random.key(0), backbone, classifier, (4, 4, 1), optimizer, rotation=rotation > 0)
    step = functools.partial(
        pretrain.train_step, optimizer=optimizer, backbone=backbone, classifier=classifier, rotation=rotation
    )
    return state, jax.jit(step, static_argnames=("batch_statistics", "label_smoothing", "axis_name"))


def log_probabilities(state, images=IMAGES, classifier="classifier"):
    """log p [B, classes] of images by NumPy's arithmetic."""
    params = jax.tree.map(np.asarray, state.params)
    x = images.reshape(len(images), -1) @ params["backbone"]["dense"]["kernel"] + params["backbone"]["dense"]["bias"]
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    logits = x @ params[classifier]["output"]["kernel"] + params[classifier]["output"]["bias"]
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_classifiers_have_the_references_shapes_and_bounds():
    """PyTorch's: features -> hidden -> classes, U(+-1 / sqrt(fan_in)), biases too. TensorFlow's: linear, Xavier, 0."""
    features = jnp.zeros((1, 64))
    deep = jax.jit(pretrain.Classifier(10, hidden=100).init)(jax.random.key(0), features)["params"]
    assert jax.tree.map(jnp.shape, deep) == {
        "hidden": {"kernel": (64, 100), "bias": (100,)}, "output": {"kernel": (100, 10), "bias": (10,)}
    }  # fmt: skip
    for layer, fan_in in (("hidden", 64), ("output", 100)):
        largest = float(jnp.abs(deep[layer]["kernel"]).max())
        assert 0.95 * fan_in**-0.5 < largest <= fan_in**-0.5
        assert 0.5 * fan_in**-0.5 < float(jnp.abs(deep[layer]["bias"]).max()) <= fan_in**-0.5
    flat = jax.jit(pretrain.Classifier(10, uniform=False).init)(jax.random.key(0), features)["params"]
    assert list(flat) == ["output"]
    assert not flat["output"]["bias"].any()
    bound = (6 / 74) ** 0.5
    assert 0.95 * bound < float(jnp.abs(flat["output"]["kernel"]).max()) <= bound


def test_the_hidden_layer_is_rectified():
    classifier = pretrain.Classifier(2, hidden=5)
    features = jax.random.normal(jax.random.key(1), (4, 3))
    params = jax.tree.map(np.asarray, classifier.init(jax.random.key(0), features)["params"])
    hidden = np.maximum(features @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    wanted = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(classifier.apply({"params": params}, features), wanted, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_accuracy_are_numpys(smoothing):
    """Label smoothing moves a tenth of the target to the uniform distribution over all classes."""
    state, step = start(optimizers.adam(1e-2))
    _, metrics = step(state, IMAGES, LABELS, jax.random.key(0), label_smoothing=smoothing)
    log_p = log_probabilities(state)
    target = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    np.testing.assert_allclose(metrics["loss"], -(target * log_p).sum(1).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (log_p.argmax(1) == LABELS).mean(), rtol=1e-6)


def test_rotations_are_a_second_task_of_the_batch_in_all_four():
    state, step = start(optimizers.adam(1e-2), rotation=0.5)
    after, metrics = step(state, IMAGES, LABELS, jax.random.key(0))
    turned = np.concatenate([np.rot90(IMAGES, k, (1, 2)) for k in range(4)])
    log_p, labels, angles = log_probabilities(state, turned), np.tile(LABELS, 4), np.repeat(np.arange(4), 6)
    loss = -log_p[np.arange(24), labels].mean()
    loss -= 0.5 * log_probabilities(state, turned, "rotation")[np.arange(24), angles].mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (log_p.argmax(1) == labels).mean(), rtol=1e-6)
    assert not np.array_equal(after.params["rotation"]["output"]["bias"], state.params["rotation"]["output"]["bias"])


def test_rotations_leave_the_start_of_everything_else_as_it_was():
    plain, turned = (start(optimizers.adam(1e-2), rotation=rotation)[0].params for rotation in (0.0, 1.0))
    assert turned.pop("rotation")
    jax.tree.map(np.testing.assert_array_equal, plain, turned)


def test_shares_of_classes_are_labels_too():
    state, step = start(optimizers.adam(1e-2))
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    by_label, by_share = (step(state, IMAGES, y, jax.random.key(0))[1] for y in (LABELS, one_hot))
    np.testing.assert_allclose(by_label["loss"], by_share["loss"], rtol=1e-5)
    assert by_label["accuracy"] == by_share["accuracy"]
    mixed = 0.7 * one_hot + 0.3 * one_hot[::-1]
    loss = -(mixed * log_probabilities(state)).sum(1).mean()
    np.testing.assert_allclose(step(state, IMAGES, mixed, jax.random.key(0))[1]["loss"], loss, rtol=1e-4)


def test_steps_learn_count_and_move_the_averages():
    state, step = start(optimizers.adam(3e-2))
    first = state
    losses = []
    for number in range(60):
        state, metrics = step(state, IMAGES, LABELS, jax.random.key(number))
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 60
    assert losses[-1] < 0.5 * losses[0]
    assert float(metrics["accuracy"]) > 0.8
    moved, _ = step(first, IMAGES, LABELS, jax.random.key(0))
    x = IMAGES.reshape(6, -1) @ np.asarray(first.params["backbone"]["dense"]["kernel"])
    np.testing.assert_allclose(moved.batch_stats["norm"]["mean"], 0.1 * x.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved.batch_stats["norm"]["var"], 0.9 + 0.1 * x.var(0), rtol=1e-4)


def test_batch_mode_keeps_no_averages():
    state, step = start(optimizers.adam(1e-2))
    by_batch, batch = step(state, IMAGES, LABELS, jax.random.key(0), batch_statistics="batch")
    by_train, train = step(state, IMAGES, LABELS, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, by_batch.batch_stats, state.batch_stats)
    np.testing.assert_allclose(batch["loss"], train["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), by_batch.params, by_train.params)


@pytest.mark.parametrize("mode", ["train", "batch"])
def test_averages_of_parts_of_a_batch_are_averaged_over_the_mapped_axis(mode):
    """Of a backbone that does not know the axis; all devices have to go on with the same ones."""
    state, step = start(optimizers.sgd(0.1))
    parts = IMAGES.reshape(2, 3, *IMAGES.shape[1:]), LABELS.reshape(2, 3)
    take = functools.partial(step, state, key=jax.random.key(0), batch_statistics=mode)
    each = [take(*part)[0].batch_stats for part in zip(*parts, strict=True)]
    both, _ = jax.vmap(functools.partial(take, axis_name="devices"), axis_name="devices")(*parts)
    for found, *wanted in zip(*map(jax.tree.leaves, (both.batch_stats, *each)), strict=True):
        np.testing.assert_allclose(found, np.tile(np.mean(wanted, 0), (2, 1)), rtol=1e-5)


def test_dropout_depends_on_its_key():
    state, step = start(optimizers.adam(1e-2), Small(rate=0.5))
    losses = [float(step(state, IMAGES, LABELS, jax.random.key(k))[1]["loss"]) for k in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_averaged_weights_are_numpys_moving_average_and_forget_the_start():
    state, _ = start(optimizers.sgd(0.1))
    state = state._replace(average=jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats}))
    step = jax.jit(functools.partial(
        pretrain.train_step, optimizer=optimizers.sgd(0.1), backbone=Small(), classifier=pretrain.Classifier(3),
        average=0.5,
    ))  # fmt: skip
    wanted = jax.tree.map(np.asarray, state.average)
    for number in range(20):
        state, _ = step(state, IMAGES, LABELS, jax.random.key(0))
        d, latest = min(0.5, (1 + number) / (10 + number)), {"params": state.params, "batch_stats": state.batch_stats}
        wanted = jax.tree.map(lambda old, new, d=d: d * old + (1 - d) * np.asarray(new), wanted, latest)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.average, wanted)
    bad, _ = step(state, IMAGES * np.nan, LABELS, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, bad.average, state.average)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(value):
    state, step = start(optimizers.sgd(0.1))
    state, metrics = step(state, IMAGES, LABELS, jax.random.key(0))
    assert bool(metrics["finite"])
    bad = IMAGES.copy()
    bad[3, 2, 1] = value
    after, metrics = step(state, bad, LABELS, jax.random.key(1))
    assert not bool(metrics["finite"])
    jax.tree.map(np.testing.assert_array_equal, after, state._replace(step=state.step + 1))


def test_a_backbone_without_batch_norm_has_empty_averages():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, images, train=False, batch_statistics="running"):
            return nn.Dense(2)(images.reshape(len(images), -1))

    state, step = start(optimizers.adam(1e-2), Plain())
    assert state.batch_stats == {}
    after, metrics = step(state, IMAGES, LABELS, jax.random.key(0))
    assert after.batch_stats == {}
    assert bool(metrics["finite"])


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own():
    key = jax.random.key(3)
    orders = [np.asarray(pretrain.epoch_order(key, epoch, 50)) for epoch in (0, 1, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    np.testing.assert_array_equal(orders[1], orders[2])
    assert not np.array_equal(orders[0], orders[1])

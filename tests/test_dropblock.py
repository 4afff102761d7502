"""DropBlock: where its squares lie, what it keeps, its ramp, and where it stands in resnet12_640."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax import create_backbone, optimizers, pretrain
from mtl_jax.errors import ConfigError
from mtl_jax.layers import DropBlock, squares


def dropped(x, key, rate=0.2, size=2, **share):
    return DropBlock(rate, size).apply({}, x, **share, rngs={"dropout": jax.random.key(key)})


@pytest.mark.parametrize("size", [1, 2, 5])
def test_squares_against_loops(size):
    corners = np.random.default_rng(size).random((3, 6, 4, 2)) < 0.15
    wanted = np.zeros((3, 6 + size - 1, 4 + size - 1, 2), bool)
    for b, i, j, c in np.argwhere(corners):
        wanted[b, i : i + size, j : j + size, c] = True
    np.testing.assert_array_equal(squares(jnp.asarray(corners), size), wanted)


@pytest.mark.parametrize(("side", "size"), [(2, 2), (4, 2), (5, 5), (10, 5), (10, 2)])
def test_a_pixel_is_dropped_as_often_as_squares_reach_it(side, size):
    """By RFS' formula: corners with chance rate / size^2 * side^2 / (side - size + 1)^2, each a whole square."""
    rate, count = 0.2, 40_000
    out = np.asarray(dropped(jnp.ones((count // 10, side, side, 10)), 0, rate, size))
    chance = rate / size**2 * side**2 / (side - size + 1) ** 2
    reach = np.array([sum(i - size < corner <= i for corner in range(side - size + 1)) for i in range(side)])
    wanted = 1 - (1 - chance) ** np.outer(reach, reach)
    error = np.sqrt(wanted * (1 - wanted) / count)
    assert (np.abs((out == 0).mean((0, 3)) - wanted) < 5 * error).all()
    if size == side:  # whole channels
        assert set(np.unique((out == 0).mean((1, 2)))) == {0, 1}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_mean_is_kept(dtype):
    """Scaled by count / sum of the mask: of ones exactly, of other maps on average."""
    out = dropped(jnp.ones((8, 6, 6, 16), dtype), 0)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32).mean(), 1, rtol=1e-5 if dtype == jnp.float32 else 4e-3)
    if dtype == jnp.float32:
        x = jnp.asarray(np.random.default_rng(0).normal(1, 1, (4, 4, 4, 32)), dtype)
        means = [float(dropped(x, key).mean()) for key in range(200)]
        assert abs(np.mean(means) - float(x.mean())) < 5 * np.std(means) / 200**0.5


def test_nothing_is_dropped_at_the_ramps_start_and_all_can_be():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 3)), jnp.float32)
    np.testing.assert_array_equal(dropped(x, 0, share=jnp.float32(0)), x)
    few, many = ((np.asarray(dropped(jnp.ones((50, 4, 4, 50)), 0, 0.2, 2, share=s)) == 0).mean() for s in (0.25, 1.0))
    assert 0.2 < few / many < 0.35
    assert np.isfinite(dropped(x, 0, rate=0.999, size=5)).all()


def test_the_gradient_is_the_scaled_mask():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)
    gradient = jax.grad(lambda x: dropped(x, 3).sum())(x)
    mask = np.asarray(dropped(jnp.ones_like(x), 3))
    assert 0 < (mask == 0).mean() < 1
    np.testing.assert_array_equal(gradient, mask)


def test_a_map_smaller_than_the_squares_is_named():
    with pytest.raises(ConfigError, match="dropblock is 5, but a map it drops from has 4 x 4 pixels"):
        dropped(jnp.ones((1, 4, 4, 1)), 0, size=5)


@pytest.fixture(scope="module")
def network():
    """(images, variables, features of training by options and the ramp's share)."""
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    variables = pretrain.init_backbone(jax.random.key(1), create_backbone("resnet12_640", width=0.1), (32, 32, 3))

    def features(share=None, key=0, train=True, **options):
        module = create_backbone("resnet12_640", width=0.1, **options)
        more = {} if share is None else {"dropblock_share": share}
        rngs = {"dropout": jax.random.key(key)}
        return np.asarray(module.apply(variables, images, train, "running", **more, rngs=rngs))

    return features


def test_blocks_3_and_4_have_squares_blocks_1_and_2_single_pixels(network):
    """At 32 pixels the last map has 2 x 2, which a square of 2 drops whole, so that the feature is exactly 0."""
    whole = network(train=False)
    np.testing.assert_array_equal(network(train=False, dropout=0.3, dropblock=2), whole)
    assert (network(dropout=0.3) == 0).mean() < 0.03  # four pixels at once, 0.3 ** 4
    assert 0.2 < (network(dropout=0.3, dropblock=2) == 0).mean() < 0.4
    still = network(0.0, dropout=0.3, dropblock=2)
    assert (still == 0).mean() == 0
    assert not np.allclose(still, whole)  # the plain dropout of blocks 1 and 2 has no ramp
    assert not np.array_equal(still, network(0.0, key=1, dropout=0.3, dropblock=2))


def test_without_a_rate_nothing_is_dropped_and_no_key_is_needed(network):
    np.testing.assert_array_equal(network(dropblock=2), network(train=False))


@pytest.mark.parametrize("name", ["conv4", "resnet12", "resnet18", "resnet25"])
def test_other_backbones_refuse_it(name):
    with pytest.raises(ConfigError, match=f"dropblock is 2, but {name} with norm 'batch' does not use it"):
        create_backbone(name, dropblock=2)
    create_backbone(name, dropblock=0)


class Recorder(nn.Module):
    """A backbone that keeps the share it was given."""

    @nn.compact
    def __call__(self, images, train=False, batch_statistics=None, dropblock_share=-1.0):
        share = self.variable("batch_stats", "share", jnp.zeros, ())
        if train:
            share.value = jnp.float32(dropblock_share)
        return nn.Dense(2)(images.reshape(len(images), -1))


@pytest.mark.parametrize(("ramp", "wanted"), [(4, [0.25, 0.5, 0.75, 1, 1]), (0, [-1, -1, -1, -1, -1])])
def test_the_share_rises_by_steps_as_the_published_counter_does(ramp, wanted):
    optimizer, classifier = optimizers.sgd(0.1), pretrain.Classifier(2)
    state = pretrain.init_state(jax.random.key(0), Recorder(), classifier, (2, 2, 1), optimizer)
    step = jax.jit(functools.partial(pretrain.train_step, optimizer=optimizer, backbone=Recorder(),
                                     classifier=classifier, dropblock_ramp=ramp))  # fmt: skip
    shares = []
    for _ in wanted:
        state, _ = step(state, jnp.ones((2, 2, 2, 1)), jnp.array([0, 1]), jax.random.key(1))
        shares.append(float(state.batch_stats["share"]))
    assert shares == wanted

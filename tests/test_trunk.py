"""A backbone cut below a block: trunk and rest together are the whole, and so are the gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax import create_backbone, meta, scale_shift
from mtl_jax.embed import Embed, feature_width
from mtl_jax.errors import ConfigError
from mtl_jax.learners import Inner
from mtl_jax.train import cost
from mtl_jax.trunk import Rest, Trunk
from mtl_jax.types import Episode
from mtl_jax.vision_vit import Form, ViT

NETWORKS = {
    "conv4": (functools.partial(create_backbone, "conv4", width=0.125), 28),
    "imagenet_resnet18": (functools.partial(create_backbone, "imagenet_resnet18", width=0.0625), 32),
    "efficientnet_lite0": (functools.partial(create_backbone, "efficientnet_lite0", width=0.125), 32),
    "vit": (lambda: ViT(Form(2, 8, 2, 16, 8, 4, registers=1)), 40),
}


def network(name, side=None):
    """(embed, params, batch_stats, side) with values that are nobody's start, in float64."""
    make, own = NETWORKS[name]
    module, side = make(), side or own
    variables = module.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape), variables["params"])
    stats = jax.tree.map(lambda leaf: leaf + abs(rng.normal(0, 0.05, leaf.shape)), variables.get("batch_stats", {}))
    return Embed(module, prepare=lambda images: images / 128 - 1.0), params, stats, side


def pixels(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape), jnp.uint8)


SLOW = {"efficientnet_lite0": pytest.mark.slow}  # to compile


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in NETWORKS])
def test_trunk_and_rest_are_the_whole_and_its_gradients(float64, name):
    embed, params, stats, side = network(name)
    block, images = scale_shift.last_block(params), pixels(1, 3, side, side, 3)
    trunk, rest = Trunk(embed, block), Rest(embed, block, (side, side, 3))
    maps = trunk(params, stats, images)
    weights = np.random.default_rng(2).normal(size=(3, feature_width(embed, params, stats, (side, side, 3))))

    above = {name: tree for name, tree in params.items() if name not in trunk.blocks(params, stats, images)}
    assert block in above

    def loss(network, inputs, learned):
        return (weights * network({**params, **learned}, stats, inputs)[0]).sum()

    whole = jax.jit(jax.value_and_grad(functools.partial(loss, embed, images)))({block: above[block]})
    cut = jax.jit(jax.value_and_grad(functools.partial(loss, rest, maps)))({block: above[block]})
    rtol = 1e-5 if name == "vit" else 1e-8  # attention computes its weights in float32
    np.testing.assert_allclose(cut[0], whole[0], rtol=rtol)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[1]))
    for one, other in zip(*(jax.tree.leaves(grads[1]) for grads in (cut, whole)), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * scale)
    assert scale > 0


@pytest.mark.parametrize("per", scale_shift.PER)
def test_a_meta_training_step_on_maps_is_that_on_images(float64, per):
    embed, params, stats, side = network("conv4")
    block = scale_shift.last_block(params)
    features = feature_width(embed, params, stats, (side, side, 3))
    head = {"kernel": jnp.asarray(np.random.default_rng(4).normal(size=(features, 2))), "bias": jnp.zeros(2)}
    learned = {"ss": scale_shift.init(params, blocks=[block], per=per), "head": head}
    images, labels = pixels(3, 1, 6, side, side, 3), jnp.array([[0, 1, 0, 1, 0, 1]])
    rest, maps = Rest(embed, block, (side, side, 3)), Trunk(embed, block)(params, stats, images[0])[None]
    frozen = meta.Frozen(params, stats)
    grads = [
        meta.gradients(
            learned, frozen, Episode(inputs[:, :2], labels[:, :2], inputs[:, 2:], labels[:, 2:]), embed=network,
            inner=Inner(steps=3, lr=0.1, way=2),
        )[0]
        for network, inputs in ((embed, images), (rest, maps))
    ]  # fmt: skip
    for one, other in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-10)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grads[1]["ss"]))


@pytest.mark.slow
def test_neither_part_does_the_work_of_the_other():
    embed, params, stats, side = network("efficientnet_lite0")
    block, images = scale_shift.last_block(params), pixels(1, 2, side, side, 3)
    trunk, rest = Trunk(embed, block), Rest(embed, block, (side, side, 3))
    maps = trunk(params, stats, images)
    below = cost.estimate(lambda *a: trunk(*a), params, stats, images).flops
    above = cost.estimate(lambda *a: rest(*a), params, stats, maps).flops
    whole = cost.estimate(lambda *a: embed(*a), params, stats, images).flops
    assert min(below, above) > 0
    assert below + above == pytest.approx(whole, rel=1e-6)


class _Bypass(nn.Module):
    """What is above block2 sees the image besides the maps."""

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(4, name="block1")(images.reshape(len(images), -1))
        return nn.Dense(4, name="block2")(x) + images.mean((1, 2, 3))[:, None]


def test_what_a_backbone_needs_besides_the_maps_is_not_made_up():
    module, images = _Bypass(), jnp.ones((2, 4, 4, 1))
    params = module.init(jax.random.key(0), images)["params"]
    maps = Trunk(Embed(module), "block2")(params, {}, images)
    assert maps.shape == (2, 4)
    assert np.isnan(Rest(Embed(module), "block2", (4, 4, 1))(params, {}, maps)[0]).all()


def test_a_block_that_is_not_there_is_named():
    embed, params, stats, side = network("conv4")
    with pytest.raises(ConfigError, match="no block 'block5'"):
        Trunk(embed, "block5")(params, stats, pixels(0, 1, side, side, 3))

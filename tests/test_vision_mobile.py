"""EfficientNet-Lite0 and MobileNetV2: depthwise convolutions in both forms, blocks, paddings."""

import functools

import audit
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from mtl_jax import layers, layers_fast, scale_shift, vision_mobile
from mtl_jax.layers import Options


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, ((1, 1), (2, 2))), (5, 2, ((1, 2), (2, 2))), (3, 2, ((0, 1), (0, 0)))]
)
def test_shifted_multiply_adds_are_the_grouped_convolution_to_second_order(float64, size, stride, padding):
    arrays = [[normal(seed, shape) for shape in ((2, 7, 8, 3), (size, size, 1, 3))] for seed in (0, 1)]
    orders = [
        jax.jit(functools.partial(audit._orders, functools.partial(form, stride=stride, padding=padding)))(*arrays)
        for form in (layers_fast.shifted, layers_fast.grouped)
    ]
    for found, wanted in zip(*orders, strict=True):
        assert audit.relative_error(found, wanted) < 1e-12


def test_the_form_is_chosen_by_the_device(on_cpu):
    wanted = layers_fast.shifted if layers.on_cpu() else layers_fast.grouped
    assert layers.operations().depthwise is wanted


def test_maps_in_bfloat16_stay_so(on_cpu):
    y = layers.operations().depthwise(jnp.ones((1, 5, 5, 2), jnp.bfloat16), jnp.ones((3, 3, 1, 2), jnp.bfloat16), 1,
                                      ((1, 1), (1, 1)))  # fmt: skip
    assert y.dtype == jnp.bfloat16
    assert (y[0, 2, 2] == 9).all()


def test_relu6_has_no_slope_at_its_ends_and_lets_nan_through():
    relu6 = layers.ACTIVATIONS["relu6"]
    x = jnp.array([-1, 0, 1e-6, 3, 6, 7.0])
    np.testing.assert_array_equal(relu6(x), jnp.clip(x, 0, 6))
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu6))(x), [0, 0, 1, 1, 0, 0])
    assert jnp.isnan(relu6(jnp.array(jnp.nan)))


@pytest.mark.parametrize("mode", layers.BATCH_STATISTICS)
@pytest.mark.parametrize("same", [False, True])
def test_a_blocks_gradients_do_not_depend_on_the_device(float64, mode, same):
    options = Options(activation="relu6", same_padding=same)
    blocks = [
        vision_mobile._InvertedResidual(options, vision_mobile.Stage(2, 3, stride, 4, 2), stride) for stride in (1, 2)
    ]
    images = normal(0, (2, 6, 6, 4))
    for block in blocks:
        variables = block.init(jax.random.key(0), images, mode)

        def score(params, images, block=block, variables=variables):
            maps, moved = block.apply({**variables, "params": params}, images, mode, mutable=["batch_stats"])
            return (maps**2).sum(), moved

        results = []
        for form in audit.FORMS.values():
            with audit.device_form(form):
                gradients = jax.jit(jax.value_and_grad(score, (0, 1), has_aux=True))
                results.append(gradients(variables["params"], images))
        assert audit.relative_error(*results) < 1e-9


def test_a_residual_is_added_where_shapes_are_the_same():
    stage, images = vision_mobile.Stage(2, 3, 2, 4, 2), normal(0, (1, 6, 6, 4))
    for stride, width in ((1, 4), (2, 4), (1, 5)):
        block = vision_mobile._InvertedResidual(Options(norm="none"), stage._replace(channels=width), stride)
        shapes = jax.eval_shape(lambda images, block=block: block.init(jax.random.key(0), images, "running"), images)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
        maps = block.apply(nothing, images, "running")
        np.testing.assert_array_equal(maps, images if (stride, width) == (1, 4) else 0)


def test_scale_and_shift_reach_every_convolution():
    module = mtl_jax.create_backbone("efficientnet_lite0", width=0.1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    ss = jax.eval_shape(mtl_jax.init_scale_shift, shapes)
    assert len(jax.tree.leaves(ss)) == len(list(scale_shift.convolutions(shapes))) == 49
    assert ss["stage2"]["block1"]["depthwise"]["scale"].shape == (1, 1, 1, 12)
    assert scale_shift.last_block(shapes) == "stage7"
    assert ss["stage7"].keys() == {"block1", "conv"}

"""Scale and shift as a transform of a parameter tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import apply_scale_shift, create_backbone, init_scale_shift
from mtl_jax.errors import ConfigError
from mtl_jax.scale_shift import convolutions, last_block


@pytest.fixture(scope="module")
def params():
    return {name: _params(name) for name in ("conv4", "resnet12", "resnet18", "resnet25")}


def _params(name):
    module = create_backbone(name, width=0.05)
    shapes = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, 28, 28, 3))), jax.random.key(0))["params"]
    rng = np.random.default_rng(0)  # NumPy's, since JAX would compile something for every shape
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)


def leaves(ss, name):
    return [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(ss)[0] if path[-1].key == name]


@pytest.mark.parametrize(
    ("name", "scales", "main", "shifts"),
    [("conv4", 4, 4, 4), ("resnet12", 16, 12, 12), ("resnet18", 25, 17, 17), ("resnet25", 28, 25, 1)],
)
def test_where_scales_and_shifts_are(params, name, scales, main, shifts):
    ss = init_scale_shift(params[name])
    assert len(leaves(ss, "scale")) == scales
    assert len(leaves(ss, "shift")) == shifts
    assert len(leaves(init_scale_shift(params[name], scale="main"), "scale")) == main
    assert not leaves(init_scale_shift(params[name], shift="nowhere"), "shift")


def test_shapes_are_one_per_slice_and_one_per_channel(params):
    ss = init_scale_shift(params["conv4"])
    kernel = params["conv4"]["block2"]["conv"]["kernel"]
    leaf = ss["block2"]["conv"]
    assert leaf["scale"].shape == (1, 1, *kernel.shape[2:])
    assert leaf["shift"].shape == kernel.shape[3:]


def test_initial_ss_changes_nothing(params):
    for tree in params.values():
        jax.tree.map(np.testing.assert_array_equal, apply_scale_shift(tree, init_scale_shift(tree)), tree)


def test_apply_is_scale_times_kernel_and_bias_plus_shift(params):
    tree = params["resnet25"]
    ss = jax.tree.map(
        lambda leaf: leaf + jax.random.normal(jax.random.key(leaf.size), leaf.shape), init_scale_shift(tree)
    )
    merged = apply_scale_shift(tree, ss)
    stem, leaf = tree["stem"]["conv"], ss["stem"]["conv"]
    np.testing.assert_array_equal(merged["stem"]["conv"]["kernel"], stem["kernel"] * leaf["scale"])
    np.testing.assert_array_equal(merged["stem"]["conv"]["bias"], stem["bias"] + leaf["shift"])
    shortcut = tree["stage2"]["block1"]["shortcut"]["kernel"]
    scale = ss["stage2"]["block1"]["shortcut"]["scale"]
    np.testing.assert_array_equal(merged["stage2"]["block1"]["shortcut"]["kernel"], shortcut * scale)
    jax.tree.map(np.testing.assert_array_equal, merged["stem"]["norm"], tree["stem"]["norm"])
    assert jax.tree.structure(merged) == jax.tree.structure(tree)


def test_ss_on_parameters_is_ss_on_the_convolution():
    """The transform of the tree gives SS(X) = (W * scale) X + (b + shift)."""
    module = create_backbone("conv4", width=0.05, norm="none", activation="none")
    images = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
    variables = module.init(jax.random.key(1), images)
    ss = init_scale_shift(variables["params"], blocks=["block4"])
    ss["block4"]["conv"]["shift"] += 2.5
    shifted = module.apply({"params": apply_scale_shift(variables["params"], ss)}, images)
    np.testing.assert_allclose(shifted, module.apply(variables, images) + 2.5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "block"), [("conv4", "block4"), ("resnet12", "block4"), ("resnet18", "stage4"), ("resnet25", "stage3")]
)
def test_last_block(params, name, block):
    assert last_block(params[name]) == block
    assert set(init_scale_shift(params[name], blocks=[block])) == {block}


def test_the_last_block_is_by_whole_number():
    assert last_block({f"block{number}": {} for number in range(1, 13)} | {"stem": {}}) == "block12"
    with pytest.raises(ConfigError, match="the backbone has conv, norm, expected blocks"):
        last_block({"conv": {}, "norm": {}})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale", jnp.ones(3), r"block2/conv/scale of shape \(3,\), expected \(1, 1, 3, 3\)"),
        ("shift", jnp.ones(1), r"block2/conv/shift of shape \(1,\), expected \(3,\)"),
        ("scales", jnp.ones((1, 1, 3, 3)), r"block2/conv/scales, expected 'scale' and 'shift' alone"),
    ],
)
def test_a_leaf_of_another_name_or_shape_is_an_error(params, name, value, message):
    with pytest.raises(ConfigError, match=message):
        apply_scale_shift(params["conv4"], {"block2": {"conv": {name: value}}})


def test_surplus_leaf_is_an_error(params):
    tree = params["conv4"]
    ss = init_scale_shift(tree)
    with pytest.raises(ConfigError, match="block9"):
        apply_scale_shift(tree, {**ss, "block9": ss["block1"]})
    resnet = params["resnet25"]
    bad = init_scale_shift(resnet)
    bad["stage1"]["block1"]["conv1"]["shift"] = jnp.zeros(8)
    with pytest.raises(ConfigError, match=r"stage1/block1/conv1/shift.*no bias"):
        apply_scale_shift(resnet, bad)


def test_unknown_choices_are_errors(params):
    for arguments in ({"scale": "some"}, {"shift": "everywhere"}, {"blocks": ["block7"]}):
        with pytest.raises(ConfigError, match=str(next(iter(arguments.values()))).strip("[]'")):
            init_scale_shift(params["conv4"], **arguments)


def test_convolutions_are_all_kernels_of_four_dimensions(params):
    for tree in params.values():
        kernels = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 4]
        assert len(list(convolutions(tree))) == len(kernels)

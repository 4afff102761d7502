"""Scale and shift as a transform of a parameter tree."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax import apply_scale_shift, create_backbone, init_scale_shift
from mtl_jax.errors import ConfigError
from mtl_jax.scale_shift import convolutions, count, last_block


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
        ("scale", jnp.ones(2), r"block2/conv/scale of shape \(2,\), expected \(1, 1, 3, 3\)"),
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


class Transformer(nn.Module):
    """One block of a ViT on tokens [B, L, D]."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y)
        y = nn.Dense(12, name="mlp1")(nn.LayerNorm(name="norm2")(x))
        return nn.Dense(8, name="mlp2")(nn.gelu(y)).mean(1)


class Network(nn.Module):
    """Convolutions of one and two dimensions, without biases, and batch norm."""

    @nn.compact
    def __call__(self, x):
        for number in (1, 2):
            x = nn.Conv(5, (3, 3), use_bias=False, name=f"conv{number}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, name=f"norm{number}")(x))
        return nn.Conv(4, (3,), name="conv1d")(x.mean(1)).mean(1)


def network(module, shape):
    """Its random parameters and averages in float64, and an input."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape)), module.init(jax.random.key(0), x)
    )
    return variables, x


def with_ssf(module, variables, ss, x):
    """SSF written out: every layer's output y becomes y * scale + shift."""

    def after_each_layer(call, args, kwargs, context):
        out, part = call(*args, **kwargs), ss
        for name in context.module.path:
            part = part.get(name, {}) if isinstance(part, dict) else {}
        if context.method_name != "__call__" or not {"scale", "shift"} & set(part):
            return out
        return out * part.get("scale", 1) + part.get("shift", 0)

    with nn.intercept_methods(after_each_layer):
        return module.apply(variables, x)


NETWORKS = pytest.mark.parametrize(
    ("module", "shape"), [(Transformer(), (3, 4, 8)), (Network(), (2, 6, 6, 3))], ids=["transformer", "convolutions"]
)


def moved(ss):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape)), ss)


@NETWORKS
def test_per_output_is_ssf_after_every_layer(module, shape, float64):
    """Values and gradients of the folded network are those of scale and shift on each layer's output."""
    variables, x = network(module, shape)
    ss = moved(init_scale_shift(variables["params"], per="output"))
    assert {leaf.ndim for leaf in jax.tree.leaves(ss)} <= {1, 2}

    def folded(ss):
        return module.apply({**variables, "params": apply_scale_shift(variables["params"], ss)}, x)

    def written(ss):
        return with_ssf(module, variables, ss, x)

    assert jnp.abs(written(ss) - module.apply(variables, x)).max() > 0.01
    np.testing.assert_allclose(folded(ss), written(ss), rtol=1e-10, atol=1e-10)
    gradients = [jax.grad(lambda ss, form=form: (form(ss) ** 2).sum())(ss) for form in (folded, written)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), *gradients)


def test_norm_layers_give_shifts_to_convolutions_without_biases():
    variables, _ = network(Network(), (2, 6, 6, 3))
    ss = init_scale_shift(variables["params"], per="output")
    assert {name: sorted(leaf) for name, leaf in ss.items()} == {
        "conv1": ["scale"], "conv2": ["scale"], "conv1d": ["scale", "shift"],
        "norm1": ["scale", "shift"], "norm2": ["scale", "shift"],
    }  # fmt: skip
    assert not leaves(init_scale_shift(variables["params"], per="output", shift="nowhere"), "shift")


@NETWORKS
def test_per_pair_reaches_every_kernel_and_no_norm(module, shape):
    variables, _ = network(module, shape)
    params = variables["params"]
    ss = init_scale_shift(params)
    merged = apply_scale_shift(params, jax.tree.map(lambda leaf: leaf + 1, ss))
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(merged):
        before = params
        for key in path:
            before = before[key.key]
        is_norm = "norm" in jax.tree_util.keystr(path)
        wanted = before if is_norm else before * 2 if path[-1].key == "kernel" else before + 1
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6)


def test_shapes_of_scales_per_pair_and_per_output():
    attention = network(Transformer(), (3, 4, 8))[0]["params"]
    convolutions = network(Network(), (2, 6, 6, 3))[0]["params"]
    shapes = {
        per: {
            "query": init_scale_shift(attention, per=per)["attention"]["query"]["scale"].shape,
            "out": init_scale_shift(attention, per=per)["attention"]["out"]["scale"].shape,
            "dense": init_scale_shift(attention, per=per)["mlp1"]["scale"].shape,
            "conv1d": init_scale_shift(convolutions, per=per)["conv1d"]["scale"].shape,
        }
        for per in ("pair", "output")
    }
    assert shapes["pair"] == {"query": (8, 2, 4), "out": (2, 4, 8), "dense": (8, 12), "conv1d": (1, 5, 4)}
    assert shapes["output"] == {"query": (2, 4), "out": (8,), "dense": (12,), "conv1d": (4,)}


def test_where_chooses_layers_by_their_paths():
    params = network(Transformer(), (3, 4, 8))[0]["params"]
    ss = init_scale_shift(params, where=lambda path: path.startswith("attention/"))
    assert {name: set(inner) for name, inner in ss.items()} == {"attention": {"query", "key", "value", "out"}}
    assert set(init_scale_shift(params, per="output", where=lambda path: "norm" in path)) == {"norm1", "norm2"}
    with pytest.raises(ConfigError, match=r"where is true of no layer; there are .*attention/query"):
        init_scale_shift(params, where=lambda path: "conv" in path)
    with pytest.raises(ConfigError, match="per is 'channel', expected one of"):
        init_scale_shift(params, per="channel")


def test_other_mappings_and_numbered_modules_are_read():
    params = {"blocks": {number: {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)} for number in (9, 10)}}
    ss = init_scale_shift(params, where=lambda path: path == "blocks/10")
    assert set(ss["blocks"]) == {10}
    assert apply_scale_shift(params, ss).keys() == params.keys()
    assert last_block(params["blocks"]) == 10
    frozen = flax.core.freeze(network(Network(), (2, 6, 6, 3))[0]["params"])
    plain = flax.core.unfreeze(frozen)
    for per in ("pair", "output"):
        ss = init_scale_shift(frozen, per=per)
        jax.tree.map(np.testing.assert_array_equal, ss, init_scale_shift(plain, per=per))
        jax.tree.map(np.testing.assert_array_equal, apply_scale_shift(frozen, flax.core.freeze(ss)), plain)


def vit_shapes(width=384, depth=12, mlp=4):
    """ViT-S/16: the layers' shapes alone."""

    def dense(i, o):
        return {"kernel": jax.ShapeDtypeStruct((i, o), "f"), "bias": jax.ShapeDtypeStruct((o,), "f")}

    def norm():
        return {"scale": jax.ShapeDtypeStruct((width,), "f"), "bias": jax.ShapeDtypeStruct((width,), "f")}

    block = {
        "norm1": norm(), "qkv": dense(width, 3 * width), "proj": dense(width, width),
        "norm2": norm(), "mlp1": dense(width, mlp * width), "mlp2": dense(mlp * width, width),
    }  # fmt: skip
    patches = {"kernel": jax.ShapeDtypeStruct((16, 16, 3, width), "f"), "bias": jax.ShapeDtypeStruct((width,), "f")}
    return {"embed": patches, "norm": norm()} | {f"block{number}": block for number in range(depth)}


def test_counts_are_of_ss_and_of_the_backbone():
    params = {"conv": {"kernel": jnp.ones((3, 3, 4, 5)), "bias": jnp.ones(5)}, "norm": {"scale": jnp.ones(5)}}
    assert count(init_scale_shift(params), params) == (25, 190)
    assert count(init_scale_shift(params, per="output"), params) == (15, 190)
    ss = jax.eval_shape(lambda params: init_scale_shift(params, per="output"), vit_shapes())
    assert count(ss, vit_shapes())[0] == 2 * (384 * 12 * (1 + 3 + 1 + 1 + 4 + 1) + 384 * 2)

"""Backbones: parameter counts, shapes, batch norm's three modes, the options."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax import backbones, create_backbone, layers
from mtl_jax.errors import ConfigError
from mtl_jax.layers import Options, max_pool
from mtl_jax.layers import norm as norm_layer
from mtl_jax.workdir.named_arrays import flatten


def conv(cin, cout, size=3, bias=True):
    return size * size * cin * cout + (cout if bias else 0)


def norm(channels):
    return 2 * channels


def resnet12():
    total = 0
    for cin, c in ((3, 64), (64, 128), (128, 256), (256, 512)):
        total += conv(cin, c) + 2 * conv(c, c) + 3 * norm(c) + conv(cin, c, 1, bias=False)
    return total


def resnet12_640():
    total = 0
    for cin, c in ((3, 64), (64, 160), (160, 320), (320, 640)):
        total += conv(cin, c, bias=False) + 2 * conv(c, c, bias=False) + conv(cin, c, 1, bias=False) + 4 * norm(c)
    return total


def resnet18():
    total = conv(3, 64, 7) + norm(64)
    for cin, c in ((64, 64), (64, 128), (128, 256), (256, 512)):
        for first in (cin, c):
            total += conv(first, c) + conv(c, c) + 2 * norm(c) + conv(first, c, 1, bias=False)
    return total


def resnet25():
    total = conv(3, 80) + norm(80)
    for cin, c in ((80, 160), (160, 320), (320, 640)):
        total += conv(cin, c, bias=False) + 7 * conv(c, c, bias=False) + 8 * norm(c)
        total += conv(cin, c, 1, bias=False) + norm(c)
    return total


def imagenet(blocks, bottleneck=False):
    total, cin = conv(3, 64, 7, bias=False) + norm(64), 64
    for stage, c in enumerate((64, 128, 256, 512)):
        for block in range(blocks[stage]):
            out = 4 * c if bottleneck else c
            layers = ((cin, c, 1), (c, c, 3), (c, out, 1)) if bottleneck else ((cin, c, 3), (c, c, 3))
            total += sum(conv(*layer, bias=False) + norm(layer[1]) for layer in layers)
            total += (conv(cin, out, 1, bias=False) + norm(out)) * (block == 0 and (stage > 0 or bottleneck))
            cin = out
    return total


def mobile(*stages):
    total, cin = conv(3, 32, bias=False) + norm(32), 32
    for expand, size, c, blocks in stages:
        for _ in range(blocks):
            wide = cin * expand
            total += (conv(cin, wide, 1, bias=False) + norm(wide)) * (expand > 1)
            total += wide * size**2 + norm(wide) + conv(wide, c, 1, bias=False) + norm(c)
            cin = c
    return total + conv(cin, 1280, 1, bias=False) + norm(1280)


# Counted above from the description of each network, layer by layer.
GOLDEN = {
    "conv4": conv(3, 64) + 3 * conv(64, 64) + 4 * norm(64),
    "resnet12": resnet12(),
    "resnet12_640": resnet12_640(),  # 12,424,320, as RFS' and MetaOptNet's code counts it
    "resnet18": resnet18(),
    "resnet25": resnet25(),
    # 11,689,512, 21,797,672 and 25,557,032 with their classifiers, as torchvision counts them
    "imagenet_resnet18": imagenet((2, 2, 2, 2)),
    "imagenet_resnet34": imagenet((3, 4, 6, 3)),
    "imagenet_resnet50": imagenet((3, 4, 6, 3), bottleneck=True),
    # 4,652,008 and 3,504,872 with their classifiers of 1,281,000, as their publishers count them
    "efficientnet_lite0": mobile(
        (1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3), (6, 5, 112, 3), (6, 5, 192, 4), (6, 3, 320, 1)
    ),
    "mobilenet_v2": mobile(
        (1, 3, 16, 1), (6, 3, 24, 2), (6, 3, 32, 3), (6, 3, 64, 4), (6, 3, 96, 3), (6, 3, 160, 3), (6, 3, 320, 1)
    ),
}
FEATURES = {
    "conv4": 64, "resnet12": 512, "resnet12_640": 640, "resnet18": 512, "resnet25": 640, "imagenet_resnet18": 512,
    "imagenet_resnet34": 512, "imagenet_resnet50": 2048, "efficientnet_lite0": 1280, "mobilenet_v2": 1280,
}  # fmt: skip


MOBILE = ("efficientnet_lite0", "mobilenet_v2")
# The networks of ImageNet's ResNets are made of the same layers as resnet25; of the mobile ones: test_vision_mobile.
QUICK = [name for name in backbones.NAMES if not name.startswith("imagenet") and name not in MOBILE]


def shapes(module, size=84, channels=3):
    return jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, size, size, channels))), jax.random.key(0))


def test_networks_of_imagenet_have_as_many_parameters_as_published():
    with_classifier = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032}
    for depth, count in with_classifier.items():
        assert GOLDEN[f"imagenet_resnet{depth}"] + 1000 * (FEATURES[f"imagenet_resnet{depth}"] + 1) == count
    assert GOLDEN["efficientnet_lite0"] + 1_281_000 == 4_652_008
    assert GOLDEN["mobilenet_v2"] + 1_281_000 == 3_504_872


def test_every_backbone_has_a_golden_count():
    assert set(GOLDEN) == set(backbones.NAMES)


@pytest.mark.parametrize("name", backbones.NAMES)
def test_parameter_count_and_features(name):
    module = create_backbone(name)
    variables = shapes(module)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == GOLDEN[name]
    out = jax.eval_shape(module.apply, variables, jnp.zeros((2, 84, 84, 3)))
    assert out.shape == (2, FEATURES[name])


@pytest.mark.parametrize("name", backbones.NAMES)
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (37, 1), (80, 3)])
def test_any_size_and_channels(name, size, channels):
    module = create_backbone(name, width=0.1)
    variables = shapes(module, size, channels)
    out = jax.eval_shape(module.apply, variables, jnp.zeros((2, size, size, channels)))
    assert out.shape == (2, max(1, round(FEATURES[name] * 0.1)))


@pytest.mark.parametrize("name", backbones.NAMES)
def test_odd_sizes_give_finite_features(name):
    """29 pixels halve to odd maps, where pooling and strides have an edge to get wrong."""
    module = create_backbone(name, width=0.05)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: (
            rng.normal(0, (s.size / s.shape[-1]) ** -0.5, s.shape).astype(np.float32)
            if len(s.shape) == 4
            else np.ones(s.shape, np.float32)
        ),
        shapes(module, 29, 1),
    )
    features = jax.jit(module.apply)(variables, jnp.ones((2, 29, 29, 1)))
    assert jnp.isfinite(features).all()
    assert jnp.abs(features).max() > 0


def test_pytorch_file_has_as_many_entries_as_its_description():
    """resnet25's state_dict: 202 keys less the head's 4 are convolutions, their SS, and BN's five a layer."""
    variables = shapes(create_backbone("resnet25"))
    kernels = [p for p in jax.tree.leaves(variables["params"]) if len(p.shape) == 4]
    norms = len(jax.tree.leaves(variables["batch_stats"])) // 2
    assert 2 * len(kernels) + 2 + 5 * norms + 4 == 202  # + 2: the stem's bias and its shift


@pytest.fixture(scope="module")
def tiny():
    module = create_backbone("conv4", width=0.1, norm_unbiased=True, norm_momentum=0.9)
    images = jax.random.normal(jax.random.key(1), (6, 28, 28, 1)) * 2 + 1
    return module, module.init(jax.random.key(0), images), images


def test_running_mode_treats_each_image_alone(tiny):
    module, variables, images = tiny
    whole = module.apply(variables, images, batch_statistics="running")
    parts = [module.apply(variables, images[i : i + 1], batch_statistics="running") for i in range(6)]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-5)


def test_batch_mode_stores_nothing_and_train_mode_moves_the_unbiased_average(tiny):
    module, variables, images = tiny
    batch, kept = module.apply(variables, images, batch_statistics="batch", mutable=["batch_stats"])
    train, moved = module.apply(variables, images, batch_statistics="train", mutable=["batch_stats"])
    np.testing.assert_array_equal(batch, train)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])
    params = variables["params"]["block1"]["conv"]
    maps = jax.lax.conv_general_dilated(
        images, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    maps = np.asarray(maps + params["bias"], np.float64).reshape(-1, maps.shape[-1])
    stats = moved["batch_stats"]["block1"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * maps.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * maps.var(0, ddof=1), rtol=1e-5)


def test_biased_average_where_not_unbiased():
    module = create_backbone("conv4", width=0.05, norm_unbiased=False)
    images = jax.random.normal(jax.random.key(1), (2, 28, 28, 1))
    variables = module.init(jax.random.key(0), images)
    _, biased = module.apply(variables, images, batch_statistics="train", mutable=["batch_stats"])
    other = create_backbone("conv4", width=0.05, norm_unbiased=True)
    _, unbiased = other.apply(variables, images, batch_statistics="train", mutable=["batch_stats"])
    seen = [(np.asarray(stats["batch_stats"]["block1"]["norm"]["var"]) - 0.9) / 0.1 for stats in (biased, unbiased)]
    n = 2 * 28 * 28
    np.testing.assert_allclose(seen[1] / seen[0], n / (n - 1), rtol=1e-4)


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none"])
def test_pooling_before_the_norm_changes_nothing(mode, activation, float64):
    """conv4 pools first; the textbook order, written out here, gives the same, for scales of either sign."""
    module = create_backbone("conv4", width=0.1, activation=activation)
    images = jax.random.normal(jax.random.key(1), (3, 29, 28, 1))
    variables = module.init(jax.random.key(0), images)
    variables = jax.tree.map(
        lambda leaf: leaf.astype(float) + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), variables
    )
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    variables["params"]["block1"]["norm"]["scale"] = jnp.linspace(-1, 1, 6)
    x = images
    for name in ("block1", "block2", "block3", "block4"):
        p, stats = variables["params"][name], variables["batch_stats"][name]["norm"]
        x = jax.lax.conv_general_dilated(
            x, p["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x + p["conv"]["bias"]
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if mode == "batch" else (stats["mean"], stats["var"])
        x = (x - mean) / jnp.sqrt(var + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
        x = {"relu": jax.nn.relu, "leaky_relu": lambda y: jnp.where(y > 0, y, 0.1 * y), "none": lambda y: y}[
            activation
        ](x)
        x = max_pool(x)
    np.testing.assert_allclose(module.apply(variables, images, batch_statistics=mode), x.mean((1, 2)), atol=1e-10)


@pytest.mark.parametrize(
    ("norm", "mode"), [*(("batch", mode) for mode in layers.BATCH_STATISTICS), ("layer", "train"), ("none", "train")]
)
@pytest.mark.parametrize("name", QUICK)
def test_both_ways_of_writing_have_the_same_gradients(name, norm, mode, monkeypatch, float64):
    """What a CPU gets and what other devices get, where a bias that batch norm cancels has a gradient of exactly 0."""
    module = create_backbone(name, width=0.05, conv_bias=True, norm=norm)
    images = jax.random.normal(jax.random.key(0), (3, 28, 28, 3), float)
    variables = jax.tree.map(lambda a: a.astype(float), module.init(jax.random.key(1), images))

    def score(params, images):
        rest = {**variables, "params": params}
        options = {"batch_statistics": mode, "mutable": ["batch_stats"]}
        features, moved = module.apply(rest, images, **options)
        return (features**2).sum(), (features, moved)

    found, wanted = {}, {}
    for on_cpu, results in ((False, found), (True, wanted)):
        monkeypatch.setattr(layers, "on_cpu", lambda on_cpu=on_cpu: on_cpu)
        (_, others), gradients = jax.value_and_grad(score, (0, 1), has_aux=True)(variables["params"], images)
        results.update({"others": others, "images": gradients[1], **flatten(gradients[0])})
    jax.tree.map(lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-9, atol=1e-11), found, wanted)
    cancelled = norm == "batch" and mode != "running"
    for path in found:
        if path.endswith("bias") and ("conv" in path or "shortcut/" in path):
            normed = "conv" in path or name in ("resnet12_640", "resnet25")
            assert np.any(found[path]) != (cancelled and normed), path


def test_max_pools_gradient_divides_by_nothing(on_cpu):
    """`max` over axes divides by the count of the largest: 0 where a map is computed twice with other rounding."""
    gradient = jax.make_jaxpr(jax.grad(lambda x: max_pool(x).sum()))(jnp.ones((1, 4, 4, 2)))
    assert " div " not in str(gradient)


def test_max_pools_gradient_goes_to_the_first_of_equals_by_rows(on_cpu):
    """As PyTorch's: of a tie one pixel, never a share of it."""
    window = jnp.array([[1.0, 2.0], [2.0, 0.0]])[None, :, :, None]
    for x, expected in (
        (window, [[0, 1], [0, 0]]),
        (window[:, ::-1], [[1, 0], [0, 0]]),
        (0 * window, [[1, 0], [0, 0]]),
    ):
        np.testing.assert_array_equal(jax.grad(lambda x: max_pool(x).sum())(x)[0, :, :, 0], expected)


def test_max_pool_is_xlas_own():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(x), pooled)
    same = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    np.testing.assert_array_equal(max_pool(x, same=True), same)


@pytest.mark.parametrize("same", [False, True])
def test_max_pools_gradient_is_xlas_own(same, on_cpu):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))

    def xla(x):
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "SAME" if same else "VALID")

    ours, theirs = (
        jax.grad(lambda x, pool=pool: jnp.sin(pool(x)).sum())(x) for pool in (lambda x: max_pool(x, same=same), xla)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_tensorflow1_resize_against_a_loop():
    images = np.random.default_rng(0).normal(size=(1, 5, 7, 2)).astype(np.float32)
    size = 12
    wanted = np.zeros((1, size, size, 2), np.float32)
    for i in range(size):
        for j in range(size):
            y, x = i * 5 / size, j * 7 / size
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, 4), min(x0 + 1, 6)
            top = images[0, y0, x0] * (1 - (x - x0)) + images[0, y0, x1] * (x - x0)
            bottom = images[0, y1, x0] * (1 - (x - x0)) + images[0, y1, x1] * (x - x0)
            wanted[0, i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    np.testing.assert_allclose(backbones._resize_tensorflow1(jnp.asarray(images), size), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet12", "resnet25"])
@pytest.mark.parametrize("norm_name", ["layer", "none"])
def test_other_norms_have_neither_parameters_nor_averages(name, norm_name):
    variables = shapes(create_backbone(name, width=0.05, norm=norm_name), 28)
    assert "batch_stats" not in variables
    assert not [p for p in jax.tree.leaves(variables["params"]) if len(p.shape) == 1 and p.shape[0] == 0]
    flat = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    assert not [path for path, _ in flat if "norm" in str(path)]


class OneNorm(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x, pool=False):
        return norm_layer(self.options, x, "running", name="norm", pool=pool)


@pytest.mark.parametrize("offset", [0.0, 300.0])  # a mean far above the deviation loses digits in a one-pass variance
def test_layer_norm_is_over_the_whole_map_of_an_image(offset):
    """TensorFlow's: over H, W and C, eps 1e-12, scale 1, offset 0."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3)) * jnp.array([1.0, 3.0])[:, None, None, None] + offset
    exact = np.asarray(x, np.float64)
    mean, var = (f(exact, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.var))
    np.testing.assert_allclose(OneNorm(Options(norm="layer")).apply({}, x), (exact - mean) / np.sqrt(var), atol=2e-4)


def test_no_norm_is_none():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    np.testing.assert_array_equal(OneNorm(Options(norm="none")).apply({}, x), x)
    np.testing.assert_array_equal(OneNorm(Options(norm="none")).apply({}, x, pool=True), max_pool(x))


def test_dropout_needs_training():
    module = create_backbone("conv4", width=0.1, dropout=0.5)
    images = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
    variables = module.init(jax.random.key(1), images)
    still = module.apply(variables, images)
    np.testing.assert_array_equal(still, module.apply(variables, images))
    dropped = [
        module.apply(variables, images, train=True, batch_statistics="running", rngs={"dropout": jax.random.key(k)})
        for k in (0, 1)
    ]
    assert not np.allclose(dropped[0], dropped[1])


def test_bfloat16_keeps_parameters_and_features_in_float32():
    module = create_backbone("conv4", width=0.1, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
    variables = module.init(jax.random.key(1), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    features = module.apply(variables, images.astype(jnp.bfloat16))
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(
        features, create_backbone("conv4", width=0.1).apply(variables, images), rtol=0.1, atol=0.02
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("conv5", {}), "conv5.*conv4"),
        (("conv4", {"widht": 2}), "widht.*width"),
        (("conv4", {"norm": "group"}), "norm.*group.*batch"),
        (("conv4", {"activation": "gelu"}), "activation.*gelu"),
        (("conv4", {"width": 0}), "width of more than 0"),
        (("conv4", {"dropout": 1.0}), "dropout of 0 or more, below 1"),
        (
            ("conv4", {"resize": 224}),
            "resize is 224, but conv4 with norm 'batch' does not use it; keep resize 0",
        ),
        (
            ("resnet12", {"norm": "layer", "norm_epsilon": 1e-3}),
            "norm_epsilon is 0.001, .*keep norm_epsilon 1e-05",
        ),
        (("resnet25", {"norm": "none", "norm_momentum": 0.5}), "norm_momentum is 0.5"),
        (
            ("resnet18", {"norm": "layer", "norm_scale": False, "norm_bias": False}),
            "keep norm_scale True, norm_bi",
        ),
        (("conv4", {"norm": "layer", "norm_unbiased": False}), "norm_unbiased is False"),
    ],
)
def test_bad_options_are_named(arguments, message):
    name, options = arguments
    with pytest.raises(ConfigError, match=message):
        create_backbone(name, **options)


def test_conv_bias_everywhere():
    without, everywhere = (shapes(create_backbone("resnet25", conv_bias=b))["params"] for b in (None, True))
    count = [sum("bias" in str(path) and "norm" not in str(path) for path, _ in
                 jax.tree_util.tree_flatten_with_path(p)[0]) for p in (without, everywhere)]  # fmt: skip
    assert count == [1, 28]


def test_options_at_the_value_that_says_nothing_are_no_mistake():
    unset = {"norm_scale": True, "norm_epsilon": 1e-5, "norm_unbiased": None, "resize": 0, "axis_name": "devices"}
    for name in backbones.NAMES:
        create_backbone(name, norm="layer", **unset)
    assert create_backbone("resnet18", resize=224).options.resize == 224

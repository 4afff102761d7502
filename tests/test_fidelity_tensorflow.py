"""The presets `tensorflow` and `paper` against an independent PyTorch writing of that implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_formats as formats
from mtl_jax.configs import miniimagenet

torch = pytest.importorskip("torch")

import oracle_tensorflow as oracle  # noqa: E402
from oracle_pytorch import Adam  # noqa: E402

from mtl_jax import evaluation, load_reference_weights, meta, pretrain  # noqa: E402
from mtl_jax.config import build  # noqa: E402
from mtl_jax.reference_weights.tensorflow import to_dicts  # noqa: E402
from mtl_jax.types import ClassTable, Episode  # noqa: E402

SIDE, WAY, SHOT, QUERY, WIDTH = 32, 5, 2, 3, 0.05
STEPS, LR = 20, 1e-3


def make_config(preset="tensorflow,1shot", **backbone):
    """A preset as it is but for the channels, and `backbone`."""
    config = miniimagenet.get_config(preset)
    config.backbone.update({"width": WIDTH, **backbone})
    if config.backbone.norm != "batch":  # which reads none of these
        config.backbone.update({"norm_scale": True, "norm_bias": True, "norm_epsilon": 1e-5})
    return config


@functools.cache
def dicts(backbone="resnet12"):
    """Weights in the implementation's own dicts."""
    return formats.dicts(np.random.default_rng(0), backbone)


def task(seed):
    """One task as an Episode and as the oracle takes it, both class-major: neither cares for the order."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(WAY, 1, 1, 1, 3))
    support, query = (rng.normal(size=(WAY, each, SIDE, SIDE, 3)) + centre for each in (SHOT, QUERY))
    parts = []
    for part in (support, query):
        parts += [part.reshape(-1, SIDE, SIDE, 3), np.repeat(np.arange(WAY), part.shape[1])]
    return Episode(*map(jnp.asarray, parts)), [torch.from_numpy(part) for part in parts]


def as_they_are(images):
    """No preparation: the images are floats already."""
    return images


def parts(config, weights):
    """(learned groups, frozen rest, embedding of prepared images, inner loop), in the dtype of the weights."""
    found = load_reference_weights(weights)
    assert found.backbone == config.backbone.name
    params, ss, head = jax.tree.map(jnp.asarray, (found.params, found.ss, found.head))
    chosen = build.learned(jax.random.key(0), config, params, head["kernel"].shape[0])
    learned = {"head": head, "ss": ss}
    assert jax.tree.structure(chosen) == jax.tree.structure(learned)
    embed = build.embedding(config)._replace(prepare=as_they_are)
    shapes = jax.eval_shape(embed.module.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    stats = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), shapes.get("batch_stats", {}))  # must not be used
    return learned, meta.Frozen(params, stats), embed, build.inner(config.inner)


@functools.cache
def compiled(function, **options):
    """A function of `meta` with its options, compiled once for all tests."""
    return jax.jit(functools.partial(function, **options))


def embed_and_adapt(learned, frozen, episode, *, embed, inner):
    """(features of the support set, adapted query logits)."""
    features, _ = embed(meta.backbone_params(learned, frozen), frozen.batch_stats, episode.support)
    return features, meta.episode_logits(learned, frozen, episode, embed=embed, inner=inner)[0]


def check_features_and_logits(config, weights, network):
    learned, frozen, embed, inner = parts(config, weights)
    assert inner[:4] == (STEPS, LR, False, "per_shot")
    episode, (support, labels, query, _) = task(1)
    features, logits = compiled(embed_and_adapt, embed=embed, inner=inner)(learned, frozen, episode)
    s = oracle.tensors(weights)
    np.testing.assert_allclose(features, network(s, support).detach().numpy(), rtol=1e-8, atol=1e-8)
    theirs = oracle.query_logits(s, network, support, labels, query, STEPS, LR, SHOT)
    np.testing.assert_allclose(logits, theirs.detach().numpy(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_features_and_adapted_query_logits_of_resnet12(float64, norm):
    check_features_and_logits(make_config(norm=norm), dicts(), functools.partial(oracle.resnet12, norm=norm))


def test_features_and_adapted_query_logits_of_resnet18(float64):
    """With TensorFlow 1's resize, to fewer pixels than the preset's 224."""
    config = make_config("tensorflow,resnet18", resize=41)
    assert miniimagenet.get_config("tensorflow,resnet18").backbone.resize == 224
    check_features_and_logits(config, dicts("resnet18"), functools.partial(oracle.resnet18, size=41))


def two_tasks(seed):
    """A meta-batch, as both take it."""
    (first, theirs), (second, theirs_too) = task(seed), task(seed + 100)
    return jax.tree.map(lambda *parts: jnp.stack(parts), first, second), [theirs, theirs_too]


def ours_as_dicts(learned, params):
    """This project's trees as the implementation's dicts, as far as they are learned."""
    found = load_reference_weights(dicts())
    trees = jax.tree.map(np.asarray, {"params": params, "ss": learned["ss"], "head": learned["head"]})
    return {kind: arrays for kind, arrays in to_dicts(found._replace(**trees)).items() if kind != "weights"}


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_loss_and_second_order_gradients(float64, on_cpu, norm):
    """Φ2 counts with layer norm alone; batch norm cancels it, so that its gradient is noise."""
    learned, frozen, embed, inner = parts(make_config(norm=norm), dicts())
    batch, theirs = two_tasks(3)
    grads, (loss, _) = compiled(meta.gradients, embed=embed, inner=inner)(learned, frozen, batch)
    s = oracle.tensors(dicts())
    expected = oracle.meta_loss(s, functools.partial(oracle.resnet12, norm=norm), theirs, STEPS, LR, SHOT)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-8)
    found = ours_as_dicts(grads, jax.tree.map(jnp.zeros_like, frozen.params))
    assert {kind: len(arrays) for kind, arrays in found.items()} == {"ss_weights": 24, "fc_weights": 2}
    for kind, arrays in found.items():
        for key, array in arrays.items():
            wanted = s[kind][key].grad.numpy()
            np.testing.assert_allclose(array, wanted, rtol=1e-7, atol=1e-8, err_msg=key)
            is_cancelled = norm == "batch" and "_bias" in key
            assert np.abs(array).max() < 1e-9 if is_cancelled else np.abs(array).max() > 1e-6, key


def test_the_gradients_are_not_those_of_first_order(float64):
    learned, frozen, embed, inner = parts(make_config(), dicts())
    batch, _ = two_tasks(3)
    second, _ = compiled(meta.gradients, embed=embed, inner=inner)(learned, frozen, batch)
    first, _ = compiled(meta.gradients, embed=embed, inner=inner._replace(first_order=True))(learned, frozen, batch)
    scale = [grads["ss"]["block1"]["conv1"]["scale"] for grads in (first, second)]
    assert not np.allclose(*scale, rtol=1e-3)


def train_three_steps(config, parts, network):
    """Three meta-batches of both: (this project's state, its learned groups as dicts, the oracle's weights)."""
    learned, frozen, embed, inner = parts
    optimizer = build.meta_optimizer(config.meta)
    ours = meta.init_state(learned, frozen.batch_stats, optimizer)
    find = compiled(meta.gradients, embed=embed, inner=inner)
    apply = jax.jit(functools.partial(meta.apply_gradients, optimizer=optimizer))
    s, adam = oracle.tensors(dicts()), Adam()
    flat = {f"{kind}.{key}": value for kind in ("ss_weights", "fc_weights") for key, value in s[kind].items()}
    for seed in (4, 5, 6):
        batch, theirs = two_tasks(seed)
        grads, (loss, result) = find(ours.learned, frozen, batch)
        ours, _ = apply(ours, grads, loss, result.batch_stats)
        oracle.meta_loss(s, network, theirs, STEPS, LR, SHOT).backward()
        adam.update(flat, dict.fromkeys(flat, 1e-3))
    convs = jax.tree.map(jnp.asarray, load_reference_weights(dicts()).params)  # without the paper's norms
    return ours, ours_as_dicts(ours.learned, convs), s


def check_same(found, s, *, shifts):
    """All learned parameters agree and have moved; `shifts`: the biases too, which batch statistics cancel."""
    for kind, arrays in found.items():
        for key, array in arrays.items():
            if shifts or "_bias" not in key:
                wanted = s[kind][key].detach().numpy()
                np.testing.assert_allclose(array, wanted, rtol=1e-8, atol=1e-8, err_msg=key)
                assert np.abs(array - dicts()[kind][key]).max() > 1e-3, key


def test_three_optimiser_steps(float64):
    config = make_config()
    made = parts(config, dicts())
    ours, found, s = train_three_steps(config, made, oracle.resnet12)
    check_same(found, s, shifts=False)
    _, frozen, embed, inner = made
    episode, (support, *_) = task(7)  # the shifts by their effect: none under batch statistics
    features, _ = compiled(embed_and_adapt, embed=embed, inner=inner)(ours.learned, frozen, episode)
    np.testing.assert_allclose(features, oracle.resnet12(s, support).detach().numpy(), rtol=1e-8, atol=1e-8)


def evaluate_one(config, model, pixels):
    """Query logits [steps + 1, N Q, N] of one task of stored images, N rows of 1 + Q images each."""
    protocol = build.protocol(config)._replace(query=pixels.shape[1] - 1, num_tasks=1)
    order = np.arange(WAY * pixels.shape[1]).reshape(1, WAY, -1)
    tasks = evaluation.Tasks(order[:, :, :1], order[:, :, 1:])
    none = ClassTable(np.zeros((0, 0), np.int32), np.zeros(0, np.int32))
    flat = pixels.reshape(-1, *pixels.shape[2:])
    kept = {"tasks": tasks, "every_step": config.evaluate.every_step, "outcome": lambda logits, labels: logits}
    return evaluation.evaluate_tasks(model, flat, none, protocol, **kept)[0]


def test_evaluation_doubles_the_support_set_and_keeps_every_step():
    """One query image a class; the loss of 2N images still divided by K; 100 steps; float32 to 1e-4."""
    config = make_config()
    single = jax.tree.map(lambda array: array.astype(np.float32), dicts())
    learned, frozen, _, _ = parts(config, single)
    pixels = np.random.default_rng(8).integers(0, 256, (WAY, 2, SIDE, SIDE, 3), np.uint8)
    assert config.evaluate.query == 1
    ours = evaluate_one(config, evaluation.Model(build.embedding(config), learned, frozen), pixels)
    assert ours.shape == (101, WAY, WAY)
    images = torch.from_numpy(pixels / 255)
    support, query = torch.cat([images[:, 0], images[:, 0].flip(2)]), images[:, 1]
    labels = torch.arange(WAY).repeat(2)
    s = oracle.tensors(dicts())
    for steps in (1, 10, 100):
        theirs = oracle.query_logits(s, oracle.resnet12, support, labels, query, steps, LR, 1)
        np.testing.assert_allclose(ours[steps], theirs.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_three_pretraining_steps_of_tensorflow(float64):
    """A linear classifier, mean cross-entropy, batch statistics, Adam with its eps before the bias correction."""
    config, classes = make_config(dropout=0.0), 7
    group, found = config.pretrain, load_reference_weights(dicts())
    classifier = pretrain.Classifier(classes, group.hidden, uniform=group.classifier_init == "uniform")
    head = classifier.init(jax.random.key(0), jnp.zeros((1, found.head["kernel"].shape[0])))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), {"backbone": found.params, "classifier": head})
    optimizer = build.optimizer(group, group.lr)
    backbone = build.backbone(config.backbone)
    stats = pretrain.init_backbone(jax.random.key(0), backbone, (SIDE, SIDE, 3))["batch_stats"]
    state = pretrain.PretrainState(jnp.int32(0), params, stats, optimizer.init(params))
    options = {"backbone": backbone, "classifier": classifier, "optimizer": optimizer}
    step = jax.jit(functools.partial(pretrain.train_step, batch_statistics=group.batch_norm, **options))
    s, adam = oracle.tensors(dicts()), Adam()
    for key, value in s["ss_weights"].items():  # Θ alone; batch statistics cancel the biases
        s["ss_weights"][key] = torch.zeros_like(value) if "_bias" in key else torch.ones_like(value)
    kernels = {key: value for key, value in s["weights"].items() if "_conv" in key}
    output = {name: torch.tensor(np.asarray(params["classifier"]["output"][name])) for name in ("kernel", "bias")}
    trained = {name: value.requires_grad_() for name, value in (kernels | output).items()}
    rng = np.random.default_rng(13)
    for _ in range(3):
        images, labels = rng.normal(size=(8, SIDE, SIDE, 3)), rng.integers(0, classes, 8)
        state, metrics = step(state, jnp.asarray(images), jnp.asarray(labels), jax.random.key(0))
        logits = oracle.resnet12(s, torch.from_numpy(images)) @ output["kernel"] + output["bias"]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        adam.update(trained, dict.fromkeys(trained, 1e-3))
        np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-8)
    ours = to_dicts(found._replace(params=jax.tree.map(np.asarray, state.params["backbone"])))["weights"]
    ours |= state.params["classifier"]["output"]
    for key, value in trained.items():
        np.testing.assert_allclose(ours[key], value.detach().numpy(), rtol=1e-8, atol=1e-8, err_msg=key)
    assert len(kernels) == 16


NORMS = ("mean", "var", "scale", "offset")


@pytest.fixture
def paper():
    """(config, learned groups, frozen rest, embedding, inner loop, the oracle's norms) of the preset `paper`."""
    config = make_config("paper,1shot")
    learned, frozen, embed, inner = parts(config, dicts())
    rng = np.random.default_rng(9)
    params, stats, norms = dict(frozen.params), {}, {}
    for block, layers in frozen.params.items():
        params[block], stats[block] = dict(layers), {}
        for i in (1, 2, 3):
            channels = layers[f"conv{i}"]["bias"].shape[0]
            low, high = (-0.1, 0.5, 0.5, -0.1), (0.1, 2.0, 1.5, 0.1)
            mean, var, scale, offset = (rng.uniform(a, b, channels) for a, b in zip(low, high, strict=True))
            params[block][f"norm{i}"] = {"scale": jnp.asarray(scale), "bias": jnp.asarray(offset)}
            stats[block][f"norm{i}"] = {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}
            tensors = (torch.from_numpy(array) for array in (mean, var, scale, offset))
            norms[f"{block}_conv{i}"] = dict(zip(NORMS, tensors, strict=True))
    return config, learned, meta.Frozen(params, stats), embed, inner, norms


def test_features_and_adapted_query_logits_of_paper(float64, paper):
    _, learned, frozen, embed, inner, norms = paper
    assert embed.batch_statistics == "running" and inner[:4] == (STEPS, LR, False, "per_shot")
    episode, (support, labels, query, _) = task(1)
    features, logits = compiled(embed_and_adapt, embed=embed, inner=inner)(learned, frozen, episode)
    s, network = oracle.tensors(dicts()), functools.partial(oracle.resnet12, norms=norms)
    np.testing.assert_allclose(features, network(s, support).detach().numpy(), rtol=1e-8, atol=1e-8)
    theirs = oracle.query_logits(s, network, support, labels, query, STEPS, LR, SHOT)
    np.testing.assert_allclose(logits, theirs.detach().numpy(), rtol=1e-8, atol=1e-8)


def test_paper_uses_running_averages_and_learns_scales_shifts_and_head_alone(float64, paper):
    config, learned, frozen, embed, inner, norms = paper
    batch, theirs = two_tasks(10)
    network = functools.partial(oracle.resnet12, norms=norms)
    run = compiled(meta.gradients, embed=embed, inner=inner)
    grads, (loss, result) = run(learned, frozen, batch)
    s = oracle.tensors(dicts())
    expected = oracle.meta_loss(s, network, theirs, STEPS, LR, SHOT)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-8)
    convs = jax.tree.map(jnp.zeros_like, load_reference_weights(dicts()).params)
    for kind, arrays in ours_as_dicts(grads, convs).items():
        for key, array in arrays.items():
            wanted = s[kind][key].grad.numpy()
            np.testing.assert_allclose(array, wanted, rtol=1e-7, atol=1e-8, err_msg=key)
            assert np.abs(array).max() > 1e-6, key
    jax.tree.map(np.testing.assert_array_equal, result.batch_stats, frozen.batch_stats)
    assert config.hard_tasks.enabled
    assert (config.hard_tasks.round, config.hard_tasks.extra) == (10, 10)


def test_three_optimiser_steps_of_paper(float64, paper):
    """Running averages cancel nothing: every scale, shift and the head agree after three updates of Adam."""
    config, learned, frozen, embed, inner, norms = paper
    made = (learned, frozen, embed, inner)
    ours, found, s = train_three_steps(config, made, functools.partial(oracle.resnet12, norms=norms))
    assert {kind: len(arrays) for kind, arrays in found.items()} == {"ss_weights": 24, "fc_weights": 2}
    check_same(found, s, shifts=True)
    jax.tree.map(np.testing.assert_array_equal, ours.batch_stats, frozen.batch_stats)

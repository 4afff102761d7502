"""The preset `pytorch` against an independent PyTorch writing of that implementation, from arbitrary weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_formats as formats
from mtl_jax.configs import miniimagenet

torch = pytest.importorskip("torch")

import oracle_pytorch as oracle  # noqa: E402

from mtl_jax import evaluation, load_reference_weights, meta, pretrain  # noqa: E402
from mtl_jax.config import build  # noqa: E402
from mtl_jax.reference_weights.pytorch import to_state_dict  # noqa: E402
from mtl_jax.types import ClassTable, Episode  # noqa: E402
from mtl_jax.workdir.named_arrays import flatten  # noqa: E402

SIDE, WAY, SHOT, QUERY, WIDTH = 20, 5, 2, 3, 0.05
CANCELLED = "encoder.conv1.mtl_bias"  # by batch norm, in training mode: its gradient is rounding noise


@pytest.fixture(scope="module")
def config():
    """The preset as it is but for the channels."""
    config = miniimagenet.get_config("pytorch,1shot")
    config.backbone.width = WIDTH
    return config


@pytest.fixture(scope="module")
def state():
    """Weights in the implementation's key names."""
    return formats.state_dict(np.random.default_rng(0))


def as_they_are(images):
    """No preparation: the images are floats already."""
    return images


def images(rng, each):
    """[N, each, H, W, C], as different between classes as within them."""
    return rng.normal(size=(WAY, each, SIDE, SIDE, 3)) + rng.normal(size=(WAY, 1, 1, 1, 3))


def task(seed):
    """One task as (Episode, class-major) and as the implementation has it: image-major, classes interleaved."""
    rng = np.random.default_rng(seed)
    support, query = images(rng, SHOT), images(rng, QUERY)
    ours, theirs = [], []
    for part in (support, query):
        each = part.shape[1]
        ours += [part.reshape(-1, SIDE, SIDE, 3), np.repeat(np.arange(WAY), each)]
        interleaved = np.ascontiguousarray(part.swapaxes(0, 1).reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2))
        theirs += [torch.from_numpy(interleaved), torch.arange(WAY).repeat(each)]
    return Episode(*map(jnp.asarray, ours)), theirs


def class_major(rows, each):
    """Rows of a set of the implementation's, in class-major order."""
    return rows.reshape(each, WAY, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


@functools.cache
def compiled(function, **options):
    """A function of `meta` with its options, compiled once for all tests."""
    return jax.jit(functools.partial(function, **options))


def embed_and_adapt(learned, frozen, episode, *, embed, inner):
    """(features of the support set, adapted query logits)."""
    features, _ = embed(meta.backbone_params(learned, frozen), frozen.batch_stats, episode.support)
    return features, meta.episode_logits(learned, frozen, episode, embed=embed, inner=inner)[0]


def parts(config, state):
    """(learned groups, frozen rest, embedding of prepared images, inner loop), in the dtype of the weights."""
    found = load_reference_weights({"params": state})
    as_jax = jax.tree.map(jnp.asarray, found._asdict() | {"backbone": 0})
    chosen = build.learned(jax.random.key(0), config, as_jax["params"], 32)
    learned = {"head": as_jax["head"], "ss": as_jax["ss"], "params": chosen["params"]}
    assert jax.tree.structure(chosen) == jax.tree.structure(learned)
    embed = build.embedding(config)._replace(prepare=as_they_are)
    return learned, meta.Frozen(as_jax["params"], as_jax["batch_stats"]), embed, build.inner(config.inner)


@pytest.mark.parametrize(("mode", "training"), [("running", False), ("train", True)])
def test_features_and_adapted_query_logits(float64, config, state, mode, training):
    learned, frozen, embed, inner = parts(config, state)
    assert inner[:3] == (100, 0.01, True)
    episode, (support, labels, query, _) = task(2)
    run = compiled(embed_and_adapt, embed=embed._replace(batch_statistics=mode), inner=inner)
    features, logits = run(learned, frozen, episode)
    s = oracle.tensors(state)
    theirs = oracle.query_logits(s, support, labels, query, 100, 0.01, training).detach().numpy()
    np.testing.assert_allclose(logits, class_major(theirs, QUERY), rtol=1e-8, atol=1e-8)
    theirs = oracle.features(s, support, training).detach().numpy()
    np.testing.assert_allclose(features, class_major(theirs, SHOT), rtol=1e-8, atol=1e-8)


def ours_by_their_keys(learned, frozen, stats):
    """This project's trees as the implementation's state dict."""
    params = meta.overlay(frozen.params, learned["params"])
    found = load_reference_weights({"params": STATE_SHAPES})
    trees = {"params": params, "batch_stats": stats, "ss": learned["ss"], "head": learned["head"]}
    return to_state_dict(found._replace(**jax.tree.map(np.asarray, trees)))["params"]


STATE_SHAPES = formats.state_dict(np.random.default_rng(9))


def test_loss_gradients_and_running_averages_of_a_step(float64, on_cpu, config, state):
    learned, frozen, embed, inner = parts(config, state)
    episode, theirs = task(3)
    batch = jax.tree.map(lambda a: a[None], episode)
    grads, (loss, result) = compiled(meta.gradients, embed=embed, inner=inner)(learned, frozen, batch)
    s = oracle.tensors(state)
    expected = oracle.query_loss(s, *theirs, 100, 0.01)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-8)
    zeros = frozen._replace(params=jax.tree.map(jnp.zeros_like, frozen.params))
    found = ours_by_their_keys(grads, zeros, result.batch_stats)
    keys = oracle.learned_keys(s)
    assert len(keys) == 28 * 2 + 28 + 1 + 2  # batch norms; convolutions; the stem's shift; the head
    for key in keys:
        np.testing.assert_allclose(found[key], s[key].grad.numpy(), rtol=1e-7, atol=1e-8, err_msg=key)
        if key != CANCELLED:
            assert np.abs(found[key]).max() > 1e-6, key
    averages = [key for key in s if "running_" in key]
    for key in averages:
        np.testing.assert_allclose(found[key], s[key].numpy(), rtol=1e-8, atol=1e-8, err_msg=key)
        assert not np.allclose(found[key], state[key], rtol=1e-3), key


def test_three_optimiser_steps(float64, config, state):
    learned, frozen, embed, inner = parts(config, state)
    optimizer = build.meta_optimizer(config.meta)
    ours = meta.init_state(learned, frozen.batch_stats, optimizer)
    find = compiled(meta.gradients, embed=embed, inner=inner)
    apply = jax.jit(functools.partial(meta.apply_gradients, optimizer=optimizer))
    s, adam = oracle.tensors(state), oracle.Adam()
    rates = {key: 1e-3 if key.startswith("base_learner") else 1e-4 for key in oracle.learned_keys(s)}
    for seed in (4, 5, 6):
        episode, theirs = task(seed)
        batch, frozen = jax.tree.map(lambda a: a[None], episode), frozen._replace(batch_stats=ours.batch_stats)
        grads, (loss, result) = find(ours.learned, frozen, batch)
        ours, _ = apply(ours, grads, loss, result.batch_stats)
        oracle.query_loss(s, *theirs, 100, 0.01).backward()
        adam.update(s, rates)
    found = ours_by_their_keys(ours.learned, frozen, ours.batch_stats)
    for key in s.keys() - {CANCELLED, "base_learner.vars.0", "base_learner.vars.1"}:
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_allclose(found[key], s[key].detach().numpy(), rtol=1e-8, atol=1e-8, err_msg=key)
    moved = np.abs(found["encoder.layer1.0.conv1.mtl_weight"] - state["encoder.layer1.0.conv1.mtl_weight"])
    assert moved.max() > 1e-4
    episode, (support, *_) = task(7)
    # The shift by its effect: none in training mode.
    run = compiled(embed_and_adapt, embed=embed, inner=inner)
    features, _ = run(ours.learned, frozen._replace(batch_stats=ours.batch_stats), episode)
    expected = oracle.features(s, support, True).detach().numpy()
    np.testing.assert_allclose(features, class_major(expected, SHOT), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("mode", "training"), [("running", False), ("train", True)])
def test_in_float32_a_mapping_gives_features_and_logits_to_1e_4(config, state, mode, training):
    """A `.pth`-style mapping in the implementation's own key names, in evaluation and in training mode."""
    single = {key: np.asarray(value, np.float32 if value.ndim else None) for key, value in state.items()}
    learned, frozen, embed, inner = parts(config, single)
    episode, (support, labels, query, _) = task(8)
    run = compiled(embed_and_adapt, embed=embed._replace(batch_statistics=mode), inner=inner)
    features, logits = run(learned, frozen, episode)
    assert features.dtype == logits.dtype == np.float32
    s = oracle.tensors(state)
    theirs = oracle.query_logits(s, support, labels, query, 100, 0.01, training).detach().numpy()
    np.testing.assert_allclose(logits, class_major(theirs, QUERY), rtol=1e-4, atol=1e-4)
    theirs = oracle.features(s, support, training).detach().numpy()
    np.testing.assert_allclose(features, class_major(theirs, SHOT), rtol=1e-4, atol=1e-4)


def test_evaluation_from_stored_images(config, state):
    """uint8 images of 92 pixels through crop and normalisation, running averages, all images embedded once."""
    rng = np.random.default_rng(10)
    pixels = rng.integers(0, 256, (WAY * 4, 92, 92, 3), np.uint8)
    single = {key: np.asarray(value, np.float32 if value.ndim else None) for key, value in state.items()}
    learned, frozen, _, _ = parts(config, single)
    model = evaluation.Model(build.embedding(config), learned, frozen)
    protocol = build.protocol(config)._replace(query=3, num_tasks=1)
    order = np.arange(WAY * 4).reshape(1, WAY, 4)
    tasks = evaluation.Tasks(order[:, :, :1], order[:, :, 1:])
    none = ClassTable(np.zeros((0, 0), np.int32), np.zeros(0, np.int32))
    ours = evaluation.evaluate_tasks(
        model, pixels, none, protocol, tasks=tasks, outcome=lambda logits, labels: logits
    )[0]  # fmt: skip
    mean, std = np.array([125.3, 123.0, 113.9]) / 255, np.array([63.0, 62.1, 66.7]) / 255
    cropped = torch.from_numpy(((pixels[:, 6:86, 6:86] / 255 - mean) / std).transpose(0, 3, 1, 2))
    support, query = cropped[order[0, :, 0]], cropped[order[0, :, 1:].ravel()]
    theirs = oracle.query_logits(oracle.tensors(state), support, torch.arange(WAY), query, 100, 0.01, False)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_the_learned_groups_are_all_that_changes(config):
    """Φ on every convolution, shifts in the stem alone, every affine parameter of batch norm, θ."""
    found = load_reference_weights({"params": STATE_SHAPES})
    names = flatten({"ss": found.ss})
    assert sum(name.endswith("/scale") for name in names) == 28
    assert [name for name in names if name.endswith("/shift")] == ["ss/stem/conv/shift"]


def test_three_pretraining_steps(float64, config):
    """Classifier with a hidden layer, mean cross-entropy, Nesterov SGD with decay on all parameters."""
    group, classes = config.pretrain, 7
    found = load_reference_weights(formats.state_dict(np.random.default_rng(11), meta=False))
    backbone, stats = jax.tree.map(jnp.asarray, (found.params, found.batch_stats))
    classifier = pretrain.Classifier(classes, group.hidden, uniform=group.classifier_init == "uniform")
    head = classifier.init(jax.random.key(0), jnp.zeros((1, 32)))["params"]
    head = jax.tree.map(lambda leaf: leaf.astype(float), head)
    assert head["hidden"]["kernel"].shape == (32, 1000)
    optimizer = build.optimizer(group, group.lr)
    params = {"backbone": backbone, "classifier": head}
    state = pretrain.PretrainState(jnp.int32(0), params, stats, optimizer.init(params))
    options = {"backbone": build.backbone(config.backbone), "classifier": classifier, "optimizer": optimizer}
    step = jax.jit(functools.partial(pretrain.train_step, batch_statistics=group.batch_norm, **options))
    s = {key: torch.tensor(value, dtype=torch.float64) for key, value in to_state_dict(found)["params"].items()}
    for name, layer in head.items():
        s |= {
            f"{name}.weight": torch.tensor(np.asarray(layer["kernel"].T)),
            f"{name}.bias": torch.tensor(np.asarray(layer["bias"])),
        }
    trained = [key for key in s if "running_" not in key and "num_batches" not in key]
    for key in trained:
        s[key].requires_grad_()
    sgd = torch.optim.SGD([s[key] for key in trained], lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rng = np.random.default_rng(12)
    for _ in range(3):
        images, labels = rng.normal(size=(8, SIDE, SIDE, 3)), rng.integers(0, classes, 8)
        state, metrics = step(state, jnp.asarray(images), jnp.asarray(labels), jax.random.key(0))
        features = oracle.features(s, torch.from_numpy(images.transpose(0, 3, 1, 2)), True, prefix="")
        hidden = torch.relu(features @ s["hidden.weight"].T + s["hidden.bias"])
        logits = hidden @ s["output.weight"].T + s["output.bias"]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-8)
    ours = found._replace(
        **jax.tree.map(np.asarray, {"params": state.params["backbone"], "batch_stats": state.batch_stats})
    )
    for key, value in to_state_dict(ours)["params"].items():
        if "num_batches" not in key and key != "conv1.bias":  # which batch norm cancels
            np.testing.assert_allclose(value, s[key].detach().numpy(), rtol=1e-8, atol=1e-8, err_msg=key)
    for name, layer in state.params["classifier"].items():
        np.testing.assert_allclose(layer["kernel"].T, s[f"{name}.weight"].detach().numpy(), rtol=1e-8, atol=1e-8)

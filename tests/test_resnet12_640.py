"""resnet12_640 against an independent PyTorch writing, and its weight files in every published form."""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_formats as formats
from mtl_jax.configs import fc100

import mtl_jax
from mtl_jax import reference_weights
from mtl_jax.config import build, rules
from mtl_jax.errors import CheckpointError
from mtl_jax.evaluate import network
from mtl_jax.launch import program
from mtl_jax.reference_weights import __main__ as reference_weights_main
from mtl_jax.reference_weights.pytorch import to_state_dict

torch = pytest.importorskip("torch")

import oracle_resnet12 as oracle  # noqa: E402

WIDTH = 0.05


def images(side, count=3):
    return np.random.default_rng(1).normal(size=(count, side, side, 3))


def theirs(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


@functools.cache
def compiled(mode, dtype):
    """The project's own module, as a config of the network makes it."""
    config = fc100.get_config("resnet12_640,1shot")
    config.backbone.width = WIDTH
    module = build.backbone(config.backbone)
    return jax.jit(lambda variables, x: module.apply(variables, x.astype(dtype), batch_statistics=mode,
                                                     mutable=["batch_stats"]))  # fmt: skip


def variables(weights, dtype):
    found = {"params": weights.params, "batch_stats": weights.batch_stats}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), found)


@pytest.fixture(scope="module")
def state():
    """RFS' file: state dict with a classifier of 7 classes."""
    return formats.resnet12(np.random.default_rng(0), classes=7)


@pytest.mark.parametrize("side", [32, 84])
def test_features_by_running_averages_are_pytorchs(float64, state, side):
    x = images(side)
    wanted = oracle.features(oracle.tensors(state), theirs(x), False).detach()
    found, _ = compiled("running", float)(variables(mtl_jax.load_reference_weights(state), float), x)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_features_gradients_and_averages_of_training_are_pytorchs(float64, state):
    """At half of 84 pixels, where maps of 21 and 5 pixels are pooled, as there."""
    x, weights, s = images(42), mtl_jax.load_reference_weights(state), oracle.tensors(state)
    wanted = oracle.features(s, theirs(x), True)
    (wanted**2).sum().backward()

    @functools.partial(jax.value_and_grad, has_aux=True)
    def score(params, stats):
        features, moved = compiled("train", float)({"params": params, "batch_stats": stats}, x)
        return (features**2).sum(), (features, moved["batch_stats"])

    start = variables(weights, float)
    (_, (features, moved)), grads = score(start["params"], start["batch_stats"])
    np.testing.assert_allclose(features, wanted.detach(), rtol=1e-9, atol=1e-9)
    trees = jax.tree.map(np.asarray, {"params": grads, "batch_stats": moved})
    found = to_state_dict(weights._replace(**trees, head=None))["model"]
    for key, value in s.items():
        if "classifier" in key:
            continue
        expected = value if value.grad is None else value.grad
        largest = float(expected.abs().max())
        np.testing.assert_allclose(found[key], expected, rtol=1e-8, atol=1e-9 * largest, err_msg=key)
        assert largest > 0


def prefixed(state, prefix, head=""):
    """Names as another program's: a prefix before the network's, another name for the classifier's."""
    return {f"{prefix}{key}" if "classifier" not in key else key.replace("classifier.", head): value
            for key, value in state.items() if head or "classifier" not in key}  # fmt: skip


def unnumbered(state):
    return {key.replace(".0.", ".", 1) if key.startswith("layer") else key: value for key, value in state.items()}


ATTENTION = {"slf_attn.w_qs.weight": np.ones((4, 4)), "slf_attn.fc.weight": np.ones((4, 4)),
             "slf_attn.layer_norm.weight": np.ones(4)}  # fmt: skip
OPTIONS = argparse.Namespace(model="resnet12", lr_decay_epochs=[60, 80])
DIALECTS = {
    "RFS": lambda s: {"epoch": 90, "model": s},
    "RFS, last": lambda s: {"opt": OPTIONS, "model": s},
    "FEAT, pre-training": lambda s: {"params": prefixed(s, "encoder.", "fc.")},
    "FEAT": lambda s: {"params": prefixed(s, "encoder.") | ATTENTION},
    "FEAT, DataParallel": lambda s: {"params": prefixed(s, "encoder.module.") | ATTENTION},
    "FEAT, checkpoint": lambda s: {
        "epoch": 3, "args": OPTIONS, "state_dict": prefixed(s, "encoder.", "fc."), "optimizer": {"state": {}}
    },
    "DeepEMD, pre-training": lambda s: {"params": prefixed(s, "")},
    "DeepEMD": lambda s: {"params": prefixed(s, "module.encoder.")},
    "MetaOptNet": lambda s: {"embedding": prefixed(s, "module."), "head": {"scale": np.ones(1)}},
    "Meta-Baseline": lambda s: {
        "model": "classifier", "model_args": {"encoder": "resnet12-wide"},
        "model_sd": prefixed(unnumbered(s), "encoder.", "classifier.linear."),
    },
    "a trainer": lambda s: {"state_dict": prefixed(s, "module.backbone."), "epoch": 9},
    "bare": dict,
}  # fmt: skip


def as_tensors(value):
    if isinstance(value, dict):
        return {key: as_tensors(inner) for key, inner in value.items()}
    return torch.as_tensor(value) if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize(("dialect", "suffix"), [*dict.fromkeys(DIALECTS, ".pth").items(), ("RFS", ".pt"),
                                                 ("FEAT, checkpoint", ".pth.tar")])  # fmt: skip
def test_features_of_every_published_form_are_pytorchs(float64, state, tmp_path, dialect, suffix):
    path = tmp_path / f"file{suffix}"
    torch.save(as_tensors(DIALECTS[dialect](state)), path)
    weights = mtl_jax.load_reference_weights(path)
    assert (weights.backbone, weights.width, weights.ss) == ("resnet12_640", WIDTH, None)
    has_head = dialect.startswith(("RFS", "FEAT, pre", "FEAT, check", "Meta-", "bare"))
    assert (weights.head is not None) == has_head
    if has_head:
        np.testing.assert_array_equal(weights.head["kernel"], state["classifier.weight"].T)
        np.testing.assert_array_equal(weights.head["bias"], state["classifier.bias"])
    x = images(32)
    wanted = oracle.features(oracle.tensors(state), theirs(x), False).detach()
    for dtype, tolerance in ((np.float64, 1e-8), (np.float32, 1e-4)):
        found, _ = compiled("running", dtype)(variables(weights, dtype), x)
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_rfs_can_load_what_is_written(state, tmp_path):
    """Names, shapes and numbers; its loading is strict and wants the counters as well."""
    weights = mtl_jax.load_reference_weights(state)
    reference_weights.export_pth(weights, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == state.keys()
    for key, value in state.items():
        if "num_batches" not in key:
            np.testing.assert_array_equal(back[key], value, err_msg=key)
    without = to_state_dict(weights._replace(head=None))["model"]
    assert without.keys() == {key for key in state if "classifier" not in key}


def test_scale_and_shift_is_in_the_weights_that_are_written(float64, state):
    weights = mtl_jax.load_reference_weights(state)
    ss = jax.tree.map(lambda leaf: np.linspace(0.5, 2, leaf.size).reshape(leaf.shape),
                      mtl_jax.init_scale_shift(weights.params))  # fmt: skip
    written = to_state_dict(weights._replace(ss=ss))["model"]
    merged = weights._replace(params=mtl_jax.apply_scale_shift(weights.params, ss))
    found, _ = compiled("running", float)(variables(merged, float), images(32))
    wanted = oracle.features(oracle.tensors(written), theirs(images(32)), False).detach()
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)


def test_everything_that_is_wrong_is_listed(state):
    wrong = {f"encoder.{key}": value for key, value in state.items() if "classifier" not in key}
    wrong["encoder.layer9.0.conv1.weight"] = wrong.pop("encoder.layer1.0.conv1.weight")
    wrong["encoder.layer2.0.se.fc.0.weight"] = np.ones((2, 2))
    wrong["encoder.layer3.0.bn1.bias"] = np.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        mtl_jax.load_reference_weights({"params": wrong})
    for part in (
        "missing encoder.layer1.0.conv1.weight", "surplus encoder.layer9.0.conv1.weight",
        "surplus encoder.layer2.0.se.fc.0.weight", "encoder.layer3.0.bn1.bias is float64[7]", "expected float [16]",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_safetensors_in_a_published_form_are_read(state, tmp_path):
    arrays = {key: value for key, value in prefixed(state, "encoder.", "fc.").items() if "num_batches" not in key}
    reference_weights.file_formats.write_safetensors(tmp_path / "a.safetensors", arrays, {})
    found = mtl_jax.load_reference_weights(tmp_path / "a.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found[1:], mtl_jax.load_reference_weights(state)[1:])


def test_training_starts_from_a_file_and_the_program_converts_it(state, tmp_path, capsys):
    path, out = tmp_path / "rfs.pt", tmp_path / "ours.safetensors"
    torch.save(as_tensors(DIALECTS["RFS"](state)), path)
    config = fc100.get_config("resnet12_640,1shot")
    config.backbone.width = WIDTH
    assert rules.is_weights(str(path))
    params, stats = network.backbone(config, str(path))
    kernel = np.float32(state["layer4.0.downsample.0.weight"]).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["block4"]["shortcut"]["kernel"], kernel)
    mean = np.float32(state["layer1.0.downsample.1.running_mean"])
    np.testing.assert_array_equal(stats["block1"]["shortcut_norm"]["mean"], mean)
    with pytest.raises(CheckpointError, match=r"head is for 7 classes.*training classes, train with .*pretrain\.init"):
        network.model(config, str(path))
    assert program.run(reference_weights_main.main, ["", "convert", str(path), str(out)]) == 0
    assert "backbone: resnet12_640" in capsys.readouterr().out
    assert program.run(reference_weights_main.main, ["", "convert", str(out), str(tmp_path / "again.pth")]) == 0
    again = mtl_jax.load_reference_weights(tmp_path / "again.pth")
    jax.tree.map(np.testing.assert_array_equal, again[1:], mtl_jax.load_reference_weights(path)[1:])

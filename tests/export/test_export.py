"""Folding and exporting: the same features without SS, batch norm or this package; damaged files are refused."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_runs import tiny_run  # noqa: F401, a fixture

import mtl_jax
from mtl_jax.errors import CheckpointError, MtlError
from mtl_jax.export import __main__ as export_main
from mtl_jax.export import embedding, stablehlo
from mtl_jax.reference_weights import Network, networks
from mtl_jax.vision_vit import Form, ViT

SIZES = {
    "conv4": 32, "resnet12": 32, "resnet12_640": 32, "resnet18": 32, "resnet25": 28, "imagenet_resnet18": 32,
    "imagenet_resnet50": 32, "efficientnet_lite0": 32, "mobilenet_v2": 32,
}  # fmt: skip


def random_tree(tree, rng):
    """Arrays for a tree of shapes: norms' scales of either sign, variances positive, kernels that keep the scale."""

    def draw(path, leaf):
        if path[-1].key == "var":
            return np.float32(rng.uniform(0.3, 2, leaf.shape))
        size = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.7
        return np.float32(rng.normal(path[-1].key == "scale", size, leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, tree)


def network(name):
    """A network as from a file, of random weights, for images of 32 x 32; name: of a backbone, or 'vit'."""
    form = Form(depth=2, width=16, heads=2, hidden=32, patch=8, grid=4)
    module = ViT(form) if name == "vit" else mtl_jax.create_backbone(name, width=0.1)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = random_tree(variables, np.random.default_rng(0))
    description = {"image_size": 32, "resize": 36, "interpolation": "bicubic", "mean": [0.4] * 3, "std": [0.3] * 3}
    return Network(module, variables["params"], variables.get("batch_stats", {}), description)


@pytest.mark.parametrize("name", ["imagenet_resnet18", "vit"])
def test_the_network_of_a_weight_file_is_exported(name, tmp_path):
    embed, file, path = network(name), tmp_path / "network.safetensors", tmp_path / "network.stablehlo"
    networks.write(embed, file)
    assert export_main.main(["export", f"--backbone={file}", f"--output={path}"]) == 0
    exported = stablehlo.load(path)
    assert (exported.fingerprint, exported.transform) == (embed.fingerprint, embed.transform)
    images = np.random.default_rng(0).integers(0, 256, (5, *embed.image_shape), np.uint8)
    expected = embed(images)
    np.testing.assert_allclose(exported(images), expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("name", "affine"), [("conv4", False), *((name, True) for name in SIZES)])
def test_folded_backbones_give_the_same_features(name, affine):
    module = mtl_jax.create_backbone(name, width=0.1, norm_scale=affine, norm_bias=affine)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, SIZES[name], SIZES[name], 3)), jnp.float32)
    variables = random_tree(jax.eval_shape(module.init, jax.random.key(0), images), rng)
    params, stats = variables["params"], variables["batch_stats"]
    ss = jax.eval_shape(mtl_jax.init_scale_shift, params)
    params = mtl_jax.apply_scale_shift(params, random_tree(ss, rng))
    plain, folded = stablehlo.fold_batch_norm(module, params, stats)
    expected = jax.jit(module.apply)({"params": params, "batch_stats": stats}, images)
    features = jax.jit(plain.apply)({"params": folded}, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(features / scale, expected / scale, atol=1e-5)
    # Nothing is left but convolutions, and each of them counts.
    leaves = {str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(folded)}
    assert leaves == {"kernel", "bias"}
    wanted = jax.eval_shape(plain.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, wanted)


def test_without_batch_norm_there_is_nothing_to_fold():
    module = mtl_jax.create_backbone("conv4", width=0.1, norm="layer")
    params = {"block1": {"conv": {"kernel": jnp.ones((3, 3, 1, 6)), "bias": jnp.ones(6)}}}
    unfolded, same = stablehlo.fold_batch_norm(module, params, {})
    assert unfolded is module and same is params


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("export") / "embedding.stablehlo"
    assert export_main.main(["export", f"--workdir={tiny_run}", f"--output={path}"]) == 0
    return path


@pytest.mark.parametrize("batch", [1, 7])
def test_a_file_gives_the_runs_features_at_any_batch_size(exported, tiny_run, batch):  # noqa: F811
    embed = embedding.load(tiny_run)
    images = np.random.default_rng(batch).integers(0, 256, (batch, *embed.image_shape), np.uint8)
    expected = embed(images)
    features = stablehlo.load(exported)(images)
    assert features.shape == expected.shape and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_it_runs_in_a_process_that_has_only_jax(exported, tiny_run, tmp_path):  # noqa: F811
    embed = embedding.load(tiny_run)
    images = np.random.default_rng(0).integers(0, 256, (4, *embed.image_shape), np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys, numpy as np
from jax import export
data = bytearray(open({str(exported)!r}, 'rb').read())
np.save({str(tmp_path / "features.npy")!r}, export.deserialize(data).call(np.load({str(tmp_path / "images.npy")!r})))
assert not [name for name in sys.modules if name.startswith(('mtl_jax', 'flax'))]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), embed(images), atol=1e-5)


def test_a_classifier_takes_it_for_a_backbone(exported, tiny_run, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (50 + i, 40, 3), np.uint8)) for i in range(4)]
    one = mtl_jax.FewShotClassifier(stablehlo.load(exported), steps=20, lr=0.1).fit(images, list("aabb"))
    other = mtl_jax.FewShotClassifier.from_workdir(tiny_run, steps=20, lr=0.1).fit(images, list("aabb"))
    np.testing.assert_allclose(one.predict_proba(images), other.predict_proba(images), atol=1e-4)
    one.save(tmp_path / "one")
    assert (
        mtl_jax.FewShotClassifier.load(tmp_path / "one", tiny_run).predict(images).tolist()
        == one.predict(images).tolist()
    )


def test_an_export_that_would_differ_is_not_written(tiny_run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(stablehlo, "norm_of", lambda conv: "no_such_norm")
    with pytest.raises(MtlError, match="not written: its features differ by"):
        stablehlo.write(embedding.load(tiny_run), tmp_path / "e.stablehlo")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_errors_of_one_line(exported, tmp_path):
    data, facts = exported.read_bytes(), stablehlo.facts_path(exported).read_text()
    path = tmp_path / "e.stablehlo"
    with pytest.raises(CheckpointError, match=r"e\.stablehlo: cannot be read"):
        stablehlo.load(path)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"e\.json: cannot be read"):
        stablehlo.load(path)
    for text, message in (("{", "damaged"), ("[]", "has no sha256"), ("3", "damaged")):
        stablehlo.facts_path(path).write_text(text)
        with pytest.raises(CheckpointError, match=rf"e\.json: {message}"):
            stablehlo.load(path)
    stablehlo.facts_path(path).write_text(facts)
    assert stablehlo.load(path).fingerprint == json.loads(facts)["fingerprint"]
    for damaged in (data[:-1], data[:1000] + bytes([data[1000] ^ 1]) + data[1001:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"e\.stablehlo: is not the file that e\.json was written for"):
            stablehlo.load(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--platforms=cpu,abacus"], "'abacus' is unknown"),
        (["--platforms=tpu"], "tested here, on cpu: add cpu"),
        (["--output=e.json"], "give another suffix"),
        (["--workdir=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(tiny_run, capsys, words, message):  # noqa: F811
    workdir = [] if any(word.startswith("--workdir") for word in words) else [f"--workdir={tiny_run}"]
    assert export_main.main(["export", *workdir, *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("meta.batch_norm", "batch", "features depend on the images beside it"),
        ("inner.adapt", "all", "so no single function gives its features"),
    ],
)
def test_what_is_no_function_of_one_image_is_not_exported(tiny_run, tmp_path, capsys, key, value, message):  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    settings = json.loads((run / "config.json").read_text())
    group, name = key.split(".")
    settings[group][name] = value
    (run / "config.json").write_text(json.dumps(settings))
    assert export_main.main(["export", f"--workdir={run}", f"--output={tmp_path / 'e.stablehlo'}"]) == 2
    err = capsys.readouterr().err
    assert message in " ".join(err.split()) and err.count("\n") == 1 and not (tmp_path / "e.stablehlo").exists()


def test_a_network_of_the_package_is_exported_by_name(tmp_path, capsys):
    path = tmp_path / "small.stablehlo"
    assert export_main.main(["export", "--backbone=fc100-conv4", f"--output={path}", "--platforms=cpu"]) == 0
    network, loaded = embedding.pretrained("fc100-conv4"), stablehlo.load(path)
    assert (loaded.facts["interpolation"], loaded.transform) == ("bilinear", network.transform)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(loaded(images), network(images), rtol=1e-4, atol=1e-5)
    assert export_main.main(["export", "--backbone=resnet", f"--output={path}"]) == 2
    assert "no bundled network is called 'resnet'" in capsys.readouterr().err

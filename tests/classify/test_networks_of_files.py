"""Photographs sorted by a network from a weight file: its preparation of images, its classifier's file, its errors."""

import csv
import pickle

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from test_classifier import stripes

from mtl_jax import FewShotClassifier, vision_vit
from mtl_jax.classify import __main__ as classify_main
from mtl_jax.errors import CheckpointError, ConfigError, DataError
from mtl_jax.reference_weights import Network, file_formats, kept_networks, load_network, mobile, networks
from mtl_jax.reference_weights.trees import leaf_shapes
from mtl_jax.workdir.named_arrays import flatten

IMAGES = {"image_size": 32, "resize": 36, "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def write_network(path, seed=0, images=IMAGES):
    """A small vision transformer with random weights, as `convert` writes it."""
    module = vision_vit.ViT(vision_vit.Form(depth=1, width=12, heads=2, hidden=24, patch=8, grid=4))
    params = jax.jit(module.init)(jax.random.key(seed), np.zeros((1, 32, 32, 3)))["params"]
    networks.write(Network(module, jax.tree.map(np.asarray, params), {}, images), path)
    return path


@pytest.fixture
def network(tmp_path):
    return write_network(tmp_path / "vit.safetensors")


def pictures(count, kind):
    return [Image.fromarray(image).convert("RGB") for image in stripes(count, kind)]


PICTURES, LABELS = [*pictures(3, 0), *pictures(3, 1)], ["a"] * 3 + ["b"] * 3


def test_photographs_are_prepared_as_the_network_says(network):
    classifier = FewShotClassifier.from_pretrained(network)
    image = PICTURES[0]
    stored = np.asarray(image.resize((36, 36), Image.Resampling.BICUBIC).crop((2, 2, 34, 34)), np.float32) / 255
    loaded = load_network(network)
    expected = loaded.module.apply({"params": loaded.params}, (stored - IMAGES["mean"])[None] / IMAGES["std"])
    classifier.fit([image, PICTURES[3]], ["a", "b"])
    np.testing.assert_allclose(classifier.support_features_[:1], expected, atol=1e-4)


def test_a_classifier_with_a_network_of_a_file_is_a_classifier_like_any_other(network, tmp_path):
    classifier = FewShotClassifier.from_pretrained(network).fit(PICTURES, LABELS)
    expected = classifier.predict_proba(PICTURES)
    by_hand = FewShotClassifier(load_network(network)).fit(PICTURES, LABELS)
    np.testing.assert_array_equal(by_hand.predict_proba(PICTURES), expected)
    assert clone(classifier).embed is classifier.embed
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(classifier)).predict_proba(PICTURES), expected)
    classifier.save(tmp_path / "saved.safetensors")
    for embed in (network, str(network), load_network(network)):
        again = FewShotClassifier.load(tmp_path / "saved.safetensors", embed)
        np.testing.assert_array_equal(again.predict_proba(PICTURES), expected)
    assert FewShotClassifier.load(tmp_path / "saved.safetensors").embed is None  # it takes features
    for other in (
        write_network(tmp_path / "b.safetensors", seed=1),
        write_network(tmp_path / "c.safetensors", images={**IMAGES, "resize": 32}),
        "imagenet-lite0",
    ):
        with pytest.raises(CheckpointError, match="give the workdir, weight file or function that it was fitted with"):
            FewShotClassifier.load(tmp_path / "saved.safetensors", other)


def test_what_is_no_network_is_said():
    with pytest.raises(CheckpointError, match=r"imagenet-lite1. \(did you mean imagenet-lite0\?\), and "):
        FewShotClassifier.from_pretrained("imagenet-lite1")
    unknown = Network(vision_vit.ViT(vision_vit.Form(1, 12, 2, 24, 8, 4)), {}, {}, {})
    with pytest.raises(ConfigError, match="does not say how its images are prepared: start a run from it"):
        FewShotClassifier(unknown).fit(PICTURES, LABELS)


@pytest.fixture
def folders(tmp_path):
    for number, (image, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
        folder = tmp_path / ("query" if number % 3 == 2 else f"support/{label}")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{label}{number}.png")
    return tmp_path


def run(folders, *words):
    return classify_main.main(["", f"--query={folders / 'query'}", f"--output={folders / 'p.csv'}", *words])


def test_the_program_takes_a_file_and_its_classifier_wants_it_again(network, folders, capsys):
    saved = folders / "saved.safetensors"
    assert run(folders, f"--support={folders / 'support'}", f"--backbone={network}", f"--save={saved}") == 0
    table = (folders / "p.csv").read_text()
    assert len(list(csv.DictReader(table.splitlines()))) == 2
    assert run(folders, f"--classifier={saved}", f"--backbone={network}") == 0
    assert (folders / "p.csv").read_text() == table
    capsys.readouterr()
    assert run(folders, f"--classifier={saved}") == 2
    assert "give its own, --workdir=DIR or --backbone=FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("no.pth", "no bundled network is called 'no.pth', and there is no such file; give fc100-conv4, "),
        ("hf-hub:me/mine", "hf-hub:me/mine: needs huggingface_hub; run: pip install 'mtl_jax[hub]'"),
        ("mine:factory", "--backbone=mine:factory goes with the run that has it: give --workdir=DIR"),
    ],
)
def test_the_program_says_what_it_cannot_take(folders, capsys, monkeypatch, backbone, message):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert run(folders, f"--support={folders / 'support'}", f"--backbone={backbone}") == 2
    assert message in capsys.readouterr().err


def test_images_over_the_bound_are_left_out(network, folders, capsys):
    Image.new("RGB", (50, 41)).save(folders / "query" / "large.png")
    words = f"--support={folders / 'support'}", f"--backbone={network}"
    assert run(folders, *words, "--max-pixels=2000", f"--save={folders / 's.safetensors'}") == 0
    assert "large.png: 50 x 41 pixels, over max_pixels, 0.002 million" in capsys.readouterr().err
    assert FewShotClassifier.load(folders / "s.safetensors").max_pixels == 2000
    assert run(folders, *words, "--max-pixels=2050") == 0
    assert "large.png" not in capsys.readouterr().err
    with pytest.raises(DataError, match=r"a0\.png: 40 x 40 pixels, over max_pixels, 0\.0001 million; replace it"):
        FewShotClassifier.from_pretrained(network, max_pixels=100).fit_folder(folders / "support")


def test_mobile_networks_are_prepared_as_they_were_published(tmp_path):
    """An EfficientNet-Lite0 in its publisher's keys equals the package's own, but for the crop."""
    weights = kept_networks.read(kept_networks.packaged("imagenet-lite0")).model.frozen
    shapes = leaf_shapes("efficientnet_lite0", 1.0, {}, with_ss=False)
    arrays = flatten({"params": weights.params, "batch_stats": weights.batch_stats})
    backbone, ends, _, key_of = mobile._DIALECTS["_blocks.0._depthwise_conv.weight"]
    state = {
        mobile._key(path, backbone, ends, key_of): array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        for path, array in ((path, np.asarray(arrays[path], np.float32)) for path in shapes)
    }
    file_formats.write_safetensors(tmp_path / "lite0.safetensors", state, {"format": "pt"})
    (tmp_path / "config.json").write_text('{"input_size": [3, 224, 224], "crop_pct": 1.0}')
    image = PICTURES[0]
    features = [
        FewShotClassifier.from_pretrained(name).fit([image, PICTURES[3]], ["a", "b"]).support_features_
        for name in ("imagenet-lite0", tmp_path / "lite0.safetensors")
    ]
    np.testing.assert_allclose(features[0], features[1], atol=1e-4)

"""ONNX files compute what the network computes, by ONNX Runtime, at any batch size."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn
from test_export import network

from mtl_jax.errors import CheckpointError, MtlError
from mtl_jax.export import __main__ as export_main
from mtl_jax.export import embedding, onnx, stablehlo

BACKBONES = (
    "conv4", "resnet12", "resnet12_640", "resnet18", "resnet25", "imagenet_resnet18", "imagenet_resnet50",
    "efficientnet_lite0", "mobilenet_v2", "vit",
)  # fmt: skip


class CallsBack(nn.Module):
    """Calls back into Python, which no converter can follow."""

    def __call__(self, images, train=False, batch_statistics=None):
        shape = jax.ShapeDtypeStruct((images.shape[0], 4), np.float32)
        return jax.pure_callback(lambda x: np.zeros((len(x), 4), np.float32), shape, images)


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_the_networks_at_every_batch_size(name, tmp_path):
    pytest.importorskip("jax2onnx")
    embed, path = network(name), tmp_path / "network.onnx"
    facts = onnx.write(embed, path)
    assert facts == json.loads(stablehlo.facts_path(path).read_text())
    assert (facts["format"], facts["fingerprint"], facts["input"]) == ("ONNX", embed.fingerprint, ["B", 32, 32, 3])
    function = onnx.function(path.read_bytes())
    for batch in (1, 5):
        images = np.random.default_rng(batch).integers(0, 256, (batch, *embed.image_shape), np.uint8)
        expected = embed(images)
        assert function(images).shape == expected.shape
        np.testing.assert_allclose(
            function(images), expected, atol=stablehlo.TOLERANCE * max(1, np.abs(expected).max())
        )


def test_the_program_writes_the_bundled_network_for_photographs(tmp_path, capsys):
    pytest.importorskip("jax2onnx")
    path = tmp_path / "photographs.onnx"
    assert export_main.main(["export", "--backbone=imagenet-lite0", f"--output={path}"]) == 0
    said = capsys.readouterr().out
    assert "ONNX): uint8 ['B', 224, 224, 3] -> float32 [B, 1280]" in said
    images = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = embedding.pretrained("imagenet-lite0")(images)
    np.testing.assert_allclose(onnx.function(path.read_bytes())(images), expected, atol=1e-4)


def test_both_formats_of_a_name_lie_side_by_side(tmp_path):
    pytest.importorskip("jax2onnx")
    embed = network("conv4")
    stablehlo.write(embed, tmp_path / "a.stablehlo", ["cpu"])
    onnx.write(embed, tmp_path / "a.onnx")
    assert stablehlo.load(tmp_path / "a.stablehlo").fingerprint == embed.fingerprint
    with pytest.raises(CheckpointError, match="is ONNX, and only StableHLO can be loaded"):
        stablehlo.load(tmp_path / "a.onnx")


def test_what_cannot_be_converted_ends_in_a_line(tmp_path):
    pytest.importorskip("jax2onnx")
    embed = dataclasses.replace(network("conv4"), module=CallsBack())
    with pytest.raises(MtlError, match=r"jax2onnx cannot convert this network \(.*export StableHLO instead"):
        onnx.write(embed, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_converter_its_name_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(MtlError, match=r"pip install 'mtl_jax\[onnx\]'"):
        onnx.write(network("conv4"), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_platforms_are_of_stablehlo(tmp_path, capsys):
    words = ["export", "--backbone=fc100-conv4", f"--output={tmp_path / 'a.onnx'}", "--platforms=cpu"]
    assert export_main.main(words) == 2
    assert "--platforms is for StableHLO" in capsys.readouterr().err

"""Networks from files that people have: features as torchvision's and timm's, every dialect, what is wrong."""

import json
import unittest.mock

import jax
import numpy as np
import pytest
import torchvision_models
from mtl_jax.configs import glyphs

from mtl_jax import evaluate, scale_shift, vision_vit
from mtl_jax.errors import CheckpointError, ConfigError, MtlError
from mtl_jax.launch import program
from mtl_jax.reference_weights import __main__ as reference_weights_main
from mtl_jax.reference_weights import file_formats, load_network, load_reference_weights, networks
from mtl_jax.workdir.named_arrays import flatten


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def timm(torch):
    """timm, and torchvision, whose operators are built for one PyTorch, perhaps not this one: they are left out."""
    with unittest.mock.patch.object(torch.library, "register_fake", lambda *_, **__: lambda function: function):
        pytest.importorskip("torchvision")
        return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def torchvision(timm):
    return pytest.importorskip("torchvision")


def with_values(torch, module):
    """The module with random weights that keep features of ordinary size, in evaluation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + noise.abs())
            elif value.ndim == 1:
                value.copy_(0.1 * noise + 0.8 * name.endswith("weight"))
            elif value.ndim > 1:
                value.copy_(noise * (0.5 if value.ndim == 3 else np.prod(value.shape[1:]) ** -0.5))
    return module.eval()


def vit(torch, timm, **options):
    options = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 192,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 5,
        **options,
    }
    return with_values(torch, timm.models.VisionTransformer(dynamic_img_size=True, **options))


def theirs(torch, module, size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    module = module.double()
    with torch.no_grad():
        if hasattr(module, "forward_head"):
            features = module.forward_head(module.forward_features(images), pre_logits=True)
        else:
            features = torch.nn.Sequential(*list(module.children())[:-1])(images).flatten(1)
    return images.numpy().transpose(0, 2, 3, 1), features.numpy()


def ours(network, images):
    return torchvision_models.features(network.module, network.params, network.batch_stats, images)


def assert_equal_features(torch, module, network, *sizes):
    for size in sizes:
        images, expected = theirs(torch, module, size)
        features = ours(network, images)
        assert features.shape == expected.shape
        assert np.abs(features - expected).max() < 1e-6 * np.abs(expected).max()  # its attention is JAX's, in float32


@pytest.mark.parametrize(
    ("name", "sizes"), [("resnet18", [(224, 224), (97, 64)]), ("resnet34", [(64, 64)]), ("resnet50", [(64, 64)])]
)
def test_resnets_of_torchvision(torch, torchvision, tmp_path, name, sizes):
    module = with_values(torch, getattr(torchvision.models, name)())
    torch.save(module.state_dict(), tmp_path / "a.pth")
    network = load_network(tmp_path / "a.pth")
    assert_equal_features(torch, module, network, *sizes)
    assert network.description["resize"] == 256
    weights = load_reference_weights(tmp_path / "a.pth")
    assert (weights.backbone, weights.head["kernel"].shape[1]) == (f"imagenet_{name}", 1000)


def test_a_resnet_of_timm_in_half_precision(torch, timm, tmp_path):
    module = with_values(torch, timm.create_model("resnet18", num_classes=0)).bfloat16()
    torch.save(module.state_dict(), tmp_path / "a.bin")
    network, module = load_network(tmp_path / "a.bin"), module.float()
    images, expected = theirs(torch, module, (64, 64))
    np.testing.assert_allclose(ours(network, images), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_a_run_starts_from_a_resnet_of_torchvision(torch, torchvision, tmp_path):
    module = with_values(torch, torchvision.models.resnet18())
    torch.save({"model": module.state_dict()}, tmp_path / "a.pth")
    config = glyphs.get_config("1shot")
    config.backbone.name = "imagenet_resnet18"
    config.data.channels = 3
    params, batch_stats = evaluate.network.backbone(config, str(tmp_path / "a.pth"))
    kernel = module.layer4[1].conv2.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["stage4"]["block2"]["conv2"]["kernel"], kernel)
    np.testing.assert_array_equal(batch_stats["stem"]["norm"]["var"], module.bn1.running_var.numpy())
    assert scale_shift.last_block(params) == "stage4"


FORMS = {
    "plain": {}, "LayerScale": {"init_values": 0.1}, "no class position": {"no_embed_class": True},
    "registers": {"reg_tokens": 2}, "registers without positions": {"reg_tokens": 4, "no_embed_class": True},
    "average of patches": {"global_pool": "avg"},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_transformers_of_timm_at_every_size(torch, timm, tmp_path, form):
    module = vit(torch, timm, **FORMS[form])
    torch.save(module.state_dict(), tmp_path / "a.pth")
    network = load_network(tmp_path / "a.pth")
    assert_equal_features(torch, module, network, (32, 32), (48, 64), (24, 16))
    assert network.left_out == ("head.weight", "head.bias")


def test_a_transformer_at_224_pixels(torch, timm, tmp_path):
    module = vit(torch, timm, img_size=224, patch_size=16)
    torch.save(module.state_dict(), tmp_path / "a.pth")
    assert_equal_features(torch, module, load_network(tmp_path / "a.pth"), (224, 224), (160, 160))


def test_a_gated_mlp(torch, timm, tmp_path):
    module = vit(torch, timm, mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU)
    torch.save(module.state_dict(), tmp_path / "a.pth")
    network = load_network(tmp_path / "a.pth")
    assert network.module.form.gated
    assert_equal_features(torch, module, network, (32, 32))


def face(state, dinov2):
    """timm's keys as Hugging Face has them, of its ViT or its DINOv2."""
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
             "reg_token": "embeddings.register_tokens", "patch_embed.proj": "embeddings.patch_embeddings.projection",
             "attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1",
             "ls2.gamma": "layer_scale2.lambda1", "blocks.": "encoder.layer."}  # fmt: skip
    if not dinov2:
        names |= {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense",
                  "mlp.fc2": "output.dense"}  # fmt: skip
    renamed = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        key = f"layernorm{key[4:]}" if key.startswith("norm.") else key
        if "attn.qkv" in key:
            for part, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                renamed[key.replace("attn.qkv", f"attention.attention.{part}")] = third
        elif not key.startswith("head"):
            renamed[key] = value
    return renamed


@pytest.mark.parametrize(("dinov2", "prefix"), [(False, "vit."), (True, ""), (True, "dinov2.")])
def test_keys_of_hugging_face(torch, timm, tmp_path, dinov2, prefix):
    module = vit(torch, timm, **({"init_values": 0.1} if dinov2 else {"norm_layer": torch.nn.LayerNorm}))
    state = face({key: value.numpy() for key, value in module.state_dict().items()}, dinov2)
    if not dinov2:
        state["classifier.weight"] = np.zeros((5, 192), np.float32)
    state = {key if key.startswith("classifier") else prefix + key: value for key, value in state.items()}
    file_formats.write_safetensors(tmp_path / "model.safetensors", state, {"format": "pt"})
    (tmp_path / "config.json").write_text(
        json.dumps({"num_attention_heads": 3, "layer_norm_eps": 1e-5 if not dinov2 else 1e-6})
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224}, "do_center_crop": True, "resample": 3,
         "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    ))  # fmt: skip
    network = load_network(tmp_path)
    assert_equal_features(torch, module, network, (32, 32), (48, 40))
    assert network.description == {"image_size": 224, "resize": 256, "interpolation": "bicubic",
                                   "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}  # fmt: skip


WRAPPED = {
    "module.": lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}},
    "encoder.module.": lambda s: {"model": {f"encoder.module.{key}": value for key, value in s.items()}},
    "torch.compile's": lambda s: {f"_orig_mod.{key}": value for key, value in s.items()},
    "DINO's": lambda s: {
        "student": {f"module.backbone.{key}": value + 1 for key, value in s.items()},
        "teacher": {**{f"backbone.{key}": value for key, value in s.items()}, "head.mlp.0.weight": s["norm.weight"]},
        "optimizer": {"state": {0: s}}, "epoch": 3,
    },
    "an average": lambda s: {"model": {key: value + 1 for key, value in s.items()}, "model_ema": s},
    "a name of its own": lambda s: {"my_net": {f"model.{key}": v for key, v in s.items()}, "optimizer": {"a": s}},
    "a decoder beside it": lambda s: {**{f"decoder_{key}": value for key, value in s.items()}, **s},
    "groups of blocks": lambda s: {key.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): value
                                   for key, value in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_a_transformer_as_trainers_wrap_it(torch, timm, tmp_path, case):
    state = vit(torch, timm).state_dict()
    torch.save(state, tmp_path / "bare.pth")
    torch.save(WRAPPED[case](state), tmp_path / "wrapped.pt")
    bare, wrapped = load_network(tmp_path / "bare.pth"), load_network(tmp_path / "wrapped.pt")
    assert bare.module == wrapped.module
    jax.tree.map(np.testing.assert_array_equal, bare.params, wrapped.params)


def test_everything_that_is_wrong_is_listed(torch, timm, tmp_path):
    state = dict(vit(torch, timm).state_dict())
    state["blocks.1.extra.weight"] = state.pop("blocks.1.attn.proj.bias")
    state["norm.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_network(tmp_path / "a.pth")
    for part in (
        "missing blocks.1.attn.proj.bias",
        "surplus blocks.1.extra.weight",
        "norm.bias float32[7]",
        "float [192]",
    ):
        assert part in str(caught.value)


def test_heads_that_are_not_known_are_asked_for(torch, timm, tmp_path):
    module = vit(torch, timm, embed_dim=24, num_heads=2)
    torch.save(module.state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="24 features, of which the number of heads is not known; give heads="):
        load_network(tmp_path / "a.pth")
    assert_equal_features(torch, module, load_network(tmp_path / "a.pth", heads=2), (32, 32))
    with pytest.raises(ConfigError, match="heads is 7, expected a number that divides the width 24"):
        load_network(tmp_path / "a.pth", heads=7)


def test_positions_are_resampled_as_in_dinos_code(torch):
    positions = np.random.default_rng(0).normal(size=(7, 7, 5)).astype(np.float32)
    maps = torch.from_numpy(positions).permute(2, 0, 1)[None]
    for height, width in ((9, 4), (7, 8), (14, 14)):
        factors = (height + 0.1) / 7, (width + 0.1) / 7
        expected = torch.nn.functional.interpolate(maps, scale_factor=factors, mode="bicubic")[0].permute(1, 2, 0)
        np.testing.assert_allclose(vision_vit.resample(positions, (height, width), "dino"), expected, atol=2e-6)


def test_a_file_of_dinov2s_code_is_resampled_as_there(torch, timm, tmp_path):
    state = {**vit(torch, timm, num_classes=0).state_dict(), "mask_token": torch.zeros(1, 192)}
    torch.save(state, tmp_path / "a.pth")
    assert load_network(tmp_path / "a.pth").module.form.positions == "dino"
    assert load_network(tmp_path / "a.pth", positions="timm").module.form.positions == "timm"


def test_the_program_tells_and_converts(torch, timm, tmp_path, capsys):
    module = vit(torch, timm)
    torch.save(module.state_dict(), tmp_path / "a.pth")
    out = tmp_path / "ours.safetensors"
    assert program.run(reference_weights_main.main, ["", "convert", str(tmp_path / "a.pth"), str(out)]) == 0
    assert program.run(reference_weights_main.main, ["", "info", str(out)]) == 0
    text = capsys.readouterr().out
    for part in ("backbone: vit", "depth 2", "left out: head.weight", "images: image_size 224"):
        assert part in text
    network, again = load_network(tmp_path / "a.pth"), load_network(out)
    assert (again.module, again.description) == (network.module, network.description)
    jax.tree.map(np.testing.assert_array_equal, again.params, network.params)
    assert program.run(reference_weights_main.main, ["", "convert", str(out), str(tmp_path / "b.pth")]) == 2
    assert "expected a name that ends in .safetensors" in capsys.readouterr().err


def test_bfloat16_in_safetensors(torch, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"a": torch.arange(3.0).bfloat16(), "b": torch.arange(3.0).double()}, tmp_path / "a.safetensors")
    arrays, _ = file_formats.read_safetensors(tmp_path / "a.safetensors")
    assert {name: str(array.dtype) for name, array in arrays.items()} == {"a": "bfloat16", "b": "float64"}
    assert arrays["a"].tolist() == arrays["b"].tolist() == [0, 1, 2]


def test_a_model_of_the_hub_from_its_local_cache(torch, timm, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / ("0" * 40)
    (tmp_path / "models--me--tiny" / "refs").mkdir(parents=True)
    (tmp_path / "models--me--tiny" / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    state = {key: value.numpy() for key, value in vit(torch, timm).state_dict().items()}
    file_formats.write_safetensors(snapshot / "model.safetensors", state, {"format": "pt"})
    cfg = {"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}
    (snapshot / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": cfg}))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    network = load_network("hf-hub:me/tiny")
    assert network.description["image_size"] == network.description["resize"] == 32
    assert flatten(network.params)["block1/mlp/fc1/kernel"].shape == (192, 768)
    with pytest.raises(CheckpointError, match="hf-hub:me/other: "):
        load_network("hf-hub:me/other")


def test_without_the_hubs_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MtlError, match=r"hf-hub:a/b: needs huggingface_hub; run: pip install 'mtl_jax\[hub\]'"):
        networks.load_network("hf-hub:a/b")

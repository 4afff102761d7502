"""DINOv3 of random weights: features as timm's in float64, the keys of timm, Meta and Hugging Face."""

import jax
import numpy as np
import pytest
from test_networks import theirs, timm, torch, with_values  # noqa: F401, fixtures

from mtl_jax import vision_vit
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.reference_weights import file_formats, load_network, networks
from mtl_jax.workdir.named_arrays import flatten

FORMS = {
    "as published": {"qkv_bias": False},
    "with biases": {"qkv_bias": True},
    "gated": {"qkv_bias": False, "swiglu_mlp": True, "swiglu_align_to": 8},
}


def dinov3(torch, timm, **options):  # noqa: F811
    """timm's vit_small_patch16_dinov3, smaller, with the class token's features as Meta takes them."""
    small = {"embed_dim": 128, "depth": 2, "num_heads": 2, "patch_size": 8, "global_pool": "token", "num_classes": 0}
    module = with_values(torch, timm.create_model("vit_small_patch16_dinov3", **{**small, **options}))
    for name, buffer in module.named_buffers():
        if name.endswith("k_bias"):
            buffer.zero_()  # which no file holds
    return module


@pytest.mark.parametrize("form", FORMS)
def test_features_are_timms_in_float64(torch, timm, tmp_path, form):  # noqa: F811
    module = dinov3(torch, timm, **FORMS[form])
    torch.save(module.state_dict(), tmp_path / "a.pth")
    network = load_network(tmp_path / "a.pth")
    module = module.double()
    module.rope.periods = (100.0 ** (torch.arange(16, dtype=torch.float64) / 16)).double()  # timm's are float32
    with jax.enable_x64(True):
        params = jax.tree.map(np.float64, network.params)
        for size in ((64, 64), (48, 80), (24, 16)):
            images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()
            with torch.no_grad():
                expected = module(images).numpy()
            features = network.module.apply({"params": params}, images.numpy().transpose(0, 2, 3, 1))
            assert np.abs(features - expected).max() < 1e-7 * np.abs(expected).max()  # timm's grid is float32


def as_meta(state):
    """timm's keys as Meta has them, with what its files hold besides."""
    new, width = {}, state["cls_token"].shape[-1]
    names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens", "mlp.fc1_g": "mlp.w1",
             "mlp.fc1_x": "mlp.w2"}  # fmt: skip
    is_gated = any("fc1_g" in key for key in state)
    for key, value in state.items():
        for ours, other in {**names, **({"mlp.fc2": "mlp.w3"} if is_gated else {})}.items():
            key = key.replace(ours, other)
        if not key.endswith(("q_bias", "v_bias")):
            new[key] = value
    for block in ("blocks.0.attn.", "blocks.1.attn."):
        bias = [state.get(f"{block}{part}_bias", np.zeros(width, np.float32)) for part in "qv"]
        new[block + "qkv.bias"] = np.concatenate([bias[0], np.full(width, np.nan, np.float32), bias[1]])
        new[block + "qkv.bias_mask"] = np.repeat(np.float32([1, 0, 1]), width)
    extras = {"mask_token": np.zeros((1, width), np.float32), "rope_embed.periods": np.ones(16, np.float32)}
    return new | extras | {"local_cls_norm.weight": np.ones(width, np.float32)}


def as_face(state, start=""):
    """timm's keys as Hugging Face has them."""
    names = {"cls_token": "embeddings.cls_token", "reg_token": "embeddings.register_tokens", "blocks.": "layer.",
             "patch_embed.proj": "embeddings.patch_embeddings", "gamma_1": "layer_scale1.lambda1",
             "gamma_2": "layer_scale2.lambda1", "attn.proj": "attention.o_proj", "mlp.fc1_g": "mlp.gate_proj",
             "mlp.fc1_x": "mlp.up_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj",
             "attn.q_bias": "attention.q_proj.bias", "attn.v_bias": "attention.v_proj.bias"}  # fmt: skip
    new = {"embeddings.mask_token": np.zeros((1, 1, state["cls_token"].shape[-1]), np.float32)}
    for key, value in state.items():
        for ours, other in names.items():
            key = key.replace(ours, other)
        if key.endswith("attn.qkv.weight"):
            for part, third in zip("qkv", np.split(value, 3), strict=True):
                new[key.replace("attn.qkv", f"attention.{part}_proj")] = third
        else:
            new[key] = value
    return {start + key: value for key, value in new.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_dialect_is_the_same_network(torch, timm, tmp_path, form):  # noqa: F811
    state = {key: value.numpy() for key, value in dinov3(torch, timm, **FORMS[form]).state_dict().items()}
    dialects = {
        "timm": state, "Meta": as_meta(state), "Hugging Face": as_face(state),
        "wrapped": {f"module.{key}": value for key, value in as_meta(state).items()},
        "newer": as_face(state, "model."),
    }  # fmt: skip
    loaded = []
    for name, arrays in dialects.items():
        file_formats.write_safetensors(tmp_path / f"{name}.safetensors", arrays, {"format": "pt"})
        loaded.append(load_network(tmp_path / f"{name}.safetensors"))
        assert loaded[-1].module == loaded[0].module
        jax.tree.map(np.testing.assert_array_equal, loaded[-1].params, loaded[0].params)
    form_of = loaded[0].module.form
    assert (form_of.heads, form_of.registers, form_of.rotary, form_of.epsilon) == (2, 4, 100.0, 1e-5)
    assert "positions" not in loaded[0].params
    assert not flatten(loaded[0].params)["block1/attention/qkv/bias"][128:256].any()
    networks.write(loaded[0], tmp_path / "ours.safetensors")
    again = load_network(tmp_path / "ours.safetensors")
    assert (again.module, again.fingerprint) == (loaded[0].module, loaded[0].fingerprint)


def test_what_is_wrong_is_listed(torch, timm, tmp_path):  # noqa: F811
    state = {key: value.numpy() for key, value in dinov3(torch, timm).state_dict().items()}
    broken = as_face(state)
    broken["layer.1.attention.k_proj.weight"] = np.zeros((128, 7), np.float32)
    del broken["layer.0.mlp.up_proj.bias"]
    file_formats.write_safetensors(tmp_path / "a.safetensors", broken, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_network(tmp_path / "a.safetensors")
    for part in ("missing blocks.0.mlp.fc1.bias", "missing blocks.1.attn.qkv.weight", "surplus blocks.1.attn.k.weight"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"rotary is 100\.0 with 6 features a head, expected 4 K"):
        vision_vit.Form(1, 12, 2, 24, 8, 1, rotary=100.0)

"""DINOv3's state dicts, as timm, Meta and Hugging Face name them, in timm's names for other transformers.

Its keys have no bias, which is zero here; a gated MLP's first layer is one array. Meta's files hold the rotary
positions' periods in bfloat16; they are computed in float32 instead, as timm and Hugging Face do.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.reference_weights.trees import to_numpy

_REGISTERS = re.compile(r"(.*\.)?(reg_token|storage_tokens|embeddings\.register_tokens)$")
_POSITIONS = re.compile(r"(.*\.)?(pos_embed|position_embeddings)$")
_NAMES = tuple(
    (re.compile(rf"(^|\.){theirs}(?=\.|$)"), rf"\g<1>{ours}")
    for theirs, ours in {
        r"storage_tokens": "reg_token", r"embeddings\.register_tokens": "reg_token",
        r"embeddings\.(cls_token|mask_token)": r"\g<2>", r"embeddings\.patch_embeddings": "patch_embed.proj",
        r"layer\.(\d+)": r"blocks.\g<2>", r"gamma_([12])": r"ls\g<2>.gamma",
        r"layer_scale([12])\.lambda1": r"ls\g<2>.gamma", r"attention\.([qkv])_proj": r"attn.\g<2>",
        r"attention\.o_proj": "attn.proj", r"attn\.([qv])_bias": r"attn.\g<2>.bias",
        r"mlp\.(?:gate_proj|fc1_g|w1)": "mlp.gate", r"mlp\.(?:up_proj|fc1_x|w2)": "mlp.up",
        r"mlp\.(?:down_proj|w3)": "mlp.fc2",
    }.items()
)  # fmt: skip
_LEFT_OUT = re.compile(r"(.*\.)?(periods|inv_freq|bias_mask|local_cls_norm\.\w+)$")
_BLOCK = re.compile(r"(.*\.)?blocks\.\d+\.")


def is_dinov3(state: Mapping[str, Any]) -> bool:
    """Whether an unwrapped state dict is of a transformer with registers and without learned positions."""
    return any(map(_REGISTERS.match, state)) and not any(map(_POSITIONS.match, state))


def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of which `is_dinov3` is true, with timm's names for other transformers.

    Arrays that cannot be joined stay as they are, so that they are listed as surplus.
    """
    new: dict[str, Any] = {}
    for key, value in state.items():
        if not _LEFT_OUT.match(key):
            for pattern, name in _NAMES:
                key = pattern.sub(name, key)
            new[key] = value
    for block in sorted({match[0] for match in map(_BLOCK.match, new) if match}):
        _join(new, block + "attn.", ("q.weight", "k.weight", "v.weight"), "qkv.weight")
        for leaf in ("weight", "bias"):
            if not _join(new, block + "mlp.", (f"gate.{leaf}", f"up.{leaf}"), f"w12.{leaf}"):
                _rename(new, f"{block}mlp.up.{leaf}", f"{block}mlp.fc1.{leaf}")
            else:
                _rename(new, f"{block}mlp.fc2.{leaf}", f"{block}mlp.w3.{leaf}")
        _bias(new, block + "attn.")
    return new


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    if old in state:
        state[new] = state.pop(old)


def _join(state: dict[str, Any], start: str, parts: tuple[str, ...], whole: str) -> bool:
    """Makes one array of several along their first axis; whether it could."""
    arrays = [to_numpy(state[start + part]) for part in parts if start + part in state]
    if len(arrays) < len(parts) or len({array.shape[1:] for array in arrays}) > 1 or not arrays[0].ndim:
        return False
    state[start + whole] = np.concatenate(arrays)
    for part in parts:
        del state[start + part]
    return True


def _bias(state: dict[str, Any], start: str) -> None:
    """The bias of queries, keys and values: the keys' is zero, and where there is none, so are the others'."""
    shape = to_numpy(state.get(start + "qkv.weight", ())).shape
    third = shape[0] // 3 if shape else 0
    bias = to_numpy(state[start + "qkv.bias"]) if start + "qkv.bias" in state else np.zeros(3 * third, np.float32)
    if bias.shape == (3 * third,) and bias.dtype.kind == "f":
        bias = np.array(bias, np.float32)
        bias[third : 2 * third] = 0
        for place, part in ((0, "q.bias"), (2, "v.bias")):
            if start + part in state and np.shape(state[start + part]) == (third,):
                bias[place * third : (place + 1) * third] = to_numpy(state.pop(start + part))
        state[start + "qkv.bias"] = bias

"""Vision transformers with the norm before each layer, as timm, DINO, DINOv2, DINOv3 and Hugging Face's ViT have them.

They know nothing of weight files: `reference_weights.load_network` finds the options from a file's keys and shapes.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtl_jax.errors import ConfigError
from mtl_jax.layers import statistics_mode
from mtl_jax.layers_fast import float32_at_least
from mtl_jax.types import Array

POSITIONS = ("timm", "dino")
POOLING = ("class", "average")
_SHIFT = 0.1  # that DINO adds to the number of patches a side


@dataclasses.dataclass(frozen=True)
class Form:
    """What a vision transformer is made of.

    depth: number of blocks. width: features of a token. heads: of attention. hidden: features within an MLP.
    patch: side of a patch in pixels. grid: patches a side that the positions were trained for; images of another size
      get resampled ones.
    class_position: whether the class token has a position. registers: number of further tokens.
    register_positions: whether registers have positions.
    layer_scale: whether the result of each layer has a factor a channel. gated: SwiGLU in the MLP instead of GELU.
    pooling: 'class': the class token after the last norm; 'average': the norm of the patches' average.
    positions: how they are resampled, 'timm': bicubic, antialiased; 'dino': bicubic, by factors of 0.1 patches more,
      as in the code of DINO and DINOv2.
    rotary: the longest period of rotary positions, in half images, as DINOv3 has them instead of learned ones; 0: none.
    epsilon: of the layer norms. dtype: of the computation; None: of images and parameters.

    Raises:
      ConfigError: a value that is not allowed.
    """

    depth: int
    width: int
    heads: int
    hidden: int
    patch: int
    grid: int
    class_position: bool = True
    registers: int = 0
    register_positions: bool = False
    layer_scale: bool = False
    gated: bool = False
    pooling: str = "class"
    positions: str = "timm"
    rotary: float = 0.0
    epsilon: float = 1e-6
    dtype: Any = None

    def __post_init__(self) -> None:
        for name, value, known in (("positions", self.positions, POSITIONS), ("pooling", self.pooling, POOLING)):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"heads is {self.heads}, expected a number that divides the width {self.width}")
        if self.rotary and (self.rotary < 0 or self.width // self.heads % 4):
            raise ConfigError(f"rotary is {self.rotary} with {self.width // self.heads} features a head, expected 4 K")


class ViT(nn.Module):
    """Images [B, H, W, C] -> features [B, width]. Pixels beyond the last whole patch are left out.

    It is called as other backbones are, but has no batch norm and no dropout: neither `batch_statistics` nor `train`
    changes anything.
    """

    form: Form

    @nn.compact
    def __call__(self, images: Array, train: bool = False, batch_statistics: str | None = None) -> Array:
        statistics_mode(train, batch_statistics)
        f, (height, width) = self.form, images.shape[1:3]
        if min(height, width) < f.patch:
            raise ConfigError(f"images of {height} x {width} pixels, expected at least a patch of {f.patch}")
        size, small = (f.patch, f.patch), nn.initializers.normal(0.02)
        x = nn.Conv(f.width, size, size, padding="VALID", dtype=f.dtype, name="patch")(images)
        before = int(f.class_position), f.registers * f.register_positions
        tokens = [self.param("class_token", small, (1, f.width))]
        if f.registers:
            tokens.append(self.param("registers", small, (f.registers, f.width)))
        turn = rotary(x.shape[1:3], f.width // f.heads, f.rotary) if f.rotary else None
        if turn is None:
            positions = self.param("positions", small, (sum(before) + f.grid**2, f.width))
            for i, (start, count) in enumerate(zip((0, before[0]), before, strict=True)):
                if count:
                    tokens[i] = tokens[i] + positions[start : start + count]
            maps = resample(positions[sum(before) :].reshape(f.grid, f.grid, -1), x.shape[1:3], f.positions)
            x = x + maps.astype(x.dtype)
        x = x.reshape(x.shape[0], -1, f.width)  # len() refuses the symbolic size of an export
        first = jnp.concatenate(tokens).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], *first.shape)), x], 1)
        for number in range(1, f.depth + 1):
            x = _Block(f, name=f"block{number}")(x, turn)
        x = x[:, 0] if f.pooling == "class" else x[:, len(first) :].mean(1)
        return float32_at_least(_norm(f, "norm")(x))


def _norm(form: Form, name: str) -> nn.Module:
    return nn.LayerNorm(form.epsilon, form.dtype, use_fast_variance=False, name=name)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    form: Form

    @nn.compact
    def __call__(self, x: Array, turn: Array | None) -> Array:
        f = self.form
        attention = functools.partial(_Attention(f, name="attention"), turn=turn)
        for number, layer in ((1, attention), (2, _MLP(f, name="mlp"))):
            y = layer(_norm(f, f"norm{number}")(x))
            if f.layer_scale:
                y = y * self.param(f"scale{number}", nn.initializers.constant(1e-5), (f.width,)).astype(y.dtype)
            x = x + y
        return x


class _Attention(nn.Module):
    form: Form

    @nn.compact
    def __call__(self, x: Array, turn: Array | None) -> Array:
        f, (batch, tokens, width) = self.form, x.shape
        qkv = nn.Dense(3 * width, dtype=f.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, f.heads, width // f.heads), 2, 0)
        if turn is not None:
            query, key = turned(query, turn), turned(key, turn)
        x = jax.nn.dot_product_attention(query, key, value)
        return nn.Dense(width, dtype=f.dtype, name="out")(x.reshape(batch, tokens, width))


class _MLP(nn.Module):
    form: Form

    @nn.compact
    def __call__(self, x: Array) -> Array:
        f, width = self.form, x.shape[-1]
        x = nn.Dense(f.hidden * (2 if f.gated else 1), dtype=f.dtype, name="fc1")(x)
        if f.gated:
            gate, x = jnp.split(x, 2, -1)
            x = nn.silu(gate) * x
        else:
            x = nn.gelu(x, approximate=False)
        return nn.Dense(width, dtype=f.dtype, name="fc2")(x)


def rotary(shape: tuple[int, ...], features: int, longest: float) -> Array:
    """Angles of rotary positions, complex of length 1, [patches, features / 2], for a map of a shape.

    A map goes from -1 to 1 along either axis. The first half is of rows, the second of columns.
    """
    periods = longest ** (np.arange(features // 4) / (features // 4))
    rows, columns = ((np.arange(length) + 0.5) / length * 2 - 1 for length in shape)
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1)
    return jnp.asarray(np.exp(2j * np.pi * grid / periods).reshape(len(grid), -1))


def turned(x: Array, turn: Array) -> Array:
    """Queries or keys [B, T, heads, features] turned by `rotary`'s angles; tokens before the patches are not."""
    first, half = x.shape[1] - len(turn), x.shape[-1] // 2
    before, x1, x2 = x[:, :first], x[:, first:, :, :half], x[:, first:, :, half:]
    cos, sin = (part.astype(x.dtype)[:, None] for part in (turn.real, turn.imag))
    return jnp.concatenate([before, jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)], 1)


def resample(positions: Array, shape: tuple[int, ...], rule: str) -> Array:
    """Positions [G, G, W] for a map of another shape, [*shape, W], by a rule of `POSITIONS`."""
    grid = positions.shape[0]
    if shape == (grid, grid):
        return positions
    if rule == "timm":
        return jax.image.resize(positions, (*shape, positions.shape[-1]), "cubic")
    rows, columns = (jnp.asarray(_dino_weights(length, grid), positions.dtype) for length in shape)
    return jnp.einsum("hg,wk,gkc->hwc", rows, columns, positions)


def _dino_weights(length: int, grid: int) -> np.ndarray:
    """PyTorch's bicubic interpolation to `length` from `grid`, without antialiasing: [length, grid]."""
    source = (np.arange(length) + 0.5) * grid / (length + _SHIFT) - 0.5
    first, weights = np.floor(source).astype(int), np.zeros((length, grid))
    for tap in range(-1, 3):
        place = np.clip(first + tap, 0, grid - 1)
        weights[np.arange(length), place] += _cubic(np.abs(source - first - tap))
    return weights


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel at distances of 0 to 2, with PyTorch's parameter."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)

"""The field's backbones as Flax Linen modules: images [B, H, W, C] in, features [B, F] out.

They know nothing of scale and shift, heads or episodes. Features are the average over the whole last map, so any input
of at least 28 pixels works.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import ConfigError
from mtl_jax.layers import (
    ACTIVATIONS,
    PYTORCH_INIT,
    DropBlock,
    Options,
    activate,
    average_map,
    conv,
    conv_norm,
    max_pool,
    statistics_mode,
)
from mtl_jax.types import Array
from mtl_jax.vision_mobile import EfficientNetLite0, MobileNetV2
from mtl_jax.vision_resnet import BLOCKS, VisionResNet

NAMES = (
    "conv4", "resnet12", "resnet12_640", "resnet18", "resnet25", *(f"imagenet_resnet{depth}" for depth in BLOCKS),
    "efficientnet_lite0", "mobilenet_v2",
)  # fmt: skip


class Conv4(nn.Module):
    """Four times conv 3x3 (64, with bias) - norm - activation - 2x2 max-pool, then the average over the map: F = 64.

    Much of the literature flattens conv4's last map instead, to 1,600 features at 84 pixels.
    """

    options: Options

    @nn.compact
    def __call__(self, images: Array, train: bool = False, batch_statistics: str | None = None) -> Array:
        o, mode = self.options, statistics_mode(train, batch_statistics)
        x = images
        for number, features in enumerate(o.widths(64, 64, 64, 64), 1):
            x = _Conv4Block(o, features, name=f"block{number}")(x, train, mode)
        return average_map(x)


class _Conv4Block(nn.Module):
    options: Options
    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool, mode: str) -> Array:
        o = self.options
        names = "conv", "norm"
        x = conv_norm(o, x, self.features, 3, mode, names=names, bias=True, pool=True)  # all activations are monotone
        return nn.Dropout(o.dropout, deterministic=not train)(x)


class ResNet12(nn.Module):
    """The TensorFlow implementation's four blocks of three 3x3 convolutions, 64 to 512 wide: F = 512."""

    options: Options

    @nn.compact
    def __call__(self, images: Array, train: bool = False, batch_statistics: str | None = None) -> Array:
        o, mode = self.options, statistics_mode(train, batch_statistics)
        x = images
        for number, features in enumerate(o.widths(64, 128, 256, 512), 1):
            x = _ResNet12Block(o, features, name=f"block{number}")(x, train, mode)
        return average_map(x)


class _ResNet12Block(nn.Module):
    """Three times conv - norm - activation, plus a 1x1 shortcut without norm; no activation after the sum."""

    options: Options
    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool, mode: str) -> Array:
        o = self.options
        shortcut = conv(o, x, self.features, 1, name="shortcut", bias=False)
        for i in (1, 2, 3):
            x = conv_norm(o, x, self.features, 3, mode, names=(f"conv{i}", f"norm{i}"), bias=True)
        return nn.Dropout(o.dropout, deterministic=not train)(max_pool(x + shortcut))


class ResNet12x640(nn.Module):
    """The ResNet-12 of MetaOptNet, RFS, FEAT and DeepEMD: four blocks of three 3x3 convolutions, 64 to 640: F = 640.

    Unlike the TensorFlow implementation's `ResNet12`, it normalises its shortcuts and activates its sums, so it trains
    at those publications' learning rates. With `dropblock`, the last two blocks end in DropBlock instead of dropout, at
    the rate times `dropblock_share`, 0 to 1.
    """

    options: Options

    @nn.compact
    def __call__(
        self,
        images: Array,
        train: bool = False,
        batch_statistics: str | None = None,
        *,
        dropblock_share: Array | float = 1.0,
    ) -> Array:
        o, mode = self.options, statistics_mode(train, batch_statistics)
        x = images
        for number, features in enumerate(o.widths(64, 160, 320, 640), 1):
            size = o.dropblock if number > 2 else 0
            x = _ResNet12x640Block(o, features, size, name=f"block{number}")(x, train, mode, dropblock_share)
        return average_map(x)


class _ResNet12x640Block(nn.Module):
    """Three times conv - norm (- activation, except the last), plus a normalised 1x1 shortcut; activation, max-pool."""

    options: Options
    features: int
    dropblock: int

    @nn.compact
    def __call__(self, x: Array, train: bool, mode: str, dropblock_share: Array | float) -> Array:
        o, width = self.options, self.features
        names = "shortcut", "shortcut_norm"
        shortcut = conv_norm(o, x, width, 1, mode, names=names, bias=False, active=False)
        for i in (1, 2, 3):
            x = conv_norm(o, x, width, 3, mode, names=(f"conv{i}", f"norm{i}"), bias=False, active=i < 3)
        # All activations are monotone, so pooling first gives the same map for a quarter of the work.
        x = activate(o.activation, max_pool(x + shortcut))
        if not self.dropblock:
            return nn.Dropout(o.dropout, deterministic=not train)(x)
        return DropBlock(o.dropout, self.dropblock)(x, dropblock_share) if train and o.dropout else x


class ResNet18(nn.Module):
    """The TensorFlow implementation's ResNet-18: 7x7 stem at stride 1, four stages of two blocks: F = 512."""

    options: Options

    @nn.compact
    def __call__(self, images: Array, train: bool = False, batch_statistics: str | None = None) -> Array:
        o, mode = self.options, statistics_mode(train, batch_statistics)
        stem, *widths = o.widths(64, 64, 128, 256, 512)
        x = _resize_tensorflow1(images, o.resize) if o.resize else images
        x = _Stem(o, stem, 7, name="stem")(x, mode)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        x = nn.Dropout(o.dropout, deterministic=not train)(x)
        for number, features in enumerate(widths, 1):
            x = max_pool(_ResNet18Stage(o, features, name=f"stage{number}")(x, train, mode), same=True)
        return average_map(x)


def _resize_tensorflow1(images: Array, size: int) -> Array:
    """TensorFlow 1's bilinear resize: source = i * in / out, without half-pixel centres, the upper index clamped."""
    for axis in (1, 2):
        length = images.shape[axis]
        source = jnp.arange(size) * (length / size)
        low = jnp.floor(source).astype(jnp.int32)
        high = jnp.minimum(low + 1, length - 1)
        fraction = jnp.expand_dims((source - low).astype(images.dtype), (1, 2) if axis == 1 else (1,))
        images = jnp.take(images, low, axis) * (1 - fraction) + jnp.take(images, high, axis) * fraction
    return images


class _Stem(nn.Module):
    options: Options
    features: int
    size: int

    @nn.compact
    def __call__(self, x: Array, mode: str) -> Array:
        return conv_norm(self.options, x, self.features, self.size, mode, names=("conv", "norm"), bias=True)


class _ResNet18Stage(nn.Module):
    options: Options
    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool, mode: str) -> Array:
        for number in (1, 2):
            x = _ResNet18Block(self.options, self.features, name=f"block{number}")(x, train, mode)
        return x


class _ResNet18Block(nn.Module):
    """Two times conv - norm - activation, plus a 1x1 shortcut without norm in every block."""

    options: Options
    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool, mode: str) -> Array:
        o = self.options
        shortcut = conv(o, x, self.features, 1, name="shortcut", bias=False)
        for i in (1, 2):
            x = conv_norm(o, x, self.features, 3, mode, names=(f"conv{i}", f"norm{i}"), bias=True)
        return nn.Dropout(o.dropout, deterministic=not train)(x + shortcut)


class ResNet25(nn.Module):
    """The PyTorch implementation's network: stem 80, three stages of four basic blocks, 160 to 640: F = 640."""

    options: Options

    @nn.compact
    def __call__(self, images: Array, train: bool = False, batch_statistics: str | None = None) -> Array:
        o, mode = self.options, statistics_mode(train, batch_statistics)
        stem, *widths = o.widths(80, 160, 320, 640)
        x = _Stem(o, stem, 3, name="stem")(images, mode)
        for number, features in enumerate(widths, 1):
            x = _ResNet25Stage(o, features, name=f"stage{number}")(x, train, mode)
        return average_map(x)


class _ResNet25Stage(nn.Module):
    options: Options
    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool, mode: str) -> Array:
        for number in (1, 2, 3, 4):
            block = _BasicBlock(self.options, self.features, 2 if number == 1 else 1, name=f"block{number}")
            x = nn.Dropout(self.options.dropout, deterministic=not train)(block(x, mode))
        return x


class _BasicBlock(nn.Module):
    """conv - norm - activation - conv - norm, plus the input (through a strided 1x1 conv and norm), activation."""

    options: Options
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, mode: str) -> Array:
        o, width = self.options, self.features
        y = conv_norm(o, x, width, 3, mode, names=("conv1", "norm1"), stride=self.stride, bias=False)
        y = conv_norm(o, y, width, 3, mode, names=("conv2", "norm2"), bias=False, active=False)
        if self.stride > 1:
            names = "shortcut", "shortcut_norm"
            x = conv_norm(o, x, width, 1, mode, names=names, stride=self.stride, bias=False, active=False)
        return activate(o.activation, x + y)


_TENSORFLOW = {"activation": "leaky_relu", "dropout": 0.1}
_PYTORCH = {"kernel_init": PYTORCH_INIT, "norm_unbiased": True}
_BACKBONES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "conv4": (Conv4, _PYTORCH),
    "resnet12": (ResNet12, _TENSORFLOW),
    "resnet12_640": (ResNet12x640, {**_PYTORCH, "activation": "leaky_relu"}),
    "resnet18": (ResNet18, _TENSORFLOW),
    "resnet25": (ResNet25, _PYTORCH),
    **{f"imagenet_resnet{depth}": (functools.partial(VisionResNet, depth=depth), _PYTORCH) for depth in BLOCKS},
    "efficientnet_lite0": (
        EfficientNetLite0, {**_PYTORCH, "activation": "relu6", "norm_epsilon": 1e-3, "same_padding": True}
    ),
    "mobilenet_v2": (MobileNetV2, {**_PYTORCH, "activation": "relu6"}),
}  # fmt: skip


def create_backbone(name: str, **options: Any) -> nn.Module:
    """A backbone by its name, one of `NAMES`.

    Call the module as `module.apply(variables, images, train=False, batch_statistics=None)`: float images [B, H, W, C]
    to features [B, F]. `train` switches dropout on. `batch_statistics` is 'running', 'batch' or 'train' (see
    `BatchNorm`); by default 'train' when training and 'running' otherwise.

    Args:
      name: the backbone.
      **options: each is the reference's own if left out or None.
        width: factor on every channel count.
        norm: 'batch', 'layer' or 'none'.
        activation: 'relu', 'leaky_relu' (slope 0.1), 'relu6' or 'none'.
        dropout: rate.
        dropblock: resnet12_640: side of the squares dropped after blocks 3 and 4, in pixels; 0: single pixels. The
          module then takes `dropblock_share` as well.
        dtype: of the computation; parameters stay float32.
        conv_bias: True or False: all convolutions have biases, or none.
        norm_scale, norm_bias: whether batch norm has a scale and an offset.
        norm_epsilon, norm_momentum: batch norm's.
        norm_unbiased: whether batch norm averages the unbiased variance.
        resize: resnet18: side in pixels that TensorFlow 1's bilinear resize gives the input; 0: none.
        axis_name: the mapped axis that a batch is spread over, for statistics of the whole batch.

    Raises:
      ConfigError: an unknown name, option or value, or an option that this backbone or its norm does not use.
    """
    if name not in _BACKBONES:
        raise ConfigError(f"backbone {name!r} is unknown, expected one of {', '.join(NAMES)}")
    module, defaults = _BACKBONES[name]
    known = {field.name for field in dataclasses.fields(Options)} - {"kernel_init", "same_padding"}
    for key in options.keys() - known:
        raise ConfigError(f"backbone option {key!r} is unknown, expected one of {', '.join(sorted(known))}")
    chosen = {key: value for key, value in options.items() if value is not None}
    for key, allowed in (("norm", ("batch", "layer", "none")), ("activation", tuple(ACTIVATIONS))):
        if chosen.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"backbone option {key} is {chosen[key]!r}, expected one of {', '.join(allowed)}")
    if chosen.get("width", 1) <= 0 or not 0 <= chosen.get("dropout", 0) < 1:
        expected = "a width of more than 0, a dropout of 0 or more, below 1"
        raise ConfigError(f"backbone options {chosen}: expected {expected}")
    check_unread(name, chosen, "backbone option ")
    return module(Options(**{**defaults, **chosen}))


def unread(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are set but not used by a backbone or its norm, with the values that leave them unset."""
    reference = {field.name: field.default for field in dataclasses.fields(Options)} | _BACKBONES[name][1]
    special = {"resnet18": "resize", "resnet12_640": "dropblock"}
    keys = tuple(option for owner, option in special.items() if owner != name)
    if options.get("norm", "batch") != "batch":
        keys += tuple(key for key in reference if key.startswith("norm_"))
    # A config's default epsilon is no choice, whatever the network's own is.
    unset = {key: (None, reference[key]) for key in keys} | {
        "norm_epsilon": (None, reference["norm_epsilon"], Options.norm_epsilon)
    }
    return {key: reference[key] for key in keys if options.get(key) not in unset[key]}


def check_unread(name: str, options: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError if options are `unread`. The message has all of them, with `where` before each."""
    if unused := unread(name, options):
        values = ", ".join(f"{where}{key} is {options[key]!r}" for key in unused)
        expected = ", ".join(f"{key} {value!r}" for key, value in unused.items())
        norm = options.get("norm", "batch")
        raise ConfigError(f"{values}, but {name} with norm {norm!r} does not use it; keep {expected}")

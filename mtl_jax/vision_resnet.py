"""ResNet-18, -34 and -50 as torchvision and timm have them, for weights that were trained on ImageNet.

`create_backbone` makes them as `imagenet_resnet18`, `imagenet_resnet34` and `imagenet_resnet50`.
"""

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.layers import Options, activate, average_map, conv_norm, statistics_mode
from mtl_jax.types import Array

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # of each stage
WIDENED = 4  # channels that leave a block of the 50 over those within it


class VisionResNet(nn.Module):
    """7x7 stem and 3x3 max-pool, both at stride 2, four stages of residual blocks: F = 512, or 2048 for depth 50."""

    options: Options
    depth: int = 18

    @nn.compact
    def __call__(self, images: Array, train: bool = False, batch_statistics: str | None = None) -> Array:
        o, mode = self.options, statistics_mode(train, batch_statistics)
        x = _Stem(o, name="stem")(images, mode)
        # As PyTorch pads. Not by max_pool's own padding, which jax2onnx converts wrongly.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        for number, (features, blocks) in enumerate(zip((64, 128, 256, 512), BLOCKS[self.depth], strict=True), 1):
            x = _Stage(o, features, blocks, 1 if number == 1 else 2, self.depth == 50, name=f"stage{number}")(x, mode)
        return nn.Dropout(o.dropout, deterministic=not train)(average_map(x))


class _Stem(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Array, mode: str) -> Array:
        (features,) = self.options.widths(64)
        return conv_norm(self.options, x, features, 7, mode, names=("conv", "norm"), stride=2, bias=False)


class _Stage(nn.Module):
    options: Options
    features: int
    blocks: int
    stride: int
    is_bottleneck: bool

    @nn.compact
    def __call__(self, x: Array, mode: str) -> Array:
        for number in range(1, self.blocks + 1):
            stride = self.stride if number == 1 else 1
            x = _Block(self.options, self.features, stride, self.is_bottleneck, name=f"block{number}")(x, mode)
        return x


class _Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and a widening 1x1, each with its norm, plus the input; activation.

    The input goes through a 1x1 convolution and a norm where its shape is another. The stride is that of the first 3x3.
    """

    options: Options
    features: int
    stride: int
    is_bottleneck: bool

    @nn.compact
    def __call__(self, x: Array, mode: str) -> Array:
        o = self.options
        inner, outer = o.widths(self.features, self.features * (WIDENED if self.is_bottleneck else 1))
        layers = [(inner, 3, self.stride), (outer, 3, 1)]
        if self.is_bottleneck:
            layers = [(inner, 1, 1), (inner, 3, self.stride), (outer, 1, 1)]
        y = x
        for i, (width, size, stride) in enumerate(layers, 1):
            names, is_last = (f"conv{i}", f"norm{i}"), i == len(layers)
            y = conv_norm(o, y, width, size, mode, names=names, stride=stride, bias=False, active=not is_last)
        if self.stride > 1 or x.shape[-1] != outer:
            names = "shortcut", "shortcut_norm"
            x = conv_norm(o, x, outer, 1, mode, names=names, stride=self.stride, bias=False, active=False)
        return activate(o.activation, x + y)

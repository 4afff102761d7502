"""Networks for photographs that are small enough for a CPU: EfficientNet-Lite0 and MobileNetV2, F = 1280 each.

Both are a strided 3x3 stem and seven stages of inverted residual blocks: a 1x1 convolution that widens, a depthwise
one, and a 1x1 convolution that narrows, each with its norm. The last stage ends in a 1x1 convolution to the features.
`create_backbone` makes them; their published weights are read by `reference_weights`.
"""

from typing import ClassVar, NamedTuple

from flax import linen as nn

from mtl_jax.layers import Options, average_map, conv_norm, statistics_mode
from mtl_jax.types import Array


class Stage(NamedTuple):
    """Inverted residual blocks: factor of the widening, depthwise kernel, stride of the first, channels, how many."""

    expand: int
    size: int
    stride: int
    channels: int
    blocks: int


class _Mobile(nn.Module):
    options: Options
    stages: ClassVar[tuple[Stage, ...]]

    @nn.compact
    def __call__(self, images: Array, train: bool = False, batch_statistics: str | None = None) -> Array:
        o, mode = self.options, statistics_mode(train, batch_statistics)
        stem, features = o.widths(32, 1280)
        x = _ConvNorm(o, stem, 3, 2, name="stem")(images, mode)
        for number, stage in enumerate(self.stages, 1):
            last = features if number == len(self.stages) else 0
            x = _Stage(o, stage, last, name=f"stage{number}")(x, mode)
        return nn.Dropout(o.dropout, deterministic=not train)(average_map(x))


class EfficientNetLite0(_Mobile):
    """EfficientNet-Lite0 of Google's TPU repository: B0 without squeeze-and-excitation and with ReLU6."""

    stages = (
        Stage(1, 3, 1, 16, 1), Stage(6, 3, 2, 24, 2), Stage(6, 5, 2, 40, 2), Stage(6, 3, 2, 80, 3),
        Stage(6, 5, 1, 112, 3), Stage(6, 5, 2, 192, 4), Stage(6, 3, 1, 320, 1),
    )  # fmt: skip


class MobileNetV2(_Mobile):
    """MobileNetV2 (Sandler et al., 2018) as torchvision has it."""

    stages = (
        Stage(1, 3, 1, 16, 1), Stage(6, 3, 2, 24, 2), Stage(6, 3, 2, 32, 3), Stage(6, 3, 2, 64, 4),
        Stage(6, 3, 1, 96, 3), Stage(6, 3, 2, 160, 3), Stage(6, 3, 1, 320, 1),
    )  # fmt: skip


class _ConvNorm(nn.Module):
    options: Options
    features: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, mode: str) -> Array:
        names = "conv", "norm"
        return conv_norm(self.options, x, self.features, self.size, mode, names=names, stride=self.stride, bias=False)


class _Stage(nn.Module):
    """features: of the 1x1 convolution at the end; 0: there is none."""

    options: Options
    stage: Stage
    features: int

    @nn.compact
    def __call__(self, x: Array, mode: str) -> Array:
        for number in range(1, self.stage.blocks + 1):
            stride = self.stage.stride if number == 1 else 1
            x = _InvertedResidual(self.options, self.stage, stride, name=f"block{number}")(x, mode)
        if not self.features:
            return x
        return conv_norm(self.options, x, self.features, 1, mode, names=("conv", "norm"), bias=False)


class _InvertedResidual(nn.Module):
    """expand (unless by 1), depthwise, project; plus the input, where shape and channels are the same."""

    options: Options
    stage: Stage
    stride: int

    @nn.compact
    def __call__(self, x: Array, mode: str) -> Array:
        o, y = self.options, x
        (channels,) = o.widths(self.stage.channels)
        wide = x.shape[-1] * self.stage.expand
        if self.stage.expand > 1:
            y = conv_norm(o, y, wide, 1, mode, names=("expand", "expand_norm"), bias=False)
        names = "depthwise", "depthwise_norm"
        y = conv_norm(
            o, y, wide, self.stage.size, mode, names=names, stride=self.stride, bias=False, depthwise=True
        )  # fmt: skip
        y = conv_norm(o, y, channels, 1, mode, names=("project", "project_norm"), bias=False, active=False)
        return x + y if self.stride == 1 and x.shape[-1] == channels else y

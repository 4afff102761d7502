"""What the backbones are made of: options, convolution, normalisation, pooling, DropBlock.

`PLAIN` holds the arithmetic as a paper would write it. What runs is one of its two faster forms in `layers_fast`;
`operations` chooses by the kind of device, except within `plain_form`.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax import layers_fast
from mtl_jax.errors import ConfigError
from mtl_jax.layers_fast import Activation, Operations, float32_at_least, over_devices
from mtl_jax.parallel import on_cpu
from mtl_jax.types import Array

LEAK = 0.1
BATCH_STATISTICS = ("running", "batch", "train")
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, LEAK),
    "relu6": lambda x: jnp.where(x >= 6, 6, jax.nn.relu(x)),  # slope 0 at 0 and at 6, as PyTorch's
    "none": lambda x: x,
}
XAVIER_INIT = nn.initializers.xavier_uniform()
PYTORCH_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of all backbones; `create_backbone` documents each but the last two, which are the backbone's own.

    same_padding: convolutions are padded as TensorFlow's 'SAME', instead of by size // 2 on every side.
    """

    width: float = 1.0
    norm: str = "batch"
    activation: str = "relu"
    dropout: float = 0.0
    dropblock: int = 0
    dtype: Any = None
    conv_bias: bool | None = None
    norm_scale: bool = True
    norm_bias: bool = True
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    norm_unbiased: bool = False
    resize: int = 0
    axis_name: str | None = None
    kernel_init: Callable = XAVIER_INIT
    same_padding: bool = False

    def widths(self, *channels: int) -> list[int]:
        """The channel counts scaled by `width`, at least 1."""
        return [max(1, round(c * self.width)) for c in channels]


def statistics_mode(train: bool, batch_statistics: str | None) -> str:
    """Batch norm's mode of a call: the one that is asked for, or by default 'train' or 'running'.

    Raises:
      ConfigError: an unknown mode.
    """
    mode = batch_statistics or ("train" if train else "running")
    if mode not in BATCH_STATISTICS:
        raise ConfigError(f"batch_statistics is {mode!r}, expected one of {', '.join(BATCH_STATISTICS)}")
    return mode


def plain_moments(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and biased variance of each channel: maps [B, H, W, C] -> [C], [C]; over a mapped axis, too."""
    mean = over_devices(x.mean((0, 1, 2)), axis_name)
    return mean, over_devices(jnp.square(x - mean).mean((0, 1, 2)), axis_name)


def plain_normalize(
    x: Array, mean: Array, factor: Array, bias: Array, activation: Activation, pool: bool, constant: bool
) -> Array:
    """The activation of (x - mean) factor + bias, then a max-pool: [B, H, W, C], values [C] -> [B, H, W, C]."""
    y = activation(((float32_at_least(x) - mean) * factor + bias).astype(x.dtype))
    return plain_max_pool(y, False) if pool else y


def plain_add_bias(x: Array, bias: Array, cancelled: bool) -> Array:
    """x + bias, added in the wider type of both: the gradient of bias is a sum over all pixels."""
    return (x + bias).astype(x.dtype)


def plain_activate(x: Array, activation: Activation) -> Array:
    """The activation of x."""
    return activation(x)


def plain_max_pool(x: Array, same: bool) -> Array:
    """2 x 2 max-pool with stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C], rounded up with `same`."""
    return nn.max_pool(x, window_shape=(2, 2), strides=(2, 2), padding="SAME" if same else "VALID")


PLAIN = Operations(plain_moments, plain_normalize, plain_add_bias, plain_activate, plain_max_pool, layers_fast.grouped)


_is_plain = contextvars.ContextVar("plain form", default=False)


def operations() -> Operations:
    """The operations in the form for JAX's default devices. Nothing else in the layers depends on the device."""
    if _is_plain.get():
        return PLAIN
    return layers_fast.CPU if on_cpu() else layers_fast.ACCELERATOR


@contextlib.contextmanager
def plain_form() -> Iterator[None]:
    """Layers called inside it take their plain form: for converters, and to compare the fast forms with.

    Trace anew inside it: what `jax.jit` has compiled before or inside keeps its form.
    """
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def activate(activation: str, x: Array) -> Array:
    """The activation by its name, for a result that the backward pass keeps anyway, such as a block's output."""
    return operations().activate(x, ACTIVATIONS[activation])


def max_pool(x: Array, same: bool = False) -> Array:
    """2 x 2 max-pool with stride 2; an odd last row or column is dropped, or kept as it is with `same`."""
    return operations().max_pool(x, same)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, in the three modes that the MTL implementations use.

    `running` normalises by the stored averages. `batch` normalises by the statistics of the current batch and stores
    nothing. `train` does the same and moves the averages: new = momentum * old + (1 - momentum) * batch.

    The variance that normalises is the biased one. With `unbiased`, the averaged one is n / (n - 1) times as large
    (PyTorch's rule), which Linen's own BatchNorm cannot do. `axis_name`: the mapped axis that the batch is spread
    over. Last come the activation and, with `pool`, a 2 x 2 max-pool.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    use_scale: bool = True
    use_bias: bool = True
    unbiased: bool = False
    axis_name: str | None = None
    pool: bool = False
    activation: str = "none"

    @nn.compact
    def __call__(self, x: Array, batch_statistics: str) -> Array:
        features, is_constant = x.shape[-1], batch_statistics == "running"
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if is_constant:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = operations().moments(float32_at_least(x), self.axis_name)
        if batch_statistics == "train" and not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            count = x.size // features * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
            averaged = var * (count / (count - 1)) if self.unbiased and count > 1 else var
            running_mean.value = _move(running_mean.value, mean, self.momentum)
            running_var.value = _move(running_var.value, averaged, self.momentum)
        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,)) if self.use_bias else jnp.zeros_like(mean)
        return operations().normalize(x, mean, factor, bias, ACTIVATIONS[self.activation], self.pool, is_constant)


def _move(old: Array, new: Array, momentum: float) -> Array:
    return momentum * old + (1 - momentum) * jax.lax.stop_gradient(new)


def norm(
    options: Options, x: Array, batch_statistics: str, *, name: str, pool: bool = False, active: bool = False
) -> Array:
    """The options' normalisation, then their activation with `active`, then a 2 x 2 max-pool with `pool`."""
    o = options
    activation = o.activation if active else "none"
    if o.norm == "batch":
        module = BatchNorm(
            o.norm_epsilon,
            o.norm_momentum,
            use_scale=o.norm_scale,
            use_bias=o.norm_bias,
            unbiased=o.norm_unbiased,
            axis_name=o.axis_name,
            pool=pool,
            activation=activation,
            name=name,
        )
        return module(x, batch_statistics)
    if o.norm == "layer":  # over H, W, C of an image, untrained scale 1 and offset 0, as in the TensorFlow code
        x = nn.LayerNorm(
            1e-12,
            o.dtype,
            use_bias=False,
            use_scale=False,
            reduction_axes=(1, 2, 3),
            use_fast_variance=False,
            name=name,
        )(x)
    return ACTIVATIONS[activation](max_pool(x) if pool else x)


class Conv(nn.Module):
    """A convolution padded by size // 2 on every side, or as 'SAME' says, which pads only one side at stride 2.

    Its parameters are those of Linen's own: `kernel` [size, size, in, features] and, with `use_bias`, `bias`. dtype: of
    the computation; None: of images and kernel. cancelled: the bias has no effect, as a batch norm takes it off again.
    depthwise: each channel has a kernel of its own, [size, size, 1, features]; `features` is the number of channels.
    """

    features: int
    size: int
    stride: int
    use_bias: bool
    kernel_init: Callable
    bias_init: Callable
    dtype: Any = None
    cancelled: bool = False
    depthwise: bool = False
    same: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = self.size, self.size, 1 if self.depthwise else x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        images, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        layout, padding, strides = ("NHWC", "HWIO", "NHWC"), [(self.size // 2,) * 2] * 2, (self.stride,) * 2
        if self.same:
            padding = jax.lax.padtype_to_pads(images.shape[1:3], shape[:2], strides, "SAME")
        if self.depthwise:
            y = operations().depthwise(images, kernel, self.stride, padding)
        else:
            y = jax.lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=layout)
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return operations().add_bias(y, bias, self.cancelled)


def conv_norm(
    options: Options, x: Array, features: int, size: int, batch_statistics: str, *,
    names: tuple[str, str], stride: int = 1, bias: bool, pool: bool = False, active: bool = True,
    depthwise: bool = False,
) -> Array:  # fmt: skip
    """A convolution and the normalisation right after it (`conv`, `norm`), with a name each.

    Batch norm subtracts its batch's mean, and with it the convolution's bias, whose gradient (over all devices) is 0.
    """
    cancelled = options.norm == "batch" and batch_statistics != "running"
    x = conv(
        options, x, features, size, name=names[0], stride=stride, bias=bias, cancelled=cancelled, depthwise=depthwise
    )
    return norm(options, x, batch_statistics, name=names[1], pool=pool, active=active)


def conv(
    options: Options, x: Array, features: int, size: int, *,
    name: str, stride: int = 1, bias: bool, cancelled: bool = False, depthwise: bool = False,
) -> Array:  # fmt: skip
    """A convolution with the options' initialisation, type and rule on biases."""
    pytorch, inputs = options.kernel_init is PYTORCH_INIT, 1 if depthwise else x.shape[-1]
    return Conv(
        features,
        size,
        stride,
        use_bias=bias if options.conv_bias is None else options.conv_bias,
        kernel_init=options.kernel_init,
        bias_init=_uniform_by_fan_in(size * size * inputs) if pytorch else nn.initializers.zeros,
        dtype=options.dtype,
        cancelled=cancelled,
        depthwise=depthwise,
        same=options.same_padding,
        name=name,
    )(x)


def _uniform_by_fan_in(fan_in: int) -> Callable:
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class DropBlock(nn.Module):
    """Sets squares of size x size pixels of a map to 0 (Ghiasi et al., 2018), by the rule of MetaOptNet and RFS.

    Each channel has its own squares. Their corners are drawn so that about `rate` of the pixels is dropped. The other
    pixels are multiplied by the number of all pixels over that of kept ones, on this device. Squares are always whole;
    in the published code some pixels are missing if the number of squares and size squared have a common factor.
    """

    rate: float
    size: int

    @nn.compact
    def __call__(self, x: Array, share: Array | float = 1.0) -> Array:
        """Maps [B, H, W, C]; share: factor on the rate, 0 to 1. Raises ConfigError if maps are smaller than `size`."""
        b, h, w, c = x.shape
        room = h - self.size + 1, w - self.size + 1
        if min(room) < 1:
            raise ConfigError(
                f"backbone option dropblock is {self.size}, but a map it drops from has {h} x {w} pixels; "
                "publications have 5 for images of 84 pixels, 2 for 32"
            )
        chance = self.rate * share * (h * w) / (self.size**2 * room[0] * room[1])
        corners = jax.random.bernoulli(self.make_rng("dropout"), jnp.minimum(chance, 1), (b, *room, c))
        kept = ~squares(corners, self.size)
        factor = kept.size / jnp.maximum(kept.sum(), 1)
        return jnp.where(kept, x * factor.astype(x.dtype), 0)


def squares(corners: Array, size: int) -> Array:
    """Which pixels lie in squares with these top left corners: bool [B, H, W, C] -> [B, H + size - 1, ..., C]."""
    margins = ((0, 0), (size - 1, size - 1), (size - 1, size - 1), (0, 0))
    return jax.lax.reduce_window(corners, False, jax.lax.bitwise_or, (1, size, size, 1), (1, 1, 1, 1), margins)


def average_map(x: Array) -> Array:
    """The average over the map, [B, H, W, C] -> [B, C], in float32 at least."""
    return float32_at_least(x).mean((1, 2))

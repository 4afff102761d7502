"""What the backbones are made of: options, convolution, normalisation, pooling."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import ConfigError
from mtl_jax.parallel import on_cpu
from mtl_jax.types import Array

LEAK = 0.1
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, LEAK),
    "none": lambda x: x,
}
# A tangent times their derivative; y is their result or what they are taken of, whose signs are the same.
SLOPES = {
    "relu": lambda y, tangent: jnp.where(y > 0, tangent, 0),
    "leaky_relu": lambda y, tangent: jnp.where(y >= 0, tangent, LEAK * tangent),
    "none": lambda y, tangent: tangent,
}
XAVIER_INIT = nn.initializers.xavier_uniform()
PYTORCH_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class Options:
    """What all backbones have in common; `create_backbone` documents each field."""

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

    def widths(self, *channels: int) -> list[int]:
        """The channel counts scaled by `width`, at least 1."""
        return [max(1, round(c * self.width)) for c in channels]


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, in the three modes that the MTL implementations use.

    `running` uses the stored averages; `batch` the statistics of the batch at hand and stores nothing; `train` the
    statistics of the batch at hand, and moves the averages: new = momentum * old + (1 - momentum) * batch. It always
    normalises with the biased variance. With `unbiased` it averages the unbiased one, n / (n - 1) times as large
    (PyTorch's rule), which Linen's own BatchNorm cannot. With `axis_name` the batch is spread over that mapped axis;
    with `pool` the result is max-pooled 2 x 2; last comes the activation.
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
        features = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if batch_statistics == "running":
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = _moments(_float32_at_least(x), self.axis_name)
        if batch_statistics == "train" and not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            count = x.size // features * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
            seen = var * (count / (count - 1)) if self.unbiased and count > 1 else var
            running_mean.value = _move(running_mean.value, mean, self.momentum)
            running_var.value = _move(running_var.value, seen, self.momentum)
        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,)) if self.use_bias else jnp.zeros_like(mean)
        if self.pool:
            # Max-pooling before the affine map is the same as after it, once the sign of each factor is on the pixels;
            # it saves three quarters of all that follows.
            sign = jnp.where(factor < 0, -1, 1).astype(x.dtype)
            x, mean, factor = max_pool(x * sign), mean * sign, jnp.abs(factor)
        # In float32 at least: the gradients of factor and bias are sums over all pixels, too long for bfloat16.
        wide = _float32_at_least(x)
        if batch_statistics == "running":  # one multiply-add per element, which XLA fuses into the convolution's output
            y = wide * as_map(factor, x.shape) + as_map(bias - mean * factor, x.shape)
            return ACTIVATIONS[self.activation](y.astype(x.dtype))
        # The same value and gradient as (x - mean) factor + bias, whose gradient by mean would be one more sum over all
        # pixels: factor times that of bias.
        offset = bias - (mean - jax.lax.stop_gradient(mean)) * factor
        form = _activated_affine if on_cpu() else _activated_affine_twice
        return form(wide, mean, factor, offset, self.activation, x.dtype)


def _activated_affine(x: Array, mean: Array, factor: Array, offset: Array, activation: str, dtype: Any) -> Array:
    """The activation of (x - mean) factor + offset, which is rounded to dtype, with no gradient by mean.

    x: [B, H, W, C]; mean, factor, offset: [C].
    """
    mean = jax.lax.stop_gradient(mean)
    y = (x - as_map(mean, x.shape)) * as_map(factor, x.shape) + as_map(offset, x.shape)
    return ACTIVATIONS[activation](y.astype(dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _activated_affine_twice(x: Array, mean: Array, factor: Array, offset: Array, activation: str, dtype: Any) -> Array:
    """`_activated_affine` for accelerators, where reading and writing maps is what takes the time.

    What comes back through the activation is used by the sums over pixels that are the gradients of factor and offset,
    and by the gradient by x. XLA would write it out: three passes over maps more than when each makes it from x, which
    both read anyway.
    """
    return _activated_affine(x, mean, factor, offset, activation, dtype)


@_activated_affine_twice.defjvp
def _activated_affine_twice_jvp(
    activation: str, dtype: Any, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    """Through the activation twice, so that nothing is shared.

    Its argument is written in two ways which XLA (jaxlib 0.11.2) takes neither for one another nor for the forward
    pass's. They differ by rounding at most, which matters at a kink alone. A barrier on x instead has x written out.
    """
    x, mean, *values = primals
    # `offset` has the gradient by the mean, in the next order too.
    mean, factor, offset = (as_map(value, x.shape) for value in (jax.lax.stop_gradient(mean), *values))
    by_x, _, by_factor, by_offset = tangents
    # Of several tasks (vmap) the sums over pixels are needed by task, for the variance's gradient. Without a barrier
    # XLA adds those over all tasks up from the maps again.
    by_factor, by_offset = (as_map(jax.lax.optimization_barrier(t), x.shape) for t in (by_factor, by_offset))
    slope = SLOPES[activation]
    through_values = slope(((mean - x) * -factor + offset).astype(dtype), (x - mean) * by_factor + by_offset)
    through_x = slope((offset - (mean - x) * factor).astype(dtype), by_x * factor)
    return _activated_affine_twice(*primals, activation, dtype), (through_values + through_x).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def as_map(values: Array, shape: tuple[int, ...]) -> Array:
    """Values by channel [C] as maps [B, H, W, C]; on a CPU the gradient is made as the second half of `channel_sum`.

    Not its first half: where a map is pooled, what is added up in blocks would be computed a second time.
    """
    return jnp.broadcast_to(values, shape)


@as_map.defjvp
def _as_map_jvp(shape: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Written so that its transpose is a product with ones for each image, and a sum over images."""
    if not on_cpu():
        return as_map(*primals, shape), jnp.broadcast_to(*tangents, shape)
    ones = jnp.ones((shape[0], math.prod(shape[1:-1]), 1), tangents[0].dtype)
    maps = ones @ jnp.broadcast_to(*tangents, (shape[0], 1, shape[-1]))
    return as_map(*primals, shape), maps.reshape(shape)


def channel_sum(x: Array) -> Array:
    """The sum of maps [B, H, W, C] over all axes but the last: [C].

    On a CPU XLA splits a sum of more than 32 numbers, so that what is added up has to be written to memory first, and
    adds lines of C numbers. There images are added up in blocks (of 1 where no number up to 32 divides B), and what is
    left by products with ones, one a block: a single one would add up hundreds of thousands of numbers in turn, too
    many for float32.
    """
    if not on_cpu():
        return x.sum(tuple(range(x.ndim - 1)))
    block = max(size for size in range(1, 33) if len(x) % size == 0)
    blocks = x.reshape(-1, block, *x.shape[1:]).sum(1).reshape(len(x) // block, -1, x.shape[-1])
    return (jnp.ones((len(blocks), 1, blocks.shape[1]), x.dtype) @ blocks).sum((0, 1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _moments(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and biased variance per channel; over devices, too.

    On a CPU in two passes. Elsewhere, where reading the maps is what takes the time, in one: the squares are of the
    distance from the first pixel, since from 0 they lose precision badly where the mean is far from it.
    """
    count = x.size // x.shape[-1]
    if on_cpu():
        mean = _over_devices(channel_sum(x) / count, axis_name)
        return mean, _over_devices(channel_sum(jnp.square(x - mean)) / count, axis_name)
    start = x[(0,) * (x.ndim - 1)]
    distance = x - start
    offset = channel_sum(distance) / count
    own = start + offset  # this device's mean
    var = jnp.maximum(channel_sum(jnp.square(distance)) / count - jnp.square(offset), 0)
    mean = _over_devices(own, axis_name)
    return mean, _over_devices(var + jnp.square(own - mean), axis_name)


@_moments.defjvp
def _moments_jvp(
    axis_name: str | None, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The variance's derivative by the mean is 0, which saves a sum over all pixels on the way back."""
    (x,), (tangent,) = primals, tangents
    mean, var = _moments(x, axis_name)
    count = x.size // x.shape[-1]
    slopes = channel_sum(tangent), 2 * channel_sum((x - as_map(mean, x.shape)) * tangent)
    return (mean, var), tuple(_over_devices(slope / count, axis_name) for slope in slopes)


def _over_devices(value: Array, axis_name: str | None) -> Array:
    return jax.lax.pmean(value, axis_name) if axis_name else value


def _move(old: Array, new: Array, momentum: float) -> Array:
    return momentum * old + (1 - momentum) * jax.lax.stop_gradient(new)


def activate(activation: str, x: Array) -> Array:
    """The activation by its name; for what is kept for the backward pass anyway, such as a block's output."""
    return ACTIVATIONS[activation](x) if on_cpu() else _activate_once(x, activation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _activate_once(x: Array, activation: str) -> Array:
    """Its gradient reads the result."""
    return ACTIVATIONS[activation](x)


@_activate_once.defjvp
def _activate_once_jvp(activation: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Behind a barrier, without which XLA takes the slope at x and reads all again that x is made of."""
    y = _activate_once(*primals, activation)
    return y, SLOPES[activation](jax.lax.optimization_barrier(y), *tangents)


def norm(
    options: Options, x: Array, batch_statistics: str, *, name: str, pool: bool = False, active: bool = False
) -> Array:
    """The normalisation that the options name; with `pool`, then a 2 x 2 max-pool; with `active`, their activation."""
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
    """A convolution padded by size // 2 on every side ('SAME' would pad only one side at stride 2).

    Its parameters are those of Linen's own: `kernel` [size, size, in, features] and, with `use_bias`, `bias`, which is
    added in float32: its gradient is a sum over all pixels of all images, too long for bfloat16. dtype: of the rest of
    the computation; None: of images and kernel. With `stop_bias` that gradient is 0 and costs nothing.
    """

    features: int
    size: int
    stride: int
    use_bias: bool
    kernel_init: Callable
    bias_init: Callable
    dtype: Any = None
    stop_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = self.size, self.size, x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        images, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        numbers, around = ("NHWC", "HWIO", "NHWC"), [(self.size // 2,) * 2] * 2
        y = jax.lax.conv_general_dilated(images, kernel, (self.stride,) * 2, around, dimension_numbers=numbers)
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        if self.stop_bias:
            bias = jax.lax.stop_gradient(bias)
        return (y + as_map(bias, y.shape)).astype(y.dtype)


def conv_norm(
    options: Options,
    x: Array,
    features: int,
    size: int,
    batch_statistics: str,
    *,
    names: tuple[str, str],
    stride: int = 1,
    bias: bool,
    pool: bool = False,
    active: bool = True,
) -> Array:
    """A convolution and at once the normalisation (`conv`, `norm`), named apart.

    Batch norm takes its own batch's mean off, and a bias with it, whose gradient (over all devices) is therefore 0: on
    a CPU it comes out as what rounding leaves of a sum over all pixels, on accelerators it is not computed.
    """
    cancelled = options.norm == "batch" and batch_statistics != "running"
    stop_bias = cancelled and not on_cpu()
    x = conv(options, x, features, size, name=names[0], stride=stride, bias=bias, stop_bias=stop_bias)
    return norm(options, x, batch_statistics, name=names[1], pool=pool, active=active)


def conv(
    options: Options,
    x: Array,
    features: int,
    size: int,
    *,
    name: str,
    stride: int = 1,
    bias: bool,
    stop_bias: bool = False,
) -> Array:
    """A convolution with the options' initialisation, type and rule on biases."""
    pytorch = options.kernel_init is PYTORCH_INIT
    bias_init = _uniform_by_fan_in(size * size * x.shape[-1]) if pytorch else nn.initializers.zeros
    use_bias = bias if options.conv_bias is None else options.conv_bias
    how = use_bias, options.kernel_init, bias_init, options.dtype, stop_bias
    return Conv(features, size, stride, *how, name=name)(x)


def _uniform_by_fan_in(fan_in: int) -> Callable:
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def max_pool(x: Array, same: bool = False) -> Array:
    """2 x 2 max-pool with stride 2; an odd last row or column is dropped, or kept as it is with `same`.

    Not XLA's own, whose gradient (select-and-scatter) is slow on CPUs; nor with the gradient of `max` over axes, which
    divides by the number of pixels equal to the largest: where XLA computes the map twice with another rounding, that
    number is 0 and the gradient NaN.
    """
    b, h, w, c = x.shape
    if same:
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=-jnp.inf)
        h, w = h + h % 2, w + w % 2
    return _largest(x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c))


@jax.custom_jvp
def _largest(x: Array) -> Array:
    """The largest of each window: [B, H, 2, W, 2, C] -> [B, H, W, C].

    Its gradient goes to one pixel of the window, however they are rounded: the first of equals by rows, as PyTorch's.
    """
    return x.max((2, 4))


@_largest.defjvp
def _largest_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    rows = x.max(4)
    top, left = rows[:, :, 0] >= rows[:, :, 1], x[..., 0, :] >= x[..., 1, :]
    if on_cpu():
        chosen = jnp.stack([top, ~top], 2)[..., None, :] & jnp.stack([left, ~left], 4)
    else:  # nothing to write out: each pixel's comparisons are made again where they are used
        first = jnp.array([True, False])
        chosen = (top[:, :, None, :, None] == first[:, None, None, None]) & (left[..., None, :] == first[:, None])
    return _largest(x), jnp.where(chosen, tangent, 0).sum((2, 4))


class DropBlock(nn.Module):
    """Sets squares of size x size pixels of a map to 0 (Ghiasi et al., 2018), by MetaOptNet's and RFS' rule.

    Each channel has its own squares. Their corners are drawn so that about `rate` of the pixels is dropped; what is
    kept is scaled by the count of all pixels over that of the kept ones, on this device. The published code misses
    some pixels of its squares where their number and size squared have a common factor, here they are whole.
    """

    rate: float
    size: int

    @nn.compact
    def __call__(self, x: Array, share: Array | float = 1.0) -> Array:
        """Maps [B, H, W, C]; share: of the rate, 0 to 1. Raises ConfigError where the maps are smaller than `size`."""
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
    """Which pixels lie in a square, by its top left corner: bool [B, H, W, C] -> [B, H + size - 1, W + size - 1, C]."""
    around = ((0, 0), (size - 1, size - 1), (size - 1, size - 1), (0, 0))
    return jax.lax.reduce_window(corners, False, jax.lax.bitwise_or, (1, size, size, 1), (1, 1, 1, 1), around)


def average_map(x: Array) -> Array:
    """Average over the map, in float32 at least."""
    return _float32_at_least(x).mean((1, 2))


def _float32_at_least(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

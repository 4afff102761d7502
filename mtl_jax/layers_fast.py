"""The operations of `layers` a second time: written for CPUs and for accelerators.

Each computes what its plain form in `layers.PLAIN` does, derivatives of all orders included (tests/audit.py). On a CPU
the time goes into sums over pixels, on an accelerator into reading and writing maps.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.types import Array

Activation = Callable[[Array], Array]
Padding = Sequence[tuple[int, int]]  # pixels before and after, of rows and of columns


class Operations(NamedTuple):
    """What the layers are made of, besides the convolution. Maps are [B, H, W, C], values by channel [C].

    moments: (maps, axis_name) -> the mean and the biased variance of each channel, over that mapped axis as well.
    normalize: (maps, mean, factor, bias, activation, pool, constant) -> the activation of (maps - mean) factor + bias,
      rounded to the type of the maps, then max-pooled 2 x 2 with `pool`. `constant`: no gradient comes back through
      mean and factor to the maps.
    add_bias: (maps, bias, cancelled) -> maps + bias; `cancelled`: the next layer takes the bias off again.
    activate: (maps, activation) -> the activated maps.
    max_pool: (maps, same) -> 2 x 2 max-pooled maps; an odd last row or column is dropped, or kept with `same`.
    depthwise: (maps, kernel [k, k, 1, C], stride, padding by side) -> each channel convolved with its own k x k kernel.
    """

    moments: Callable[[Array, str | None], tuple[Array, Array]]
    normalize: Callable[[Array, Array, Array, Array, Activation, bool, bool], Array]
    add_bias: Callable[[Array, Array, bool], Array]
    activate: Callable[[Array, Activation], Array]
    max_pool: Callable[[Array, bool], Array]
    depthwise: Callable[[Array, Array, int, Padding], Array]


def float32_at_least(x: Array) -> Array:
    """The array in float32, or as it is where it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def over_devices(value: Array, axis_name: str | None) -> Array:
    """The mean over a mapped axis; the value itself without one."""
    return jax.lax.pmean(value, axis_name) if axis_name else value


# Sums over pixels, and values by channel spread over them


def channel_sum(x: Array) -> Array:
    """The sum of maps [B, H, W, C] over all axes but the last, [C], for CPUs.

    XLA splits a sum of more than 32 numbers on a CPU: it first writes the terms to memory, and adds lines
    of C numbers. So images are added up in blocks (of 1 if no number up to 32 divides B), and the rest by products with
    ones, one a block. A single product would add up hundreds of thousands of numbers in turn, too many for float32.
    """
    block = max(size for size in range(1, 33) if len(x) % size == 0)
    blocks = x.reshape(-1, block, *x.shape[1:]).sum(1).reshape(len(x) // block, -1, x.shape[-1])
    return (jnp.ones((len(blocks), 1, blocks.shape[1]), x.dtype) @ blocks).sum((0, 1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def as_map(values: Array, shape: tuple[int, ...]) -> Array:
    """Values by channel [C] as maps [B, H, W, C], for CPUs: its gradient is the second half of `channel_sum`.

    Not its first half: where a map is pooled, what is added up in blocks would be computed a second time.
    """
    return jnp.broadcast_to(values, shape)


@as_map.defjvp
def _as_map_jvp(shape: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Written so that its transpose is a product with ones for each image, and a sum over images."""
    ones = jnp.ones((shape[0], math.prod(shape[1:-1]), 1), tangents[0].dtype)
    maps = ones @ jnp.broadcast_to(*tangents, (shape[0], 1, shape[-1]))
    return as_map(*primals, shape), maps.reshape(shape)


def _add_bias(x: Array, bias: Array, cancelled: bool) -> Array:
    """For CPUs. The gradient of a cancelled bias is computed: it is what rounding leaves of a sum over all pixels."""
    return (x + as_map(bias, x.shape)).astype(x.dtype)


def _add_bias_once(x: Array, bias: Array, cancelled: bool) -> Array:
    """For accelerators. The gradient of a cancelled bias is 0, so it is not computed."""
    return (x + (jax.lax.stop_gradient(bias) if cancelled else bias)).astype(x.dtype)


# Moments


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def moments_in_two_passes(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """`Operations.moments` for CPUs."""
    count = x.size // x.shape[-1]
    mean = over_devices(channel_sum(x) / count, axis_name)
    return mean, over_devices(channel_sum(jnp.square(x - mean)) / count, axis_name)


@moments_in_two_passes.defjvp
def _moments_in_two_passes_jvp(axis_name, primals, tangents):
    mean, var = moments_in_two_passes(*primals, axis_name)
    return (mean, var), _moments_tangents(*primals, *tangents, as_map(mean, primals[0].shape), channel_sum, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def moments_in_one_pass(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """`Operations.moments` for accelerators.

    The squares are of the distance from the first pixel: from 0 they lose precision badly where the mean is far from 0.
    """
    count = x.size // x.shape[-1]
    start = x[(0,) * (x.ndim - 1)]
    distance = x - start
    offset = _pixel_sum(distance) / count
    own = start + offset  # this device's mean
    var = jnp.maximum(_pixel_sum(jnp.square(distance)) / count - jnp.square(offset), 0)
    mean = over_devices(own, axis_name)
    return mean, over_devices(var + jnp.square(own - mean), axis_name)


@moments_in_one_pass.defjvp
def _moments_in_one_pass_jvp(axis_name, primals, tangents):
    mean, var = moments_in_one_pass(*primals, axis_name)
    return (mean, var), _moments_tangents(*primals, *tangents, mean, _pixel_sum, axis_name)


def _pixel_sum(x: Array) -> Array:
    return x.sum(tuple(range(x.ndim - 1)))


def _moments_tangents(
    x: Array, tangent: Array, mean: Array, total: Callable[[Array], Array], axis_name: str | None
) -> tuple[Array, Array]:
    """Tangents of mean and variance. The variance's derivative by the mean is 0: a sum over all pixels less."""
    slopes = total(tangent), 2 * total((x - mean) * tangent)
    of_mean, of_variance = (over_devices(slope / (x.size // x.shape[-1]), axis_name) for slope in slopes)
    return of_mean, of_variance


# Normalisation


def _normalize(
    x: Array, mean: Array, factor: Array, bias: Array, activation: Activation, pool: bool, constant: bool, *,
    spread: Callable[..., Array], affine: Callable[..., Array], max_pool: Callable[..., Array],
) -> Array:  # fmt: skip
    """`Operations.normalize`, by a device's way to spread values by channel, to apply them, and to pool."""
    if pool:
        # Max-pooling before the affine map is the same as after it, once the sign of each factor is on the pixels;
        # it saves three quarters of all that follows.
        sign = jnp.where(factor < 0, -1, 1).astype(x.dtype)
        x, mean, factor = max_pool(x * sign, False), mean * sign, jnp.abs(factor)
    # In float32 at least: the gradients of factor and bias are sums over all pixels, too long for bfloat16.
    wide = float32_at_least(x)
    if constant:  # one multiply-add per element, which XLA fuses into the convolution's output
        y = wide * spread(factor, x.shape) + spread(bias - mean * factor, x.shape)
        return activation(y.astype(x.dtype))
    # The same value and gradient as (x - mean) factor + bias, whose gradient by mean would be one more sum over all
    # pixels: factor times that of bias.
    offset = bias - (mean - jax.lax.stop_gradient(mean)) * factor
    return affine(wide, jax.lax.stop_gradient(mean), factor, offset, activation, x.dtype)


def _affine(x: Array, mean: Array, factor: Array, offset: Array, activation: Activation, dtype: Any) -> Array:
    """For CPUs: the activation of (x - mean) factor + offset, rounded to `dtype` first."""
    y = (x - as_map(mean, x.shape)) * as_map(factor, x.shape) + as_map(offset, x.shape)
    return activation(y.astype(dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def affine_twice(x: Array, mean: Array, factor: Array, offset: Array, activation: Activation, dtype: Any) -> Array:
    """For accelerators: as `_affine`, with no gradient by mean.

    What comes back through the activation is used by the gradients of factor and offset, sums over pixels, and by the
    gradient by x. XLA would write it out: three passes over maps more than when each computes it from x, which both
    read anyway.
    """
    return activation(((x - mean) * factor + offset).astype(dtype))


@affine_twice.defjvp
def _affine_twice_jvp(
    activation: Activation, dtype: Any, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    """Through the activation twice, so that nothing is shared.

    Its argument is written in two ways which XLA (jaxlib 0.11.2) takes neither for one another nor for the forward
    pass's. They differ by rounding at most, which matters at a kink alone. A barrier on x would have x written out.
    """
    x, mean, *values = primals
    # `offset` has the gradient by the mean, in the next order too.
    mean, factor, offset = (jnp.broadcast_to(v, x.shape) for v in (jax.lax.stop_gradient(mean), *values))
    by_x, _, by_factor, by_offset = tangents
    # With several tasks (vmap) the sums over pixels are needed by task, for the variance's gradient. Without a barrier
    # XLA computes those over all tasks from the maps again.
    by_factor, by_offset = (jnp.broadcast_to(jax.lax.optimization_barrier(t), x.shape) for t in (by_factor, by_offset))
    y, y_again = (mean - x) * -factor + offset, offset - (mean - x) * factor
    through_values = slope(activation, y.astype(dtype), (x - mean) * by_factor + by_offset)
    through_x = slope(activation, y_again.astype(dtype), by_x * factor)
    return affine_twice(*primals, activation, dtype), (through_values + through_x).astype(dtype)


def slope(activation: Activation, y: Array, tangent: Array) -> Array:
    """Tangent times the activation's derivative; `y` may be its input or output: they have the same sign."""
    return jax.jvp(activation, (y.astype(tangent.dtype),), (tangent,))[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def activate_once(x: Array, activation: Activation) -> Array:
    """For accelerators: its gradient reads the result, which is kept for the backward pass anyway."""
    return activation(x)


@activate_once.defjvp
def _activate_once_jvp(activation: Activation, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Behind a barrier, without which XLA takes the slope at x and reads all again that x is made of."""
    y = activate_once(*primals, activation)
    return y, slope(activation, jax.lax.optimization_barrier(y), *tangents)


# Pooling


def _max_pool(x: Array, same: bool, *, largest: Callable[[Array], Array]) -> Array:
    """`Operations.max_pool`, by a device's form of the largest of four.

    Not XLA's own, whose gradient (select-and-scatter) is slow on CPUs; nor with the gradient of `max` over axes, which
    divides by the number of pixels equal to the largest: where XLA computes the map twice with another rounding, that
    number is 0 and the gradient NaN.
    """
    b, h, w, c = x.shape
    if same:
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=-jnp.inf)
        h, w = h + h % 2, w + w % 2
    return largest(x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c))


@jax.custom_jvp
def largest(x: Array) -> Array:
    """For CPUs: the largest of each window, [B, H, 2, W, 2, C] -> [B, H, W, C].

    Its gradient goes to one pixel of the window, however they are rounded: the first of equals by rows, as PyTorch's.
    """
    return x.max((2, 4))


@largest.defjvp
def _largest_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    top, left = _first_is_largest(*primals)
    chosen = jnp.stack([top, ~top], 2)[..., None, :] & jnp.stack([left, ~left], 4)
    return largest(*primals), jnp.where(chosen, *tangents, 0).sum((2, 4))


@jax.custom_jvp
def largest_compared(x: Array) -> Array:
    """For accelerators: as `largest`, but each pixel's comparisons are made again where they are used, not stored."""
    return x.max((2, 4))


@largest_compared.defjvp
def _largest_compared_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    top, left = _first_is_largest(*primals)
    first = jnp.array([True, False])
    chosen = (top[:, :, None, :, None] == first[:, None, None, None]) & (left[..., None, :] == first[:, None])
    return largest_compared(*primals), jnp.where(chosen, *tangents, 0).sum((2, 4))


def _first_is_largest(x: Array) -> tuple[Array, Array]:
    """Whether a window's largest pixel is in its first row, and, of each row, in its first column."""
    rows = x.max(4)
    return rows[:, :, 0] >= rows[:, :, 1], x[..., 0, :] >= x[..., 1, :]


# Depthwise convolution


def grouped(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """`Operations.depthwise` as XLA's convolution with a group for each channel."""
    layout, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
    strides = stride, stride
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=groups
    )


def shifted(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """`Operations.depthwise` for CPUs: a multiply-add of the shifted maps for each of the k x k weights.

    XLA's convolution with groups is many times slower there.
    """
    x, size = jnp.pad(x, ((0, 0), *padding, (0, 0))), len(kernel)
    height, width = ((length - size) // stride * stride + 1 for length in x.shape[1:3])
    parts = (
        x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j, 0]
        for i in range(size) for j in range(size)
    )  # fmt: skip
    return functools.reduce(jnp.add, parts)


def _operations(*, moments: Callable, spread: Callable, affine: Callable, add_bias: Callable, activate: Callable,
                largest: Callable, depthwise: Callable) -> Operations:  # fmt: skip
    max_pool = functools.partial(_max_pool, largest=largest)
    normalize = functools.partial(_normalize, spread=spread, affine=affine, max_pool=max_pool)
    return Operations(moments, normalize, add_bias, activate, max_pool, depthwise)


CPU = _operations(
    moments=moments_in_two_passes, spread=as_map, affine=_affine, add_bias=_add_bias,
    activate=lambda x, activation: activation(x), largest=largest, depthwise=shifted,
)  # fmt: skip
ACCELERATOR = _operations(
    moments=moments_in_one_pass, spread=jnp.broadcast_to, affine=affine_twice, add_bias=_add_bias_once,
    activate=activate_once, largest=largest_compared, depthwise=grouped,
)  # fmt: skip

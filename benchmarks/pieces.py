"""python -m benchmarks.pieces

Pieces of a training step in the ways they could be written: sums over the pixels of maps, a convolution's gradient by
its kernel. Milliseconds, the median of several calls that take turns. docs/performance.md says what was chosen.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import layers_fast
from mtl_jax.launch import environment
from mtl_jax.types import Array

MAPS = ((64, 32, 64), (64, 42, 128), (80, 20, 320))  # images, pixels of a side, channels
REPEATS = 9


def ones_sum(x: Array) -> Array:
    """The sum over pixels as one product."""
    return jnp.ones(x.size // x.shape[-1]) @ x.reshape(-1, x.shape[-1])


SUMS: Mapping[str, Callable[[Array], Array]] = {
    "x.sum((0, 1, 2))": lambda x: x.sum((0, 1, 2)),
    "blocks of images, then a product with ones": layers_fast.channel_sum,
    "a product with ones": ones_sum,
}


def convolve(images: Array, kernel: Array) -> Array:
    """3 x 3, stride 1."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=numbers)


def gradient_by_jax(images: Array, kernel: Array, by_output: Array) -> Array:
    """What `jax.grad` makes."""
    return jax.vjp(lambda k: convolve(images, k), kernel)[1](by_output)[0]


def gradient_by_products(images: Array, kernel: Array, by_output: Array) -> Array:
    """A matrix product for each of the nine shifts."""
    padded, side = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), images.shape[1]
    shifts = [padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
    products = [jnp.einsum("bhwi,bhwo->io", shift, by_output) for shift in shifts]
    return jnp.stack(products).reshape(kernel.shape)


KERNELS = {"by jax.grad": gradient_by_jax, "nine matrix products": gradient_by_products}


def milliseconds(ways: Mapping[str, Callable[..., Array]], *inputs: Array) -> dict[str, float]:
    """The median time of a call by the way's name; all must give the same."""
    compiled = {name: jax.jit(way) for name, way in ways.items()}
    first, *others = [np.asarray(way(*inputs)) for way in compiled.values()]
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3, atol=1e-3 * np.abs(first).max())
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(way(*inputs))
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def main(maps: tuple[tuple[int, int, int], ...] = MAPS) -> int:
    """Prints a line a map and way."""
    rng = np.random.default_rng(0)
    print("| map | piece | way | ms |\n| --- | --- | --- | --- |")
    for images, side, channels in maps:
        shape = (images, side, side, channels)
        x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
        kernel = jnp.asarray(rng.normal(size=(3, 3, channels, channels)), jnp.float32)
        sums = {name: lambda x, y, way=way: way((x - 1) * y) for name, way in SUMS.items()}
        found = {
            "sum of a product": milliseconds(sums, x, y),
            "gradient by a kernel": milliseconds(KERNELS, x, kernel, y),
        }
        for piece, ways in found.items():
            for way, value in ways.items():
                print(f"| {' x '.join(map(str, shape))} | {piece} | {way} | {value:.1f} |")
    return 0


if __name__ == "__main__":
    environment.configure_xla()
    environment.keep_freed_memory()
    sys.exit(main())

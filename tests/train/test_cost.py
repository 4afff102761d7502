"""What a computation costs, from its shapes, against what the compiler says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from meta_steps import start, task_batch

from mtl_jax import create_backbone, meta, optimizers
from mtl_jax.train import cost


def test_the_estimate_bounds_the_compilers_own():
    """Memory within the planner's margin of what the compiler says; operations to 10 %."""
    module, side = create_backbone("conv4", width=0.25), 32
    learned, params, stats = start(module, side)
    optimizer = optimizers.adam(1e-3)
    step = functools.partial(
        meta.train_step, embed=meta.Embed(module), inner=meta.Inner(5, 0.1, False), optimizer=optimizer
    )
    arguments = meta.init_state(learned, stats, optimizer), params, task_batch(jax.random.key(2), side)
    planned, compiled = cost.estimate(step, *arguments), jax.jit(step).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    actual = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert actual / cost.MARGIN <= planned.bytes <= 1.2 * actual, (planned.bytes, actual)
    np.testing.assert_allclose(planned.flops, compiled.cost_analysis()["flops"], rtol=0.1)


def test_operations_of_known_computations():
    product = cost.estimate(jnp.dot, jnp.zeros((3, 5)), jnp.zeros((5, 7)))
    assert product.flops == 2 * 3 * 5 * 7 and product.bytes == 4 * (15 + 35 + 21)

    def convolution(images, kernel, padding):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    images, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))
    assert cost.estimate(lambda *a: convolution(*a, "VALID"), images, kernel).flops == 2 * 2 * 36 * 9 * 3 * 4
    # Padding is nothing to multiply with: 8 x 8 places see 22 x 22 pairs of a kernel's element and a pixel.
    assert cost.estimate(lambda *a: convolution(*a, "SAME"), images, kernel).flops == 2 * 2 * 22 * 22 * 3 * 4
    scanned = cost.estimate(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=10)[0], jnp.zeros((4, 4)))
    assert scanned.flops == 10 * 2 * 4**3


def test_what_is_computed_element_by_element_is_not_kept():
    chain = cost.estimate(lambda x: (jnp.tanh(x * 2 + 1) ** 2).sum(), jnp.zeros(1000))
    assert chain.bytes <= 4 * (2 * 1000 + 1)  # the argument, and what the sum reads

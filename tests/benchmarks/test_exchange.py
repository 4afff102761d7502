"""What devices send one another, counted from a trace."""

import functools

import jax
import jax.numpy as jnp
from meta_steps import start, task_batch

from benchmarks.exchange import exchange
from mtl_jax import create_backbone, meta, optimizers


def test_what_devices_send_is_counted_with_the_rounds_that_wait_for_one_another():
    def two_rounds(x):
        mean = jax.lax.pmean(x, "d")
        return jax.lax.psum((x - mean).sum(), "d"), jax.lax.psum(x[:2], "d")

    found = exchange(jax.jit(two_rounds), jnp.zeros(5), axis="d", devices=4)
    assert found == (4 * (5 + 1 + 2), 2)


def test_a_meta_training_step_sends_what_is_learned_once():
    module, side = create_backbone("conv4", width=0.1), 28
    learned, params, stats = start(module, side)
    optimizer = optimizers.adam(1e-3)
    step = functools.partial(
        meta.train_step, embed=meta.Embed(module), inner=meta.Inner(5, 0.1, False), optimizer=optimizer, axis_name="d"
    )
    arguments = meta.init_state(learned, stats, optimizer), params, task_batch(jax.random.key(2), side)
    found = exchange(step, *arguments, axis="d", devices=2)
    floats = sum(leaf.size for leaf in jax.tree.leaves(learned)) + 2  # the loss and the accuracy; frozen averages stay
    assert found == (4 * floats, 1)

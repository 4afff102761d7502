"""Optimisers and schedules, against the rules written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mtl_jax.configs import default

from mtl_jax import optimizers
from mtl_jax.config import build
from mtl_jax.errors import ConfigError

GRADIENTS = np.random.default_rng(0).normal(size=(6, 3))
START = np.array([1.0, -2.0, 0.5])


def run(optimizer, gradients=GRADIENTS, start=START):
    """The parameters after each gradient."""
    params = jnp.asarray(start)
    state, found = optimizer.init(params), []
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(jnp.asarray(gradient), state, params)
        params = params + updates
        found.append(np.asarray(params))
    return np.array(found)


def rates(schedule, steps):
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_constant_schedule():
    np.testing.assert_allclose(rates(optimizers.schedule(0.3), [0, 10**6]), 0.3, rtol=1e-6)


def test_steps_schedule_is_pytorchs():
    """0.1 * 0.2^floor(step / 30): the rate falls with update 30, not before."""
    schedule = optimizers.schedule(0.1, decay="steps", every=30, factor=0.2)
    np.testing.assert_allclose(rates(schedule, [0, 29, 30, 59, 60]), [0.1, 0.1, 0.02, 0.02, 0.004], rtol=1e-5)


def test_steps_schedule_has_tensorflows_floor():
    """Halved every 1,000 updates, never under a tenth of its start."""
    schedule = optimizers.schedule(1e-3, decay="steps", every=1000, factor=0.5, floor=0.1)
    wanted = [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 1e-4, 1e-4]
    np.testing.assert_allclose(rates(schedule, [0, 999, 1000, 2500, 3999, 4000, 20000]), wanted, rtol=1e-5)


def test_steps_schedule_can_begin_later():
    schedule = optimizers.schedule(1.0, decay="steps", every=10, factor=0.5, delay=1)
    np.testing.assert_allclose(rates(schedule, [0, 1, 10, 11, 20, 21]), [1, 1, 1, 0.5, 0.5, 0.25], rtol=1e-6)


def test_cosine_schedule_ends_at_its_floor():
    schedule = optimizers.schedule(2.0, decay="cosine", total=100, floor=0.1)
    wanted = [0.1 * 2 + 0.9 * (1 + np.cos(np.pi * t)) for t in (0, 0.25, 0.5, 1, 1)]
    np.testing.assert_allclose(rates(schedule, [0, 25, 50, 100, 150]), wanted, rtol=1e-5)


def test_a_decay_without_its_period_is_refused():
    with pytest.raises(ConfigError, match="decay_every 0"):
        optimizers.schedule(0.1, decay="steps")


def test_unknown_decay_is_named():
    with pytest.raises(ConfigError, match=r"'linear'.*cosine"):
        optimizers.schedule(0.1, decay="linear")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_pytorchs_nesterov(momentum, float64):
    """g += decay * w; buffer = m * buffer + g; w -= lr * (g + m * buffer)."""
    params, buffer, wanted = START.copy(), np.zeros(3), []
    for gradient in GRADIENTS:
        gradient = gradient + 5e-4 * params
        buffer = momentum * buffer + gradient
        params = params - 0.1 * (gradient + momentum * buffer if momentum else gradient)
        wanted.append(params)
    np.testing.assert_allclose(run(optimizers.sgd(0.1, momentum=momentum, weight_decay=5e-4)), wanted, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adam_is_pytorchs(decay, float64):
    """Bias-corrected moments, eps after the correction, decay added to the gradient; the rate of update t is lr(t)."""
    schedule = optimizers.schedule(0.1, decay="steps", every=2, factor=0.5)
    params, m, v, wanted = START.copy(), 0.0, 0.0, []
    for t, gradient in enumerate(GRADIENTS, 1):
        gradient = gradient + decay * params
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 0.1 * 0.5 ** ((t - 1) // 2)
        params = params - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        wanted.append(params)
    np.testing.assert_allclose(run(optimizers.adam(schedule, weight_decay=decay)), wanted, rtol=1e-9)


def test_groups_have_rates_of_their_own(float64):
    params = {"head": {"kernel": jnp.ones(2)}, "ss": {"a": jnp.ones(2), "b": {"c": jnp.ones(1)}}}
    optimizer = optimizers.by_group({"head": optimizers.sgd(1.0, momentum=0)}, optimizers.sgd(0.1, momentum=0))
    gradients = jax.tree.map(lambda leaf: 2 * leaf, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    np.testing.assert_allclose(updates["head"]["kernel"], [-2, -2])
    np.testing.assert_allclose(np.concatenate(jax.tree.leaves(updates["ss"])), [-0.2] * 3)


def test_a_group_that_is_not_there_is_no_error():
    optimizer = optimizers.by_group({"head": optimizers.adam(1.0)}, optimizers.adam(0.1))
    params = {"ss": {"a": jnp.ones(2)}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["ss"]["a"], -0.1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_weight_decay_pulls_ss_to_the_identity(kind):
    """Without a gradient the scales go to 1, the shifts and all else to 0: also scales that are batch norm's."""
    leaf = {"scale": jnp.array([3.0, -1.0]), "shift": jnp.array([1.0, -1.0])}
    params = {
        "head": {"kernel": jnp.ones(2)},
        "ss": {"block1": {"conv": leaf}},
        "params": {"norm": {"scale": jnp.ones(2)}},
    }
    group = {**default.get_config().meta, "optimizer": kind, "lr": 0.1, "head_lr": 0.1, "weight_decay": 0.5}
    optimizer = build.meta_optimizer(group)
    state, still = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    step = jax.jit(optimizer.update)
    for _ in range(300):
        updates, state = step(still, state, params)
        params = optax.apply_updates(params, updates)
    rest = jax.tree.map(jnp.zeros_like, params)
    rest["ss"]["block1"]["conv"]["scale"] = jnp.ones(2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), params, rest)

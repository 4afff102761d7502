"""Sums over pixels and their gradients are those of plain code, however many images there are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax import layers, layers_fast

SHAPES = [(1, 5, 6, 3), (37, 3, 2, 4), (64, 4, 4, 2)]  # one image, a prime number of them, two blocks


def plain_moments(x):
    axes = tuple(range(x.ndim - 1))
    return x.mean(axes), x.var(axes)


def maps(shape, seed=0):
    return jnp.asarray(3 + np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_and_their_gradients_of_first_and_second_order(float64, on_cpu, shape):
    x, weights = maps(shape), maps((2, shape[-1]), 1)

    def score(moments, x):
        mean, var = moments(x)
        return (weights[0] * mean**2 + weights[1] * jnp.sqrt(var)).sum()

    def twice(moments, x):  # the gradient's own dependence on the maps
        return (jax.grad(functools.partial(score, moments))(x) ** 2 * maps(shape, 2)).sum()

    ours = functools.partial(layers.operations().moments, axis_name=None)
    for found, wanted in zip(ours(x), plain_moments(x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    for order in (score, twice):
        found, wanted = (jax.grad(functools.partial(order, moments))(x) for moments in (ours, plain_moments))
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    tangent = maps(shape, 3)
    found, wanted = (jax.jvp(moments, (x,), (tangent,))[1] for moments in (ours, plain_moments))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_as_maps_have_the_gradient_of_a_broadcast(float64, shape):
    values, x = maps(shape[-1:]), maps((2, *shape), 1)

    def score(spread, values):
        return jax.vmap(lambda x: (jnp.sin(spread(values, x.shape)) * x).sum())(x).sum()

    for orders in (jax.grad, lambda f: jax.grad(lambda v: (jax.grad(f)(v) ** 2).sum())):
        found, wanted = (orders(functools.partial(score, s))(values) for s in (layers_fast.as_map, jnp.broadcast_to))
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_moments_far_from_0_are_exact_to_2e_6(on_cpu):
    """In float32, a mean of 1,000 deviations: squares of the distance from 0 would leave no digit of the variance."""
    x = np.random.default_rng(0).normal(1000, 1, size=(64, 8, 8, 3)).astype(np.float32)
    mean, var = jax.jit(functools.partial(layers.operations().moments, axis_name=None))(x)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), dtype=float), rtol=2e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2), dtype=float), rtol=2e-6)


def test_moments_over_a_mapped_axis_are_those_of_the_whole(on_cpu, float64):
    x = maps((6, 5, 4, 3))
    mapped = jax.vmap(functools.partial(layers.operations().moments, axis_name="devices"), axis_name="devices")
    for found, wanted in zip(mapped(x.reshape(3, 2, 5, 4, 3)), plain_moments(x), strict=True):
        np.testing.assert_allclose(found, jnp.broadcast_to(wanted, found.shape), rtol=1e-12)


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_slopes_are_the_activations_derivatives(name):
    x, tangent = jnp.array([-2, -1e-6, -0.0, 0, 1e-6, 3]), jnp.array([1, 2, 3, 4, 5, 6.0])
    activation = layers.ACTIVATIONS[name]
    y, wanted = jax.jvp(activation, (x,), (tangent,))
    for of in (x, y, y.astype(jnp.bfloat16)):
        np.testing.assert_array_equal(layers_fast.slope(activation, of, tangent), wanted)


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_batch_norms_form_for_accelerators_is_the_plain_one(name, dtype, float64):
    """Values, and gradients of first and second order, of several tasks with values by channel of their own."""
    x, weights, activation = maps((2, 3, 4, 5, 6)) - 3, maps((2, 3, 4, 5, 6), 1), layers.ACTIVATIONS[name]
    mean, factor, offset = maps((3, 2, 6), 2) - 3

    def score(form, x, factor, offset):
        y = jax.vmap(lambda *each: form(*each, activation, dtype))(x, mean, factor, offset)
        return (y.astype(float) ** 2 * weights).sum()

    def twice(form, *given):
        gradients = jax.grad(functools.partial(score, form), (0, 1, 2))(*given)
        return sum((g * jnp.cos(g)).sum() for g in gradients)

    # In bfloat16 a gradient by x is rounded once in one form, twice in the other.
    orders, limit = ((score, twice), 1e-10) if dtype == jnp.float64 else ((score,), 2e-2)
    for order in orders:
        found, wanted = (
            jax.value_and_grad(functools.partial(order, form), (0, 1, 2))(x, factor, offset)
            for form in (layers_fast.affine_twice, layers_fast._affine)
        )
        for f, w in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(f, w, rtol=limit, atol=limit * float(jnp.abs(w).max()))


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activation_by_its_result_is_the_plain_one(name, float64):
    x, plain = maps((2, 3, 4, 5)) - 3, layers.ACTIVATIONS[name]

    def score(function, x):
        return (function(x) ** 3).sum()

    for orders in (jax.grad, lambda f: jax.grad(lambda x: (jax.grad(f)(x) ** 2).sum())):
        forms = (lambda x: layers_fast.activate_once(x, plain)), plain
        found, wanted = (orders(functools.partial(score, form))(x) for form in forms)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_convolution_and_its_norm_over_a_mapped_axis_are_those_of_the_whole(float64, on_cpu):
    """Gradients added up over devices, the bias's among them, which no single device has 0."""
    x, weights = maps((6, 5, 4, 3)), maps((6, 5, 4, 2), 1)

    class Both(nn.Module):
        axis_name: str | None = None

        @nn.compact
        def __call__(self, x):
            options = layers.Options(axis_name=self.axis_name)
            return layers.conv_norm(options, x, 2, 3, "batch", names=("conv", "norm"), bias=True)

    variables = jax.tree.map(lambda a: a.astype(float), Both().init(jax.random.key(0), x))

    def gradients(module, x, weights):
        score = lambda params: (module.apply({**variables, "params": params}, x) * weights).sum()  # noqa: E731
        return jax.grad(score)(variables["params"])

    wanted = gradients(Both(), x, weights)
    split = (a.reshape(3, 2, *a.shape[1:]) for a in (x, weights))
    each = jax.vmap(functools.partial(gradients, Both("devices")), axis_name="devices")(*split)
    found = jax.tree.map(lambda g: g.sum(0), each)
    jax.tree.map(lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-9, atol=1e-11), found, wanted)


@pytest.mark.parametrize("of", ["sum", "gradient"])
def test_long_sums_in_float32_are_exact_to_2e_6(of):
    """451,584 pixels a channel, far from 0: as many as a batch of 64 images of 84 pixels has."""
    x = np.random.default_rng(0).normal(10, 1, size=(64, 84, 84, 3)).astype(np.float32)
    if of == "sum":
        found = jax.jit(layers_fast.channel_sum)(x)
    else:
        found = jax.jit(jax.grad(lambda v: (layers_fast.as_map(v, x.shape) * x).sum()))(jnp.zeros(3))
    np.testing.assert_allclose(found, x.sum((0, 1, 2), dtype=np.float64), rtol=2e-6)


@pytest.mark.parametrize(("dtype", "bias"), [(None, True), (None, False), (jnp.bfloat16, True), (jnp.bfloat16, False)])
def test_a_convolution_is_linens(dtype, bias):
    init = nn.initializers.xavier_uniform()
    ours = layers.Conv(5, 3, 2, bias, init, nn.initializers.ones, dtype)
    linens = nn.Conv(5, (3, 3), (2, 2), 1, use_bias=bias, kernel_init=init, bias_init=nn.initializers.ones)
    x = maps((2, 7, 7, 3)).astype(jnp.float32)
    variables = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, linens.init(jax.random.key(0), x))
    found = ours.apply(variables, x)
    assert found.dtype == (dtype or jnp.float32)
    limit = 5e-2 if dtype else 1e-5
    np.testing.assert_allclose(found.astype(float), linens.apply(variables, x), rtol=limit, atol=limit)

"""`runtime.dtype=bfloat16` computes the backbone's maps in bfloat16 and nothing else: read off the traced steps."""

import jax
import jax.numpy as jnp
import pytest
from mtl_jax.configs import default
from test_plan import dataset

from mtl_jax.config import build
from mtl_jax.train import cost, plan

STEPS = {"meta": (build.meta_training, plan.meta_step, 2), "pretrain": (build.pretraining, plan.pretrain_step, 8)}


def equations(jaxpr):
    """All equations of a trace, those of what it calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in cost._inner(equation):
            yield from equations(inner)


def floats(avals):
    return {aval.dtype for aval in avals if jnp.issubdtype(aval.dtype, jnp.floating)}


@pytest.fixture(params=["meta running", "meta train", "pretrain train"])
def traced(request):
    """A step's trace, and the shapes that go in and come out."""
    phase, mode = request.param.split()
    config = default.get_config()
    config.backbone.width = 0.1
    config.meta.batch_norm, config.meta.way, config.meta.query, config.inner.steps = mode, 2, 2, 3
    config.runtime.dtype = "bfloat16"
    recipe, make, amount = STEPS[phase]
    step, arguments = make(recipe(config), dataset().splits["train"], amount)
    jaxpr, out = jax.make_jaxpr(step, return_shape=True)(*arguments)
    return jaxpr.jaxpr, arguments, out


def test_parameters_averages_optimiser_and_loss_stay_in_float32(traced):
    _, arguments, (state, metrics) = traced
    assert floats(jax.tree.leaves(arguments)) == floats(jax.tree.leaves((state, metrics))) == {jnp.dtype("float32")}


def test_maps_are_bfloat16_statistics_inner_loop_and_losses_float32(traced):
    found = {}
    for equation in equations(traced[0]):
        dtypes = floats(var.aval for var in (*equation.invars, *equation.outvars))
        found.setdefault(equation.primitive.name, set()).update(dtypes)
    assert found["conv_general_dilated"] == {jnp.dtype("bfloat16")}
    # Heads; losses; batch norm; Adam; statistics, and the gradients of all that is one number a channel.
    for name in ("dot_general", "exp", "log", "rsqrt", "sqrt", "reduce_sum"):
        assert found[name] == {jnp.dtype("float32")}, name

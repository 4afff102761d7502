"""Testing with an inner loop that moves the backbone: against meta-training's own unrolled loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit import device_form
from flax import linen as nn

from mtl_jax import ClassTable, evaluation, meta
from mtl_jax.episodes import gather
from mtl_jax.evaluation import Model, Protocol, evaluate_tasks
from mtl_jax.layers import BatchNorm
from mtl_jax.metrics import accuracy

FEATURES = 4


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mode):
        return jnp.tanh(BatchNorm(name="norm")(nn.Conv(FEATURES, (3, 3), name="conv")(x), mode))


class Small(nn.Module):
    """Two blocks that compile in no time."""

    @nn.compact
    def __call__(self, images, train=False, batch_statistics="running"):
        x = Block(name="block2")(Block(name="block1")(images, batch_statistics), batch_statistics)
        return (x * jnp.linspace(0, 1, x.shape[2])[:, None]).mean((1, 2))


@pytest.fixture(scope="module")
def setup():
    images = np.random.default_rng(0).normal(size=(20, 6, 6, 1)).astype(np.float32)
    variables = Small().init(jax.random.key(0), images)
    head = {"kernel": jax.random.normal(jax.random.key(1), (FEATURES, 2)), "bias": jnp.zeros(2)}
    table = ClassTable(np.arange(20, dtype=np.int32).reshape(4, 5), np.full(4, 5))
    frozen = meta.Frozen(variables["params"], jax.tree.map(lambda a: a + 0.2, variables["batch_stats"]))
    return Model(meta.Embed(Small()), {"head": head}, frozen), images, table


@pytest.fixture
def form(on_cpu):
    """The form for CPUs, then the one for accelerators; what was traced before has the other form."""
    jax.clear_caches()


def raw(logits, labels):
    """An outcome that hides nothing."""
    return logits


@pytest.mark.parametrize("adapt", ["last_block", "all"])
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_a_task_is_adapted_as_in_training(setup, form, adapt, mode):
    model, images, table = setup
    model = model._replace(embed=model.embed._replace(batch_statistics=mode))
    inner = meta.Inner(2, 0.5, loss_scale="per_shot", adapt=adapt)
    protocol = Protocol(way=2, shot=2, query=3, num_tasks=2, seed=3, inner=inner)
    found = evaluate_tasks(model, images, table, protocol, every_step=True, outcome=raw)
    assert found.shape == (2, 3, 6, 2)
    tasks = evaluation.sample_all(table, protocol)
    for number in range(2):
        task = gather(images, tasks.support[number], tasks.query[number])
        for steps in range(3):
            run = functools.partial(meta.episode_logits, embed=model.embed, inner=inner._replace(steps=steps))
            wanted, _ = jax.jit(run)(model.learned, model.frozen, task)
            np.testing.assert_allclose(found[number, steps], wanted, rtol=1e-5, atol=1e-5)
    last = evaluate_tasks(model, images, table, protocol, outcome=raw)
    np.testing.assert_array_equal(last, found[:, -1])


def test_only_the_last_block_moves_when_it_says_so(setup):
    model, images, table = setup
    protocol = Protocol(2, 2, 3, 3, 3, meta.Inner(2, 0.5))
    logits = {
        adapt: evaluate_tasks(
            model, images, table, protocol._replace(inner=protocol.inner._replace(adapt=adapt)), outcome=raw
        )
        for adapt in ("head", "last_block", "all")
    }
    assert not np.allclose(logits["head"], logits["last_block"])
    assert not np.allclose(logits["last_block"], logits["all"])


def test_flips_double_the_support_set_at_the_same_divisor(setup, form):
    """The loss of a set with its mirror images is the sum of both halves' losses: one step from both gradients."""
    model, images, table = setup
    inner = meta.Inner(1, 0.5, loss_scale="per_shot", adapt="all")
    protocol = Protocol(2, 2, 3, 1, 3, inner, flips=True)
    found = evaluate_tasks(model, images, table, protocol, outcome=raw)[0]
    tasks = evaluation.sample_all(table, protocol)
    task = gather(images, tasks.support[0], tasks.query[0])
    params, stats = model.frozen
    fast = meta.fast_weights(params, model.learned["head"], "all")
    halves = [task, task._replace(support=task.support[:, :, ::-1])]

    def both(fast):
        return sum(meta.support_loss(fast, params, stats, half, jnp.full(4, 1 / 2), model.embed) for half in halves)

    moved = jax.tree.map(lambda p, g: p - 0.5 * g, fast, jax.grad(both)(fast))
    wanted, _ = meta.fast_logits(moved, params, stats, task.query, model.embed)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_averages_stand_in_for_batches_in_train_mode(setup):
    model, images, table = setup
    protocol = Protocol(2, 1, 2, 2, 3, meta.Inner(1, 0.5, adapt="all"))
    train_mode = model._replace(embed=model.embed._replace(batch_statistics="train"))
    found = [evaluate_tasks(m, images, table, protocol, outcome=accuracy) for m in (model, train_mode)]
    np.testing.assert_array_equal(*found)


def test_a_meta_batch_s_loss_is_the_mean_over_its_tasks(setup, form):
    """Where the backbone adapts, tasks are under vmap on accelerators alone."""
    model, images, table = setup
    inner = meta.Inner(1, 0.5, adapt="all")
    drawn = evaluation.sample_all(table, Protocol(2, 1, 2, 3, 3, inner))
    tasks = gather(images, drawn.support, drawn.query)
    options = {"embed": model.embed._replace(batch_statistics="train"), "inner": inner}
    loss, result = meta.batch_loss(model.learned, model.frozen, tasks, **options)
    for number in range(3):
        task = jax.tree.map(lambda a, n=number: a[n], tasks)
        one, wanted = meta.episode_loss(model.learned, model.frozen, task, **options)
        jax.tree.map(lambda a, b, n=number: np.testing.assert_allclose(a[n], b, rtol=1e-6), result, wanted)
        loss = loss - one / 3
    np.testing.assert_allclose(loss, 0, atol=1e-6)


@pytest.mark.parametrize("adapt", ["last_block", "all"])
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"first_order": False}, id="second order"),
        pytest.param(
            {"first_order": False, "remat": True, "lr": (0.5, 0.2, 0.1)},
            id="second order, remat, a rate a step",
            marks=pytest.mark.slow,
        ),
        pytest.param({"first_order": True}, id="first order", marks=pytest.mark.slow),
    ],
)
def test_a_meta_batch_has_one_gradient_in_both_forms(setup, float64, adapt, changed):
    """Python loops over tasks and inner steps on a CPU; vmap and scan on accelerators."""
    model, images, table = setup
    inner = meta.Inner(3, 0.5, adapt=adapt)._replace(**changed)
    drawn = evaluation.sample_all(table, Protocol(2, 2, 2, 3, 3, inner))
    tasks = gather(images.astype(float), drawn.support, drawn.query)
    learned, frozen = jax.tree.map(lambda a: a.astype(float), (model.learned, model.frozen))
    learned = {**learned, "params": frozen.params}
    options = {"embed": model.embed._replace(batch_statistics="train"), "inner": inner}

    def outcome(cpu):
        with device_form(cpu):
            loss = functools.partial(meta.batch_loss, **options)
            (value, result), gradient = jax.value_and_grad(loss, has_aux=True)(learned, frozen, tasks)
            traced = str(jax.make_jaxpr(loss)(learned, frozen, tasks))
        assert ("scan[" in traced) != cpu
        return value, result, gradient

    jax.tree.map(lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-10, atol=1e-13), outcome(False), outcome(True))

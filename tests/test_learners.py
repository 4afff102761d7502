"""Base-learners as values: each against an independent writing, and as what training and testing take."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import base_learner, cosine_head, meta
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation import Model, Protocol, evaluate_tasks
from mtl_jax.learners import Inner, check_inner, loss_weights, prototypes, with_way
from mtl_jax.types import ClassTable, Episode

torch = pytest.importorskip("torch")  # the independent writing

WAY, SHOT, QUERY, WIDTH = 3, 2, 4, 16


def problem(seed=0, rows=WAY * SHOT, width=WIDTH):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % WAY)  # in no order
    return rng.normal(size=(rows, width)), labels, rng.normal(size=(WAY * QUERY, width))


def torch_cosine(kernel, scale, z):
    return scale * torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(kernel, dim=0)


def torch_steps(logits, parameters, z, labels, rates, create_graph):
    """Every set of parameters, from the first to that after the last step, by autograd."""
    kept = [parameters]
    for rate in rates:
        loss = torch.nn.functional.cross_entropy(logits(*parameters, z), labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        if not create_graph:
            gradients = [g.detach() for g in gradients]
        parameters = [p - rate * g for p, g in zip(parameters, gradients, strict=True)]
        kept.append(parameters)
    return kept


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("rows", [6, 21])  # less and more than the width
def test_a_cosine_head_and_its_meta_gradient_are_pytorchs(first_order, rows):
    z, labels, query = problem(rows=rows)
    start, scale, rates = np.random.default_rng(1).normal(size=(WIDTH, WAY)), 7.0, np.array([0.3, 0.1, 0.2])
    answers = torch.arange(len(query)) % WAY
    leaves = [torch.tensor(value, requires_grad=True) for value in (start, scale, rates, z)]
    kernel, factor, steps, support = leaves
    fixed = support.detach() if first_order else support  # in first order the support set has no gradient
    trained = torch_steps(
        lambda w, x: torch_cosine(w, factor.detach() if first_order else factor, x), [kernel], fixed,
        torch.tensor(labels), steps, not first_order,
    )  # fmt: skip
    of_query = [torch_cosine(w, factor, torch.tensor(query)) for (w,) in trained]
    wanted = torch.autograd.grad(torch.nn.functional.cross_entropy(of_query[-1], answers), leaves, allow_unused=True)

    with jax.enable_x64():

        def logits(kernel, scale, rates, support):
            options = {"steps": 3, "lr": rates, "first_order": first_order, "trajectory": True}
            head = {"kernel": kernel, "scale": scale}
            return cosine_head.adapted_logits(head, support, labels, jnp.asarray(query), **options)

        def loss(*arguments):
            return optax.softmax_cross_entropy_with_integer_labels(logits(*arguments)[-1], np.asarray(answers)).mean()

        arguments = [jnp.asarray(value) for value in (start, scale, rates, z)]
        got, gradients = jax.jit(logits)(*arguments), jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arguments)
    np.testing.assert_allclose(got, torch.stack(of_query).detach(), rtol=1e-8, atol=1e-10)
    for mine, theirs in zip(gradients, wanted, strict=True):
        theirs = np.zeros(mine.shape) if theirs is None else theirs
        np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_e3bm_in_parts_is_pytorchs(head):
    """A start from prototypes, a rate for each inner step, a weighted sum of the logits of all steps."""
    z, labels, query = problem()
    inner = Inner(3, 0.2, first_order=False, head=head, start="prototypes", learn_lr=True, ensemble=True, way=WAY)
    learned = {"lr": np.array([0.3, 0.1, 0.2]), "ensemble": np.array([0.2, 0.5, 0.4])}
    if head == "cosine":
        learned["scale"] = np.float64(8.0)
    assert jax.tree.structure(learned) == jax.tree.structure(inner.init(jax.random.key(0), WIDTH))
    support = torch.tensor(z, requires_grad=True)
    values = {name: torch.tensor(value, requires_grad=True) for name, value in learned.items()}
    means = torch.stack([support[labels == c].mean(0) for c in range(WAY)], 1)
    if head == "cosine":
        logits, start = lambda w, x: torch_cosine(w, values["scale"], x), [means]
    else:
        logits, start = lambda w, b, x: x @ w + b, [2 * means, -(means**2).sum(0)]
    trained = torch_steps(logits, start, support, torch.tensor(labels), values["lr"], True)
    of_query = torch.stack([logits(*parameters, torch.tensor(query)) for parameters in trained])
    summed = (values["ensemble"][:, None, None] * of_query[1:]).sum(0)
    answers = np.arange(len(query)) % WAY
    wanted = torch.autograd.grad(
        torch.nn.functional.cross_entropy(summed, torch.tensor(answers)), [support, *values.values()]
    )

    with jax.enable_x64():

        def loss(support, learned):
            logits = inner(learned, support, labels, jnp.asarray(query))
            return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean(), logits

        arguments = jnp.asarray(z), jax.tree.map(jnp.asarray, learned)
        (by_support, by_learned), got = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(*arguments)
        steps = inner(arguments[1], arguments[0], labels, jnp.asarray(query), trajectory=True)
    np.testing.assert_allclose(got, summed.detach(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        steps[0], of_query[0].detach(), rtol=1e-8, atol=1e-10
    )  # nothing learned: nearest centroid
    np.testing.assert_allclose(steps[-1], got, rtol=1e-12)
    np.testing.assert_allclose(by_support, wanted[0], rtol=1e-7, atol=1e-10)
    for name, theirs in zip(values, wanted[1:], strict=True):
        np.testing.assert_allclose(by_learned[name], theirs, rtol=1e-7, atol=1e-10, err_msg=name)


def test_a_linear_start_from_prototypes_is_nearest_centroid():
    z, labels, query = problem()
    logits = Inner(0, 0.1, start="prototypes", way=WAY)({}, jnp.asarray(z), jnp.asarray(labels), jnp.asarray(query))
    centroids = np.stack([z[labels == c].mean(0) for c in range(WAY)])
    distances = ((query[:, None] - centroids) ** 2).sum(-1)
    np.testing.assert_array_equal(logits.argmax(-1), distances.argmin(-1))
    np.testing.assert_allclose(prototypes(jnp.asarray(z), jnp.asarray(labels), WAY), centroids, rtol=1e-5)


def test_a_start_from_zero_learns_no_head():
    z, labels, query = (jnp.asarray(value) for value in problem())
    inner = Inner(5, 0.1, start="zero", way=WAY)
    assert inner.init(jax.random.key(0), WIDTH) == {}
    zero = base_learner.init_head(jax.random.key(0), WIDTH, WAY, init="zero")
    np.testing.assert_array_equal(inner({}, z, labels, query), Inner(5, 0.1)(zero, z, labels, query))


def episode(key, tasks=()):
    support_key, query_key = jax.random.split(key)
    labels = [jnp.broadcast_to(jnp.tile(jnp.arange(WAY), count), (*tasks, WAY * count)) for count in (SHOT, QUERY)]
    images = [
        jax.random.normal(k, (*own.shape, WIDTH)) + own[..., None]
        for k, own in zip((support_key, query_key), labels, strict=True)
    ]
    return Episode(images[0], labels[0], images[1], labels[1])


def shifted(params, stats, images):
    return images * params["kernel"], stats


def nearest(learned, support, labels, query):
    centres = prototypes(support, labels, WAY)
    return -learned["scale"] * ((query[:, None] - centres) ** 2).sum(-1)


def test_a_function_is_a_base_learner_and_a_function_is_a_backbone():
    params, learned = {"kernel": jnp.ones(WIDTH)}, {"head": {"scale": jnp.asarray(0.1)}}
    learned["params"] = params
    optimizer = optax.sgd(0.1)
    state = meta.init_state(learned, {}, optimizer)
    episodes = episode(jax.random.key(0), (8,))
    step = jax.jit(lambda s: meta.train_step(s, params, episodes, embed=shifted, inner=nearest, optimizer=optimizer))
    losses = []
    for _ in range(5):
        state, metrics = step(state)
        losses.append(float(metrics["loss"]))
    assert metrics["class_accuracy"].shape == (8, WAY) and bool(metrics["finite"])
    assert losses == sorted(losses, reverse=True)
    images = np.asarray(jax.random.normal(jax.random.key(1), (12, WIDTH)))
    table = ClassTable(np.arange(12).reshape(3, 4), np.full(3, 4))
    model = Model(shifted, state.learned, meta.Frozen(params, {}))
    accuracies = evaluate_tasks(model, images, table, Protocol(WAY, 1, 2, 20, 0, nearest), chunk=5)
    assert accuracies.shape == (20,) and set(np.round(accuracies * 6)) <= set(range(7))
    with pytest.raises(ConfigError, match="function has no inner steps"):
        evaluate_tasks(model, images, table, Protocol(WAY, 1, 2, 20, 0, nearest), every_step=True)


def test_a_loss_of_ones_own():
    params = {"kernel": jnp.ones(WIDTH)}
    learned, optimizer = {"head": {"scale": jnp.asarray(0.1)}, "params": params}, optax.sgd(0.1)
    state, episodes = meta.init_state(learned, {}, optimizer), episode(jax.random.key(0), (4,))

    def penalised(learned, frozen, episode, **options):
        value, result = meta.episode_loss(learned, frozen, episode, **options)
        return value + learned["head"]["scale"] ** 2, result

    options = {"embed": shifted, "inner": nearest, "optimizer": optimizer}
    plain, _ = meta.train_step(state, params, episodes, **options)
    other, metrics = meta.train_step(state, params, episodes, loss=penalised, **options)
    np.testing.assert_allclose(
        other.learned["head"]["scale"], plain.learned["head"]["scale"] - 0.1 * 2 * 0.1, rtol=1e-5
    )
    assert float(metrics["loss"]) > 0.01
    np.testing.assert_array_equal(other.learned["params"]["kernel"], plain.learned["params"]["kernel"])


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (Inner(1, 0.1, head="quadratic"), "head is 'quadratic', expected one of linear, cosine"),
        (Inner(1, 0.1, start="random"), "start is 'random', expected one of"),
        (Inner(1, 0.1, adapt="all", head="cosine"), "adapt is 'all', which moves a linear head with a learned start"),
        (7, "inner is 7, expected an Inner or another base-learner"),
    ],
)
def test_contradictions_are_named(inner, said):
    with pytest.raises(ConfigError, match=said):
        check_inner(inner)


def test_what_cannot_start_is_named():
    for inner in (Inner(1, 0.1, head="cosine", way=3), Inner(1, 0.1, head="cosine", start="zero", way=3)):
        with pytest.raises(ConfigError, match="a cosine head cannot start from zeros"):
            inner.init(jax.random.key(0), WIDTH)
    with pytest.raises(ConfigError, match="way of the base-learner is 0"):
        Inner(1, 0.1).init(jax.random.key(0), WIDTH)
    assert with_way(Inner(1, 0.1, way=5), 3).way == 3 and with_way(nearest, 3) is nearest


def test_a_learned_rate_is_for_as_many_steps_as_in_training():
    inner = Inner(3, 0.1, learn_lr=True, way=WAY)
    learned = {"head": inner.init(jax.random.key(0), WIDTH), "params": {}}
    model = Model(shifted, learned, meta.Frozen({"kernel": jnp.ones(WIDTH)}, {}))
    table = ClassTable(np.arange(12).reshape(3, 4), np.full(3, 4))
    protocol = Protocol(WAY, 1, 2, 20, 0, inner._replace(steps=4))
    with pytest.raises(ConfigError, match="the learned lr is of 3 inner steps, but the inner loop has 4"):
        evaluate_tasks(model, np.zeros((12, WIDTH), np.float32), table, protocol)


def test_weights_of_rows():
    np.testing.assert_allclose(loss_weights(jnp.zeros(6), 3, "per_shot"), 0.5)

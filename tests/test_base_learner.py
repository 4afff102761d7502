"""The base-learner: plain loop, span form, their derivatives, and the generic inner loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import adapt, adapt_head, adapted_logits, create_backbone, init_head, init_scale_shift
from mtl_jax.base_learner import logits
from mtl_jax.errors import ConfigError
from mtl_jax.metrics import cross_entropy
from mtl_jax.scale_shift import apply as apply_scale_shift

WAY, FEATURES = 3, 11


def task(shot=2, query=4, seed=0, features=FEATURES):
    keys = jax.random.split(jax.random.key(seed), 3)
    support = jax.random.normal(keys[0], (WAY * shot, features), float)
    queries = jax.random.normal(keys[1], (WAY * query, features), float)
    head = {"kernel": jax.random.normal(keys[2], (features, WAY), float), "bias": jnp.linspace(-1.0, 1.0, WAY)}
    return head, support, jnp.repeat(jnp.arange(WAY), shot), queries, jnp.repeat(jnp.arange(WAY), query)


def plain(head, support, labels, query, **options):
    return logits(adapt_head(head, support, labels, **options), query)


def close(a, b, tolerance=1e-9):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("steps", [0, 1, 100])
@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_span_form_is_the_plain_loop(steps, first_order, weighted, float64, on_cpu):
    """Logits and the gradients by support features, query features and initial head, to 1e-9."""
    head, support, labels, query, query_labels = task()
    weights = jnp.linspace(0.1, 0.5, len(labels)) if weighted else None
    options = {"steps": steps, "lr": 0.05, "first_order": first_order, "weights": weights}

    def loss(form, head, support, query):
        return cross_entropy(form(head, support, labels, query, **options), query_labels).mean()

    close(plain(head, support, labels, query, **options), adapted_logits(head, support, labels, query, **options))
    gradients = [jax.grad(loss, (1, 2, 3))(form, head, support, query) for form in (plain, adapted_logits)]
    close(*gradients)
    is_zero = bool((gradients[1][1] == 0).all())
    assert is_zero == (first_order or steps == 0)  # in first order the support features get no gradient


@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize("first_order", [True, False])
def test_span_form_has_the_plain_loops_gradient_by_phi(steps, first_order, float64):
    """Through the features of a backbone with SS, for both sets of images."""
    module = create_backbone("conv4", width=0.1)
    images = jax.random.normal(jax.random.key(0), (9, 28, 28, 1), float)
    variables = jax.tree.map(lambda leaf: leaf.astype(float), module.init(jax.random.key(1), images))
    ss = init_scale_shift(variables["params"])
    head = {"kernel": jnp.zeros((6, WAY)), "bias": jnp.zeros(WAY)}
    labels = jnp.arange(3)

    def loss(ss, form):
        params = apply_scale_shift(variables["params"], ss)
        z = module.apply({**variables, "params": params}, images)
        out = form(head, z[:3], labels, z[3:], steps=steps, lr=0.3, first_order=first_order)
        return cross_entropy(out, jnp.tile(labels, 2)).mean()

    gradients = [jax.grad(loss)(ss, form) for form in (plain, adapted_logits)]
    close(*gradients)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[0])) > 1e-4


def test_second_order_gradient_against_finite_differences(float64):
    head, support, labels, query, query_labels = task()

    def loss(support, kernel):
        start = {**head, "kernel": kernel}
        out = adapted_logits(start, support, labels, query, steps=10, lr=0.1, first_order=False)
        return cross_entropy(out, query_labels).mean()

    gradients = jax.grad(loss, (0, 1))(support, head["kernel"])
    for argument, gradient in enumerate(gradients):
        direction = jax.random.normal(jax.random.key(argument), gradient.shape, float)
        values = []
        for sign in (1, -1):
            point = [support, head["kernel"]]
            point[argument] = point[argument] + sign * 1e-5 * direction
            values.append(loss(*point))
        np.testing.assert_allclose((values[0] - values[1]) / 2e-5, (gradient * direction).sum(), rtol=1e-7)


def test_first_order_passes_to_the_head_by_the_identity(float64):
    """The gradient by the initial head is that by the adapted head."""
    head, support, labels, query, query_labels = task()
    options = {"steps": 7, "lr": 0.2}
    adapted = adapt_head(head, support, labels, **options)
    outer = jax.grad(lambda h: cross_entropy(adapted_logits(h, support, labels, query, **options), query_labels).mean())
    direct = jax.grad(lambda h: cross_entropy(logits(h, query), query_labels).mean())
    close(outer(head), direct(adapted))


def test_adapt_head_against_numpy(float64):
    """Full-batch gradient descent on the mean cross-entropy, written out."""
    head, support, labels, _, _ = task()
    w, b, z = (np.asarray(a) for a in (head["kernel"], head["bias"], support))
    targets = np.eye(WAY)[np.asarray(labels)]
    for _ in range(5):
        scores = z @ w + b
        p = np.exp(scores - scores.max(1, keepdims=True))
        residual = (p / p.sum(1, keepdims=True) - targets) / len(z)
        w, b = w - 0.3 * z.T @ residual, b - 0.3 * residual.sum(0)
    close(adapt_head(head, support, labels, steps=5, lr=0.3), {"kernel": w, "bias": b}, 1e-12)


@pytest.mark.parametrize("shot", [2, 6])  # S < F: the span form; S >= F: the plain loop
def test_trajectory_is_every_step(shot, float64, on_cpu):
    head, support, labels, query, _ = task(shot)
    every = adapted_logits(head, support, labels, query, steps=4, lr=0.1, trajectory=True)
    assert every.shape == (5, len(query), WAY)
    for steps in range(5):
        close(every[steps], adapted_logits(head, support, labels, query, steps=steps, lr=0.1))
    close(every[0], logits(head, query))


def test_many_support_images_use_the_plain_loop(float64):
    head, support, labels, query, _ = task(shot=6)
    options = {"steps": 3, "lr": 0.1}
    close(adapted_logits(head, support, labels, query, **options), plain(head, support, labels, query, **options))
    text = str(jax.make_jaxpr(lambda s: adapted_logits(head, s, labels, query, **options))(support))
    assert f"{len(labels)},{len(labels)}]" not in text  # no Gram matrix


def test_float32_span_form_is_close():
    head, support, labels, query, _ = task()
    options = {"steps": 100, "lr": 0.05}
    close(plain(head, support, labels, query, **options), adapted_logits(head, support, labels, query, **options), 1e-4)


def test_adapt_moves_any_tree_and_knows_both_orders(float64):
    """On f(x) = a x^2 / 2 one step is x (1 - lr a): second order sees a, first order does not."""

    def run(x, first_order, remat=False):
        loss = lambda p: 1.5 * p["x"] ** 2  # noqa: E731
        return adapt(loss, {"x": x}, steps=2, lr=0.1, first_order=first_order, remat=remat)["x"]

    np.testing.assert_allclose(run(2.0, True), 2.0 * 0.7**2)
    np.testing.assert_allclose(jax.grad(run)(2.0, False), 0.7**2)
    np.testing.assert_allclose(jax.grad(run)(2.0, True), 1.0)
    np.testing.assert_allclose(jax.grad(lambda x: run(x, False, remat=True))(2.0), 0.7**2)


def test_adapt_takes_a_rate_per_leaf(float64):
    moved = adapt(lambda p: p["a"] + p["b"], {"a": 1.0, "b": 1.0}, steps=1, lr={"a": 0.5, "b": 0.0})
    assert moved == {"a": 0.5, "b": 1.0}


def test_adapt_on_a_head_is_adapt_head(float64):
    head, support, labels, _, _ = task()
    moved = adapt(lambda h: cross_entropy(logits(h, support), labels).mean(), head, steps=6, lr=0.1)
    close(moved, adapt_head(head, support, labels, steps=6, lr=0.1), 1e-12)


def test_head_initialisations():
    he = init_head(jax.random.key(0), 640, 64, init="he")
    np.testing.assert_allclose(he["kernel"].std(), (2 / 640) ** 0.5, rtol=0.02)
    xavier = init_head(jax.random.key(0), 512, 64, init="xavier")
    bound = (6 / (512 + 64)) ** 0.5
    assert bound * 0.99 < float(jnp.abs(xavier["kernel"]).max()) <= bound
    zero = init_head(jax.random.key(0), 8, 3, init="zero")
    assert zero["kernel"].shape == (8, 3)
    assert all((leaf == 0).all() for leaf in (*jax.tree.leaves(zero), he["bias"], xavier["bias"]))
    with pytest.raises(ConfigError, match="orthogonal"):
        init_head(jax.random.key(0), 8, 3, init="orthogonal")

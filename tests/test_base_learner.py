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


def test_adapt_moves_any_tree_and_knows_both_orders(float64, on_cpu):
    """On f(x) = a x^2 / 2 one step is x (1 - lr a): second order sees a, first order does not."""

    def run(x, first_order, remat=False):
        loss = lambda p: 1.5 * p["x"] ** 2  # noqa: E731
        return adapt(loss, {"x": x}, steps=2, lr=0.1, first_order=first_order, remat=remat)["x"]

    np.testing.assert_allclose(run(2.0, True), 2.0 * 0.7**2)
    np.testing.assert_allclose(jax.grad(run)(2.0, False), 0.7**2)
    np.testing.assert_allclose(jax.grad(run)(2.0, True), 1.0)
    np.testing.assert_allclose(jax.grad(lambda x: run(x, False, remat=True))(2.0), 0.7**2)


def test_adapt_takes_a_rate_per_leaf(float64, on_cpu):
    moved = adapt(lambda p: p["a"] + p["b"], {"a": 1.0, "b": 1.0}, steps=1, lr={"a": 0.5, "b": 0.0})
    assert moved == {"a": 0.5, "b": 1.0}


def test_adapt_on_a_head_is_adapt_head(float64, on_cpu):
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


RATES = (0.3, 0.05, 0.0, 0.2)


def by_numpy(head, support, labels, rates):
    """Full-batch gradient descent on the mean cross-entropy with a rate for each step, written out."""
    w, b, targets = head["kernel"], head["bias"], jnp.eye(WAY)[labels]
    for rate in rates:
        residual = (jax.nn.softmax(support @ w + b) - targets) / len(labels)
        w, b = w - rate * support.T @ residual, b - rate * residual.sum(0)
    return {"kernel": w, "bias": b}


@pytest.mark.parametrize("shot", [2, 6])  # S < F: the span form; S >= F: the plain loop
@pytest.mark.parametrize("kind", [tuple, list, np.array, jnp.array])
def test_rates_of_steps_in_every_form_of_the_inner_loop(shot, kind, float64, on_cpu):
    head, support, labels, query, _ = task(shot)
    wanted = by_numpy(head, support, labels, RATES)
    options = {"steps": len(RATES), "lr": kind(RATES)}
    close(adapt_head(head, support, labels, **options), wanted)
    close(adapt(lambda h: cross_entropy(logits(h, support), labels).mean(), head, **options), wanted)
    every = adapted_logits(head, support, labels, query, trajectory=True, **options)
    for steps in range(len(RATES) + 1):
        close(every[steps], logits(by_numpy(head, support, labels, RATES[:steps]), query))


@pytest.mark.parametrize("shot", [2, 6])
def test_the_second_order_gradient_by_rates_of_steps_is_exact(shot, float64, on_cpu):
    """As of the loop written out; the rate of a step that is 0 has a gradient, too."""
    head, support, labels, query, query_labels = task(shot)
    options = {"steps": len(RATES), "first_order": False}

    def spanned(rates, head, support):
        return cross_entropy(adapted_logits(head, support, labels, query, lr=rates, **options), query_labels).mean()

    def looped(rates, head, support):
        return cross_entropy(logits(adapt_head(head, support, labels, lr=rates, **options), query), query_labels).mean()

    def any_tree(rates, head, support):
        loss = lambda h: cross_entropy(logits(h, support), labels).mean()  # noqa: E731
        return cross_entropy(logits(adapt(loss, head, lr=rates, **options), query), query_labels).mean()

    def written(rates, head, support):
        return cross_entropy(logits(by_numpy(head, support, labels, rates), query), query_labels).mean()

    point = jnp.array(RATES), head, support
    wanted = jax.grad(written, (0, 1, 2))(*point)
    assert (wanted[0] != 0).all()
    for form in (spanned, looped, any_tree):
        close(jax.grad(form, (0, 1, 2))(*point), wanted)
    close(jax.hessian(spanned)(*point), jax.hessian(written)(*point))


@pytest.mark.parametrize("rates", [0.1, RATES])
@pytest.mark.parametrize("trajectory", [False, True])
def test_in_first_order_both_forms_have_the_same_gradient_by_the_rate(rates, trajectory, float64):
    """The inner gradients are constants, the rates are not."""
    head, support, labels, query, query_labels = task()
    options = {"steps": len(RATES)}

    def spanned(lr, head, support):
        found = adapted_logits(head, support, labels, query, lr=lr, trajectory=trajectory, **options)
        return cross_entropy(found[-1] if trajectory else found, query_labels).mean()

    def looped(lr, head, support):
        return cross_entropy(plain(head, support, labels, query, lr=lr, **options), query_labels).mean()

    found, wanted = (jax.grad(form, (0, 1, 2))(jnp.asarray(rates), head, support) for form in (spanned, looped))
    assert (wanted[0] != 0).all()
    close(found, wanted)


HEAD = {"kernel": jnp.zeros((FEATURES, WAY)), "bias": jnp.zeros(WAY)}
ROWS = jnp.ones((6, FEATURES)), jnp.repeat(jnp.arange(WAY), 2)


@pytest.mark.parametrize(
    "lr", [jnp.ones(6), jnp.ones(WAY), jnp.ones(FEATURES), jnp.ones((4, 1)), [0.1] * 5, jnp.ones(1)]
)
def test_rates_that_are_not_of_steps_are_refused(lr):
    """They were broadcast as rates of rows or of columns."""
    message = r"lr has shape .* a rate for each of the 4 steps"
    with pytest.raises(ConfigError, match=message):
        adapt_head(HEAD, *ROWS, steps=4, lr=lr)
    for rows in (ROWS, (jnp.ones((12, FEATURES)), jnp.repeat(jnp.arange(WAY), 4))):
        with pytest.raises(ConfigError, match=message):
            adapted_logits(HEAD, *rows, ROWS[0], steps=4, lr=lr)
    with pytest.raises(ConfigError, match=message):
        adapt(lambda h: h["bias"].sum(), HEAD, steps=4, lr=lr)


@pytest.mark.parametrize("lr", [{"kernel": 0.1}, {"kernel": 0.1, "bias": 0.1, "other": 1.0}, [{"a": 1.0}], None])
def test_a_tree_of_another_structure_is_refused(lr):
    for call in (
        lambda: adapt(lambda h: h["bias"].sum(), HEAD, steps=2, lr=lr),
        lambda: adapt_head(HEAD, *ROWS, steps=2, lr=lr),
        lambda: adapted_logits(HEAD, *ROWS, ROWS[0], steps=2, lr=lr),
    ):
        with pytest.raises(ConfigError, match=r"lr is .*expected a number or \[steps\] of them"):
            call()


def test_a_tree_of_rates_has_numbers_or_the_parameters_shapes(on_cpu):
    lr = {"kernel": 0.5, "bias": jnp.array([1.0, 0.0, 2.0])}
    moved = adapt(lambda h: h["kernel"].sum() + h["bias"].sum(), HEAD, steps=2, lr=lr)
    close(moved, {"kernel": jnp.full((FEATURES, WAY), -1.0), "bias": jnp.array([-2.0, 0.0, -4.0])})
    with pytest.raises(ConfigError, match=r"lr\['kernel'\] has shape \(3,\), expected a number or that of the param"):
        adapt(lambda h: h["kernel"].sum(), HEAD, steps=2, lr={"kernel": jnp.ones(WAY), "bias": 0.1})
    element = adapt(jnp.sum, jnp.zeros(3), steps=2, lr=jnp.array([1.0, 2.0, 3.0]))  # one array is a tree as well
    close(element, jnp.array([-2.0, -4.0, -6.0]))
    with pytest.raises(ConfigError, match="of steps or of elements"):
        adapt(jnp.sum, jnp.zeros(3), steps=3, lr=jnp.ones(3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": jnp.zeros((6, 1), int)}, r"labels has shape \(6, 1\), expected \(6,\)"),
        ({"labels": jnp.zeros(1, int)}, r"labels has shape \(1,\)"),
        ({"weights": jnp.ones((6, 1))}, r"weights has shape \(6, 1\), expected \(6,\)"),
        ({"weights": jnp.ones(1)}, r"weights has shape \(1,\)"),
        ({"head": {**HEAD, "bias": jnp.zeros(1)}}, r"bias'\] has shape \(1,\), expected \(3,\)"),
        ({"features": jnp.ones((6, FEATURES - 1))}, r"features has shape"),
        ({"labels": jnp.repeat(jnp.arange(WAY), 2) + 1}, r"labels are 1 to 3, expected 0 to 2 for a head of 3"),
        ({"labels": jnp.repeat(jnp.arange(WAY), 2) - 1}, r"labels are -1 to 1"),
    ],
)
def test_what_would_be_broadcast_or_wrapped_is_refused(changed, message):
    given = {"head": HEAD, "features": ROWS[0], "labels": ROWS[1], "weights": None, **changed}
    head, features, labels, weights = given.values()
    with pytest.raises(ConfigError, match=message):
        adapt_head(head, features, labels, steps=1, lr=0.1, weights=weights)
    with pytest.raises(ConfigError, match=message):
        adapted_logits(head, features, labels, ROWS[0][:, : features.shape[1]], steps=1, lr=0.1, weights=weights)


@pytest.mark.parametrize("shot", [2, 6])
@pytest.mark.parametrize("wrong", [-1, WAY])
def test_a_label_that_cannot_be_looked_at_makes_nan(shot, wrong):
    head, support, labels, query, _ = task(shot)
    found = jax.jit(lambda y: adapted_logits(head, support, y, query, steps=1, lr=0.1))(labels.at[0].set(wrong))
    assert jnp.isnan(found).all()

"""Prototypes, ridge and logistic regression against independent writings, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mtl_jax.errors import ConfigError
from mtl_jax.metrics import cross_entropy
from mtl_jax.parallel import map_tasks
from mtl_jax.solved_learners import Logistic, Prototypes, Ridge

LABELS = np.array([2, 0, 1, 0, 2, 2, 1, 0, 0])  # unequal shots, in no order
LEARNERS = [Prototypes(3, scale=0.3), Prototypes(3, "cosine"), Ridge(3, l2=0.7, scale=2.0), Logistic(3, c=1.7)]


def task(labels=LABELS, width=12, way=3, spread=1.0):
    """NumPy support [S, F] and query [4, F] with a common mean, as features after a ReLU have."""
    rng = np.random.default_rng(width)
    centres = rng.normal(size=(way, width))
    support = centres[labels] + spread * rng.normal(size=(len(labels), width)) + 2
    return support, rng.normal(size=(4, width)) + 2


def logits(learner, support, labels, query):
    return learner(learner.init(jax.random.key(0), support.shape[1]), support, labels, query)


def by_numpy(learner, support, labels, query):
    """The same written out, row by row, in the form with features."""
    one_hot = np.eye(learner.way)[labels]
    if isinstance(learner, Ridge):
        z, zq = (np.column_stack([a, np.ones(len(a))]) for a in (support, query))
        return learner.scale * zq @ np.linalg.inv(z.T @ z + learner.l2 * np.eye(z.shape[1])) @ z.T @ one_hot
    centres = np.stack([support[labels == c].mean(0) for c in range(learner.way)])
    if learner.distance == "cosine":
        norms = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(centres, axis=1)
        return 10 * (query @ centres.T) / norms
    return -learner.scale * ((query[:, None] - centres) ** 2).sum(-1)


@pytest.mark.parametrize("count", [3, 25, 60])
def test_map_tasks_is_vmap(count, float64):
    rng = np.random.default_rng(0)
    support, query = (jnp.asarray(rng.normal(size=(count, rows, 7))) for rows in (6, 4))
    learner, labels = Logistic(3), np.repeat(np.arange(3), 2)

    def run(task):
        return {"logits": learner(learner.init(jax.random.key(0), 7), task["support"], labels, task["query"])}

    tasks = {"support": support, "query": query}
    found, wanted = jax.jit(lambda tasks: map_tasks(run, tasks))(tasks), jax.vmap(run)(tasks)
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-9, atol=1e-12)
    slopes = [
        jax.grad(lambda tasks, form=form: (form(run, tasks)["logits"] ** 2).sum())(tasks)["support"]
        for form in (map_tasks, lambda function, tasks: jax.vmap(function)(tasks))
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("learner", LEARNERS[:3], ids=str)
@pytest.mark.parametrize("width", [3, 8, 9, 30])  # ridge: both forms, and where they meet
def test_logits_are_those_of_an_independent_writing(learner, width, float64):
    support, query = task(width=width)
    wanted = by_numpy(learner, support, LABELS, query)
    np.testing.assert_allclose(logits(learner, support, LABELS, query), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*[Ll]ine [Ss]earch")  # scikit-learn's, near its last digit
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("labels", "width"), [(LABELS, 20), (LABELS, 3), (np.arange(3), 20), (LABELS % 2, 20)])
def test_logistic_is_scikit_learns(c, labels, width, float64):
    """Also where classes separate, with one row a class, with more rows than features, and for two classes."""
    way = labels.max() + 1
    support, query = task(labels, width, way)
    rival = LogisticRegression(C=c, tol=1e-12, max_iter=10_000, solver="newton-cg").fit(support, labels)
    wanted = rival.predict_log_proba(query)
    found = jax.nn.log_softmax(logits(Logistic(int(way), c), support, labels, query))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_logistic_in_float32_of_long_features():
    support, query = task(np.repeat(np.arange(5), 5), 640, 5)  # of length 60
    labels = np.repeat(np.arange(5), 5)
    wanted = LogisticRegression(tol=1e-10, max_iter=1000).fit(support, labels).decision_function(query)
    found = logits(Logistic(5), support.astype("f"), labels, query.astype("f"))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("learner", LEARNERS, ids=str)
@pytest.mark.parametrize("width", [3, 20])
def test_derivatives_are_finite_differences(learner, width, float64):
    """First and second, by features and by what is learned, in one random direction of all."""
    support, query = task(width=width)
    point = learner.init(jax.random.key(0), width), jnp.asarray(support), jnp.asarray(query)

    @jax.jit
    def loss(learned, support, query):
        out = learner(learned, support, LABELS, query)
        return cross_entropy(out, jnp.array([0, 1, 2, 0])).mean() + 0.1 * (out**2).mean()

    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), point)

    def along(of, t):
        return of(*jax.tree.map(lambda p, d: p + t * d, point, direction))

    def slope(*arguments):
        gradients = jax.grad(loss, (0, 1, 2))(*arguments)
        return sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradients, direction)))

    slope, h = jax.jit(slope), 1e-5
    np.testing.assert_allclose(slope(*point), (along(loss, h) - along(loss, -h)) / (2 * h), rtol=1e-6)
    second = jax.jit(jax.grad(slope, (0, 1, 2)))(*point)
    found = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), second, direction)))
    np.testing.assert_allclose(found, (along(slope, h) - along(slope, -h)) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("learner", LEARNERS, ids=str)
def test_tasks_in_one_call_are_tasks_one_by_one(learner, float64):
    support, query = task()
    many = np.stack([support, 0.1 * support, 5 * support])
    learned = learner.init(jax.random.key(0), 12)
    together = jax.jit(jax.vmap(learner, (None, 0, None, None)))(learned, many, LABELS, query)
    for one, wanted in zip(many, together, strict=True):
        np.testing.assert_allclose(learner(learned, one, LABELS, query), wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("learner", LEARNERS, ids=str)
def test_other_names_of_classes_permute_the_logits_and_the_order_of_rows_is_free(learner, float64):
    support, query = task()
    wanted = np.asarray(logits(learner, support, LABELS, query))
    names, order = np.array([1, 2, 0]), np.random.default_rng(0).permutation(len(LABELS))
    renamed = np.asarray(logits(learner, support[order], names[LABELS[order]], query))
    np.testing.assert_allclose(renamed[:, names], wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("learner", LEARNERS, ids=str)
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_wrong_label_is_an_error_or_nan(learner, wrong):
    support, query = (a.astype("f") for a in task())
    labels = np.array([*LABELS[:-1], wrong])
    with pytest.raises(ConfigError, match=r"labels are .* expected 0 to 2 for a head of 3 classes"):
        logits(learner, support, labels, query)
    learned = learner.init(jax.random.key(0), 12)
    out = jax.jit(lambda s, y: learner(learned, s, y, query))(support, labels)
    assert jnp.isnan(out).all()
    gradient = jax.jit(jax.grad(lambda s, y: learner(learned, s, y, query).sum()))(support, labels)
    assert jnp.isnan(gradient).any()


def test_shapes_and_values_that_do_not_fit_are_errors():
    support, query = task()
    for arguments, message in (
        ((support, LABELS[:4], query), r"labels has shape \(4,\), expected \(9,\): there are 9 support rows of 12"),
        ((support, LABELS, query[:, :5]), r"query has shape \(4, 5\), expected \(4, 12\)"),
    ):
        for learner in LEARNERS:
            with pytest.raises(ConfigError, match=message):
                logits(learner, *arguments)
    for learner in (Prototypes(4), Logistic(4)):
        with pytest.raises(ConfigError, match="class 3 has no support row: each of the 4 classes needs one"):
            logits(learner, support, LABELS, query)
    for learner, message in (
        (Prototypes(3, "manhattan"), "distance is 'manhattan', expected one of euclidean, cosine"),
        (Ridge(3, l2=0), "l2 is 0, expected a positive number"),
        (Logistic(3, c=-1.0), "c is -1.0, expected a positive number"),
    ):
        with pytest.raises(ConfigError, match=message):
            learner.init(jax.random.key(0), 12)

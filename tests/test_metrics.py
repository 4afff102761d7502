"""Cross-entropy, accuracy and intervals, against plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import metrics
from mtl_jax.errors import ConfigError


def test_cross_entropy_and_accuracies():
    logits = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    labels = np.array([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = -np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0])
    np.testing.assert_allclose(metrics.cross_entropy(jnp.asarray(logits), jnp.asarray(labels)), wanted, rtol=1e-5)
    right = logits.argmax(-1) == labels
    np.testing.assert_allclose(metrics.accuracy(jnp.asarray(logits), jnp.asarray(labels)), right.mean(-1))
    by_class = [right[0][labels[0] == c].mean() for c in range(3)]
    np.testing.assert_allclose(metrics.class_accuracy(jnp.asarray(logits[0]), jnp.asarray(labels[0])), by_class)


def test_cross_entropy_of_large_logits_is_finite():
    assert metrics.cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))[0] == pytest.approx(2e4)


def test_interval_is_196_sigma_over_root_n_with_ddof_0():
    values = np.array([0.2, 0.4, 0.9, 0.5])
    mean, ci95 = metrics.mean_interval(values)
    assert mean == pytest.approx(0.5)
    assert ci95 == pytest.approx(1.96 * np.sqrt(((values - 0.5) ** 2).mean() / 4))


def test_paired_difference_lets_what_is_common_cancel():
    rng = np.random.default_rng(0)
    task = rng.uniform(size=1000)
    mean, ci95 = metrics.paired_difference(task + 0.01, task)
    assert mean == pytest.approx(0.01)
    assert ci95 < 1e-9
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        metrics.paired_difference(np.zeros(3), np.zeros(4))


def test_one_value_has_no_interval():
    assert metrics.mean_interval(np.array([0.3])) == (pytest.approx(0.3), None)
    assert metrics.mean_interval(np.array([0.3, 0.5]), distinct=1).ci95 is None  # one task that was drawn twice
    assert metrics.mean_interval(np.array([0.3, 0.5]), distinct=2).ci95 > 0
    assert metrics.paired_difference(np.array([0.5]), np.array([0.3])).ci95 is None


def test_figures_as_text():
    assert metrics.in_percent(0.5, 0.01) == "50.00 ± 1.00"
    assert metrics.in_percent(0.012345, 0.001, "+", 3) == "+1.234 ± 0.100"
    assert metrics.in_percent(0.5, None) == "50.00"
    assert [metrics.describe_tasks(*n) for n in ((1,), (600, 600), (40, 12))] == [
        "1 task", "600 tasks", "40 tasks, 12 of them distinct",
    ]  # fmt: skip


def test_labels_are_one_a_row_and_none_is_taken_for_another():
    scores = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    for function in (metrics.cross_entropy, metrics.accuracy, metrics.class_accuracy):
        with pytest.raises(ConfigError, match=r"labels have shape \(1,\) and logits \(3, 2\)"):
            function(scores, jnp.zeros(1, int))
    every_step = jnp.stack([scores, -scores])
    np.testing.assert_allclose(metrics.accuracy(every_step, jnp.array([1, 0, 1])), [1, 0])
    found = metrics.cross_entropy(scores, jnp.array([-1, 0, 2]))  # -1 is not the last class
    assert jnp.isnan(found).tolist() == [True, False, True]

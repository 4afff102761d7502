"""Features before the head: lengths, means, gradients, that the span form stays, and what the options refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mtl_jax.configs import default

from mtl_jax import adapt_head, adapted_logits, config, create_backbone, evaluation, meta
from mtl_jax.base_learner import logits
from mtl_jax.errors import ConfigError
from mtl_jax.feature_transform import FEATURES, transform
from mtl_jax.types import ClassTable, Episode


def features(seed, rows, width=9):
    return 3 + jax.random.normal(jax.random.key(seed), (rows, width), float)


def test_kinds_are_what_they_say(float64):
    support, query = features(0, 4), features(1, 6)
    assert all(a is b for a, b in zip(transform("plain", support, query), (support, query), strict=True))
    for kind, centre in (("l2", 0), ("centered_l2", support.mean(0))):
        for found, z in zip(transform(kind, support, query), (support, query), strict=True):
            wanted = np.asarray(z - centre) / np.linalg.norm(z - centre, axis=1, keepdims=True)
            np.testing.assert_allclose(found, wanted, atol=1e-12)
    with pytest.raises(ConfigError, match="features is 'cosine', expected one of plain, l2, centered_l2"):
        transform("cosine", support, query)


@pytest.mark.parametrize("kind", FEATURES)
def test_a_feature_of_zeros_has_a_finite_gradient(kind):
    def total(support):
        return sum(part.sum() for part in transform(kind, support, 2 * support))

    assert jnp.isfinite(jax.grad(total)(jnp.zeros((2, 3)))).all()


@pytest.mark.parametrize("kind", FEATURES)
def test_the_query_images_do_not_help_each_other(kind, float64):
    support, query = features(0, 4), features(1, 6)
    together = transform(kind, support, query)[1]
    alone = [transform(kind, support, query[i : i + 1])[1][0] for i in range(6)]
    np.testing.assert_allclose(together, alone, atol=1e-12)


def _setup(kind):
    module = create_backbone("conv4", width=0.06)
    images = jax.random.normal(jax.random.key(0), (8, 28, 28, 1), float)
    variables = jax.tree.map(lambda leaf: leaf.astype(float), module.init(jax.random.key(1), images))
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])
    head = {"kernel": features(3, 4, 2), "bias": jnp.zeros(2)}
    labels = jnp.array([0, 1]), jnp.array([0, 0, 0, 1, 1, 1])
    episode = Episode(images[:2], labels[0], images[2:], labels[1])
    frozen = meta.Frozen(variables["params"], variables["batch_stats"])
    return meta.Embed(module), meta.Inner(5, 0.3, False, features=kind), head, frozen, episode


@pytest.mark.parametrize("kind", FEATURES)
def test_training_and_evaluation_both_put_it_before_the_plain_inner_loop(kind, float64):
    embed, inner, head, frozen, episode = _setup(kind)
    z = [embed(*frozen, images)[0] for images in (episode.support, episode.query)]
    support, query = transform(kind, *z)
    adapted = adapt_head(head, support, episode.support_labels, steps=5, lr=0.3)
    wanted = logits(adapted, query)
    span = adapted_logits(head, support, episode.support_labels, query, steps=5, lr=0.3)
    np.testing.assert_allclose(span, wanted, atol=1e-9)
    found, _ = meta.episode_logits({"head": head}, frozen, episode, embed=embed, inner=inner)
    np.testing.assert_allclose(found, wanted, atol=1e-9)

    protocol = evaluation.Protocol(2, 1, 3, 1, 0, inner)
    tasks = evaluation.Tasks(np.array([[[0], [1]]]), np.array([[[2, 3, 4], [5, 6, 7]]]))
    table = ClassTable(np.zeros((0, 0), np.int32), np.zeros(0, np.int32))
    run = functools.partial(evaluation.adapt_on_bank, head, jnp.concatenate(z), None, table, protocol, tasks=tasks)
    np.testing.assert_allclose(run(outcome=_logits)[0], wanted, atol=1e-6)


def _logits(found, labels):
    return found


def test_it_is_off_and_needs_a_head_that_moves_alone():
    settings = default.get_config()
    assert settings.inner.features == "plain"
    settings.inner.features = "l2"
    config.validate(settings)
    settings.inner.adapt = "all"
    with pytest.raises(ConfigError, match=r"config.inner.features is 'l2', which config.inner.adapt 'all' cannot have"):
        config.validate(settings)

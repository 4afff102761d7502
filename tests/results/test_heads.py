"""The heads of results/heads.py against direct writings, on features of a few dimensions."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize

from mtl_jax.errors import ConfigError
from mtl_jax.evaluation import Tasks, embed_all
from mtl_jax.reference_weights import kept_networks
from results import heads

WAY, SHOT, QUERY, EACH = 3, 2, 4, 8


def make_tasks(count):
    """Tasks of five classes of eight images, and their features: class means with noise, of all lengths."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(5, 1, 6)) + 0.8 * rng.normal(size=(5, EACH, 6))).reshape(-1, 6)
    features *= np.exp(rng.normal(size=(len(features), 1)))
    rows = [
        [number * EACH + rng.permutation(EACH)[: SHOT + QUERY] for number in rng.permutation(5)[:WAY]]
        for _ in range(count)
    ]
    return features, Tasks(*np.split(np.array(rows), [SHOT], axis=2))


def predictions(features, tasks, of_task):
    """The accuracies of `of_task`, (support [N, K, F], a query feature [F]) -> class, image by image."""
    unit = np.stack([z / np.linalg.norm(z) for z in features])
    return [
        np.mean([of_task(unit[support], unit[image]) == number for number, row in enumerate(query) for image in row])
        for support, query in zip(*tasks, strict=True)
    ]


def logistic(support, query):
    """The minimum of |W|^2 / 2 + the summed cross-entropy of the support set, offsets free."""
    x, y = support.reshape(-1, support.shape[-1]), np.repeat(np.arange(WAY), SHOT)

    def loss(flat):
        weights = flat.reshape(-1, WAY)
        logits = x @ weights[:-1] + weights[-1]
        return (weights[:-1] ** 2).sum() / 2 + (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).sum()

    weights = minimize(loss, np.zeros((x.shape[1] + 1) * WAY), tol=1e-9).x.reshape(-1, WAY)
    return (query @ weights[:-1] + weights[-1]).argmax()


def centroid(support, query):
    return min(range(WAY), key=lambda number: np.linalg.norm(query - support[number].mean(0)))


@pytest.mark.parametrize(("head", "direct", "count"), [("logistic", logistic, 12), ("centroid", centroid, 300)])
def test_a_head_is_its_direct_writing(head, direct, count):
    features, tasks = make_tasks(count)
    found = heads.of_features(features, tasks, head, jobs=1)
    assert found.shape == (count,) and 0.4 < found.mean() < 1
    np.testing.assert_allclose(found, predictions(features, tasks, direct))


def test_lengths_do_not_count():
    features, tasks = make_tasks(20)
    longer = features * np.arange(1, len(features) + 1)[:, None]
    for head in heads.HEADS:
        found = [heads.of_features(each, tasks, head, jobs=1) for each in (features, longer)]
        np.testing.assert_array_equal(*found)


def test_a_network_is_tested_by_the_features_of_its_running_averages(monkeypatch):
    monkeypatch.setattr(heads, "JOBS", 1)
    model = kept_networks.read(kept_networks.packaged("fc100-conv4")).model
    images = np.random.default_rng(1).integers(0, 256, (5 * EACH, 32, 32, 3), np.uint8)
    _, tasks = make_tasks(20)
    wanted = heads.of_features(np.asarray(embed_all(model, images)), tasks, "centroid", jobs=1)
    split = SimpleNamespace(images=images)
    trained = model._replace(embed=model.embed._replace(batch_statistics="train"))
    np.testing.assert_array_equal(heads.accuracies(trained, split, tasks, "centroid"), wanted)
    batch = model._replace(embed=model.embed._replace(batch_statistics="batch"))
    with pytest.raises(ConfigError, match=r"batch_norm is 'batch'; heads are tested on features by running averages"):
        heads.accuracies(batch, split, tasks, "centroid")
    with pytest.raises(ConfigError, match=r"head is 'svm', expected one of logistic, centroid"):
        heads.accuracies(model, split, tasks, "svm")

"""`python -m results confidence`: its figures on features of which the answers are known."""

import numpy as np
import pytest

from mtl_jax import FewShotClassifier
from mtl_jax.classify import head
from results import confidence


def test_the_calibration_error_is_the_mean_gap_of_confidence_and_accuracy():
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.3, 0.7]] * 10)
    labels = np.array([0] * 8 + [1] * 2 + [1] * 10)
    assert confidence.calibration_error(probabilities, labels) == pytest.approx((0.1 + 0.3) / 2)
    exact = np.array([0] * 9 + [1] + [1] * 7 + [0] * 3)
    assert confidence.calibration_error(probabilities, exact) == pytest.approx(0, abs=1e-12)


def test_draws_share_no_photograph_and_no_class_of_others():
    labels = np.repeat(np.arange(8), 20)
    photos = confidence.Photos(np.arange(160.0)[:, None], labels)
    draws = list(confidence.draws_of(photos, 5, 3, 4))
    for draw in draws:
        support, query, others = (part[:, 0].astype(int) for part in (draw.support, draw.query, draw.others))
        assert len({*support, *query, *others}) == 15 + 75 + 60
        for label in range(5):
            own = np.concatenate([support[draw.support_labels == label], query[draw.query_labels == label]])
            assert len(set(labels[own])) == 1 and labels[own[0]] not in labels[others]
    again = next(confidence.draws_of(photos, 5, 3, 4))
    np.testing.assert_array_equal(again.support, draws[0].support)
    assert not np.array_equal(draws[0].support, draws[1].support)


def test_the_best_temperature_calibrates():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 40)
    photos = confidence.Photos(np.eye(6, 12)[labels] + 0.5 * rng.normal(size=(240, 12)), labels)
    answers = list(confidence.answers_of(photos, 3, 2, 20))
    best, loss = confidence.best_temperature(answers, 0.0, 0.0)
    assert head.TEMPERATURES[0] < best < head.TEMPERATURES[-1]
    moved, other = confidence.best_temperature([each._replace(likeness=0.5) for each in answers], 2.0, 0.0)
    assert moved == pytest.approx(best / np.exp(1), rel=0.03) and other == pytest.approx(loss, abs=1e-3)
    logs, wanted = [], []
    for draw in confidence.draws_of(photos, 3, 2, 20):
        classifier = FewShotClassifier(temperature=best).fit(draw.support, draw.support_labels)
        logs.append(classifier.predict_proba(draw.query))
        wanted.append(draw.query_labels)
    assert confidence.calibration_error(np.concatenate(logs), np.concatenate(wanted)) < 0.05


def test_scores_of_unknown_are_compared_and_measured():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 30)
    photos = confidence.Photos((np.eye(8, 16)[labels] + 0.05 * rng.normal(size=(240, 16))).astype(np.float32), labels)
    assert confidence.area(np.array([2.0, 3]), np.array([0.0, 1])) == 1
    lines = list(confidence.compared(photos, "fc100-conv4", 2))
    assert len(lines) == 4 and all("cosine with the nearest class mean 100.0" in line for line in lines)
    lines = list(confidence.figures(photos, "fc100-conv4", 2))
    assert "accuracy 100.0 %" in lines[0] and "'unknown'" not in lines[0]
    assert "100.0 % of others" in lines[1]

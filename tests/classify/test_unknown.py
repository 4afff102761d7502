"""'unknown' by likeness to the support set: its score, its threshold, what it answers, and its file."""

import numpy as np
import pytest
from test_networks_of_files import PICTURES, folders, network, run  # noqa: F401, fixtures

from mtl_jax import FewShotClassifier
from mtl_jax.classify import unknown
from mtl_jax.errors import ConfigError


def points(shots, seed=0, features=16):
    """Directions near an axis a class, of any length: ([S, F], int [S])."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(shots)), shots)
    return (np.eye(features)[y] + 0.15 * rng.normal(size=(len(y), features))) * rng.uniform(1, 5, (len(y), 1)), y


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_likeness_is_the_cosine_with_the_nearest_mean_of_directions():
    x, y = points((1, 3, 2))
    queries, _ = points((2, 2, 2), seed=1)
    means = [np.mean([row / np.linalg.norm(row) for row in x[y == c]], 0) for c in range(3)]
    expected = [max(cosine(query, mean) for mean in means) for query in queries]
    np.testing.assert_allclose(unknown.likeness(queries, x, y, 3), expected, rtol=1e-12)


def test_held_out_rows_are_scored_as_if_they_had_never_been_there():
    x, y = points((1, 3, 2))
    expected = [
        unknown.likeness(x[i : i + 1], np.delete(x, i, 0), np.delete(y, i), 3)[0] for i in range(len(y)) if y[i] != 0
    ]
    np.testing.assert_allclose(unknown.held_out_likeness(x, y, 3), expected, rtol=1e-12)


def test_the_share_of_false_alarms_is_what_was_asked_for():
    x, y = points((200, 200, 200))
    queries, _ = points((300, 300, 300), seed=1)
    others = np.random.default_rng(2).normal(size=(300, 16))
    for share in (0.02, 0.1, 0.3):
        classifier = FewShotClassifier(unknown_threshold="auto", false_alarms=share).fit(x, y)
        assert abs(np.mean(classifier.predict(queries) == -1) - share) < 0.03
        assert np.mean(classifier.predict(others) == -1) > 0.99


def test_nothing_is_fitted_again_for_it_and_the_probabilities_stay():
    x, y = points((3, 3, 3))
    classifier = FewShotClassifier().fit(x, y)
    other = np.full((1, 16), 1.0)
    before = classifier.predict_proba(other)
    assert classifier.predict(other)[0] in (0, 1, 2)
    classifier.set_params(unknown_threshold="auto")
    answers, probabilities = classifier.predict_with_proba(other)
    assert answers.tolist() == [-1]
    np.testing.assert_array_equal(probabilities, before)
    with pytest.raises(ConfigError, match="which probabilities do not tell; call predict"):
        classifier.answers(before)


def test_one_photograph_of_each_class_is_too_few_and_a_second_of_one_is_enough():
    x, y = points((1, 1, 1))
    classifier = FewShotClassifier(unknown_threshold="auto")
    with pytest.raises(ConfigError, match="no class has a second photograph to choose it on"):
        classifier.fit(x, y)
    more, labels = points((2, 1, 1))
    assert classifier.fit(more, labels).predict(np.full((1, 16), 1.0)).tolist() == [-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown_threshold": "yes"}, "unknown_threshold is 'yes', expected a probability, 'auto' or None"),
        ({"unknown_threshold": 1.5}, "unknown_threshold is 1.5, expected a probability"),
        ({"unknown_threshold": "auto", "false_alarms": 5}, "false_alarms is 5, expected a share of images"),
    ],
)
def test_what_is_no_threshold_is_said(options, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        FewShotClassifier(**options).fit(*points((3, 3)))


def test_it_is_saved_with_the_classifier(tmp_path):
    x, y = points((3, 3, 3))
    FewShotClassifier(unknown_threshold="auto", false_alarms=0.2).fit(x, y).save(tmp_path / "a.safetensors")
    again = FewShotClassifier.load(tmp_path / "a.safetensors")
    assert (again.unknown_threshold, again.false_alarms) == ("auto", 0.2)
    assert again.predict(np.full((1, 16), 1.0)).tolist() == [-1]


def test_images_that_are_left_out_are_no_unknown_ones(network, tmp_path):  # noqa: F811
    classifier = FewShotClassifier.from_pretrained(network, unknown_threshold="auto")
    classifier.fit(PICTURES, ["a"] * 3 + ["b"] * 3)
    (tmp_path / "no.png").write_text("text")
    with pytest.warns(UserWarning, match="1 file left out"):
        answers = classifier.predict([str(tmp_path / "no.png"), np.zeros((40, 40, 3), np.uint8)], errors="skip")
    assert answers[0] is None and answers[1] is not None


def test_the_program_says_unknown(network, folders, capsys):  # noqa: F811
    words = f"--support={folders / 'support'}", f"--backbone={network}"
    from PIL import Image

    Image.new("RGB", (40, 40), (255, 0, 0)).save(folders / "query" / "red.png")
    assert run(folders, *words, "--unknown", "--unknown-label=none") == 0
    rows = dict(line.split(",")[:2] for line in (folders / "p.csv").read_text().splitlines())
    assert rows["red.png"] == "none"
    assert run(folders, *words, "--unknown=0.5", "--false-alarms=0.1") == 2
    assert "--false-alarms goes with --unknown alone" in capsys.readouterr().err
    assert run(folders, *words, "--unknown=much") == 2
    assert "invalid probability value: 'much'" in capsys.readouterr().err

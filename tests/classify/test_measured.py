"""Temperatures measured in advance: between the measured numbers, with one image a class, with more."""

import json

import numpy as np
import pytest
from test_classifier import blobs
from test_networks_of_files import folders, network, run  # noqa: F401, fixtures

from mtl_jax import FewShotClassifier
from mtl_jax.classify import head, measured
from mtl_jax.reference_weights import kept_networks


class Named:
    """An embedding with the name of a network; features are given instead of images."""

    name = "here"


@pytest.fixture(autouse=True)
def table(monkeypatch, tmp_path):
    content = {"here": {"ways": [2, 8], "shots": [1, 4], "temperatures": [[0.5, 1.0], [2.0, 4.0]],
                        "likeness": 0.0, "slope": 2.0, "range": [-0.5, 0.5]}}  # fmt: skip
    (tmp_path / "table.json").write_text(json.dumps(content))
    monkeypatch.setattr(measured, "TABLE", tmp_path / "table.json")
    measured._table.cache_clear()
    yield
    measured._table.cache_clear()


def test_between_and_beyond_the_measured_numbers():
    for shots, expected in (
        ([1, 1], 0.5), ([4, 4], 1.0), ([2, 2], 0.5**0.5), ([1, 4], 0.5**0.5), ([1] * 8, 2.0), ([2] * 4, 2**0.5),
        ([9] * 20, 4.0),
    ):  # fmt: skip
        labels = np.repeat(np.arange(len(shots)), shots)
        features = np.eye(30)[labels]  # classes are at right angles
        assert measured.temperature("here", features, labels, len(shots)) == pytest.approx(expected)
    assert measured.temperature("elsewhere", features, labels, 2) is None


def test_classes_that_look_alike_get_a_higher_temperature():
    labels = np.array([0, 1])
    for cosine, factor in ((0.25, np.exp(0.5)), (-0.25, np.exp(-0.5)), (0.99, np.exp(1)), (0.5, np.exp(1))):
        features = np.array([[3, 0], [cosine, (1 - cosine**2) ** 0.5]])
        assert measured.temperature("here", features, labels, 2) == pytest.approx(0.5 * factor)


def test_the_likeness_of_classes_is_that_of_pairs():
    x, y = blobs([1, 3, 2])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = [unit[i] @ unit[j] for i in range(6) for j in range(6) if y[i] != y[j]]
    assert measured.likeness_of_classes(x, y, 3) == pytest.approx(np.mean(cosines))


def test_one_image_of_each_class_has_the_measured_temperature():
    x, y = blobs([1, 1])
    classifier = FewShotClassifier(Named()).fit(x, y)
    assert classifier.temperature_ == measured.temperature("here", x, y, 2) and classifier.is_calibrated_
    plain = FewShotClassifier().fit(x, y)
    assert plain.temperature_ == 1 and not plain.is_calibrated_
    for other in (FewShotClassifier(Named(), steps=50), FewShotClassifier(Named(), lr=0.1)):
        assert other.fit(x, y).temperature_ == 1  # it was measured for the default head
    assert FewShotClassifier(temperature=3.0).fit(x, y).is_calibrated_


def test_with_more_images_both_count_and_with_many_more_the_images():
    ratios = []
    for shot in (3, 40):
        x, y = blobs([shot] * 3, spread=1.0)
        logits = head.held_out_logits(x, y, 3, steps=100, lr=0.1)
        own = head.calibrate(logits, y)
        near, far = (head.calibrate(logits, y, own * factor) for factor in (2, 1 / 2))
        assert own / 2 < far < near < own * 2
        ratios.append(near / far)
    assert ratios[1] < 0.8 * ratios[0]


def test_it_is_kept_in_the_file_of_the_classifier(tmp_path):
    for shots, expected in (([1, 1], False), ([2, 1], True)):
        FewShotClassifier().fit(*blobs(shots)).save(tmp_path / "a.safetensors")
        assert FewShotClassifier.load(tmp_path / "a.safetensors").is_calibrated_ == expected


def test_the_program_warns_where_nothing_calibrates(network, folders, capsys):  # noqa: F811
    for file in (folders / "support").rglob("*[14].png"):
        file.unlink()
    assert run(folders, f"--support={folders / 'support'}", f"--backbone={network}") == 0
    assert "the probabilities are not calibrated; add a second image to a class" in capsys.readouterr().err
    assert run(folders, f"--support={folders / 'support'}", f"--backbone={network}", "--temperature=2") == 0
    assert "not calibrated" not in capsys.readouterr().err


def test_the_packages_table_has_every_network(monkeypatch):
    monkeypatch.undo()
    measured._table.cache_clear()
    for name in kept_networks.packaged_names():
        for way in (2, 5, 30):
            for shot in (1, 3, 20):
                labels = np.arange(way).repeat(shot)
                assert 0.1 < measured.temperature(name, np.eye(30)[labels], labels, way) < 10

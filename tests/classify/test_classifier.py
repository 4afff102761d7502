"""FewShotClassifier: scikit-learn's own checks, what a practitioner does with images, and its file."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.exceptions import NotFittedError
from tiny_runs import other_tiny_run, tiny_run  # noqa: F401, fixtures

from mtl_jax import FewShotClassifier
from mtl_jax.classify import head as heads
from mtl_jax.errors import CheckpointError, ConfigError, DataError
from mtl_jax.evaluate import network

# Every check of scikit-learn passes; a check that must fail would stand here with its reason.
EXPECTED_FAILED_CHECKS: dict[str, str] = {}


def blobs(shots, seed=0, features=8, spread=0.3):
    """Points around one corner of a cube a class: (x [S, F], y [S])."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(shots)), shots)
    centres = np.random.default_rng(9).normal(size=(len(shots), features))
    return centres[y] + spread * rng.normal(size=(len(y), features)), y


def stripes(count, kind, size=40, seed=0):
    """Noisy grey pictures of vertical, horizontal or diagonal stripes, which any convolution tells apart."""
    rng = np.random.default_rng((seed, kind))
    y, x = np.mgrid[:size, :size]
    phase = {0: x, 1: y, 2: x + y}[kind]
    return [((np.sin(phase * 1.5 + rng.uniform(0, 6)) > 0) * 180 + rng.integers(0, 60, (size, size))).astype(np.uint8)
            for _ in range(count)]  # fmt: skip


class Energies:
    """A backbone of its own: how much an image changes along each of three directions."""

    fingerprint = "energies"

    def __call__(self, images):
        assert images.dtype == np.uint8 and images.ndim == 4
        p = images.astype(np.float32).mean(-1) / 255
        inner = p[:, 1:-1, 1:-1]
        moved = (p[:, 1:-1, 2:], p[:, 2:, 1:-1], p[:, 2:, :-2])
        return np.stack([np.abs(inner - m).mean((1, 2)) for m in moved], 1)


def photographs():
    """Nine pictures, three of each kind of stripes, and their labels."""
    return [image for kind in range(3) for image in stripes(3, kind)], np.repeat(["a", "b", "c"], 3)


@pytest.mark.parametrize("form", ["arrays", "files"])
def test_a_photograph_under_two_labels_is_refused_by_its_pixels(form, tmp_path):
    x, y = photographs()
    x[4] = x[0].copy()
    where = "image 4: the same image as image 0"
    if form == "files":
        for i, image in enumerate(x):
            Image.fromarray(image).save(tmp_path / f"{i}.{'png' if i % 2 else 'bmp'}")
        x = [tmp_path / f"{i}.{'png' if i % 2 else 'bmp'}" for i in range(9)]
        where = r"4\.bmp: the same image as .*0\.bmp"
    with pytest.raises(DataError, match=where + ", but labelled 'b' instead of 'a'; keep it under one label"):
        FewShotClassifier(Energies(), image_size=16).fit(x, y)


def test_other_copies_of_photographs_are_warned_of(recwarn):
    x, y = photographs()
    classifier = FewShotClassifier(Energies(), image_size=16).fit(x, y)
    assert not recwarn.list
    # What only looks alike once it is small is another photograph.
    large = [np.kron(image, np.ones((2, 2), np.uint8)) for image in x]
    classifier.fit([*x, *large], [*y, *np.roll(y, 3)])
    assert not recwarn.list
    x[1] = x[0].copy()
    with pytest.warns(UserWarning, match=r"^image 1 is the same image as image 0: a copy counts twice"):
        classifier.fit(x, y)


def test_a_photograph_that_comes_again_under_another_label_is_refused(tmp_path):
    x, y = photographs()
    classifier = FewShotClassifier(Energies(), image_size=16).fit(x, y)
    with pytest.raises(DataError, match="image 0: the same image as image 3, but labelled 'd' instead of 'b'"):
        classifier.partial_fit([x[3]], ["d"])
    assert list(classifier.classes_) == ["a", "b", "c"]  # nothing was learned
    classifier.save(tmp_path / "kept")
    again = FewShotClassifier.load(tmp_path / "kept", Energies())
    again.partial_fit(stripes(1, 0, seed=5), ["d"])  # a file knows features alone
    assert len(again.support_images_) == 10


def test_features_that_are_the_same_are_not_looked_at(recwarn):
    x, y = blobs((3, 3))
    x[3] = x[1] = x[0]
    FewShotClassifier().fit(x, y)
    assert not recwarn.list


@pytest.fixture
def folders(tmp_path):
    """Three class folders with unequal numbers of pictures of unequal sizes and formats."""
    files, names = [], []
    for kind, (name, count) in enumerate({"vertical": 3, "horizontal": 4, "diagonal": 2}.items()):
        (tmp_path / name).mkdir()
        for i, image in enumerate(stripes(count, kind)):
            path = tmp_path / name / f"{i}.{'png' if i % 2 else 'jpg'}"
            Image.fromarray(image[: 40 - 3 * i]).save(path)
            files.append(path)
            names.append(name)
    return files, names


@pytest.mark.filterwarnings("ignore")  # scikit-learn's checks warn of what they skip (pandas, array API)
def test_scikit_learns_checks_of_an_estimator():
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(
        FewShotClassifier(steps=50), expected_failed_checks=EXPECTED_FAILED_CHECKS, on_fail=None, on_skip=None
    )
    wrong = [(r["check_name"], r["exception"]) for r in results if r["status"] not in ("passed", "xfail", "skipped")]
    assert not wrong and len(results) > 40


def test_it_works_in_scikit_learns_pipelines_and_searches():
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = blobs([6, 6, 6])
    pipeline = make_pipeline(StandardScaler(), FewShotClassifier())
    assert cross_val_score(pipeline, x, y, cv=2).mean() > 0.9
    assert GridSearchCV(FewShotClassifier(), {"steps": [1, 50]}, cv=2).fit(x, y).best_score_ > 0.9


def test_importing_the_library_does_not_import_scikit_learn():
    code = "import sys, mtl_jax; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_before_fit_it_says_so():
    with pytest.raises(NotFittedError, match="This FewShotClassifier instance is not fitted yet"):
        FewShotClassifier().predict(blobs([1])[0])
    with pytest.raises(NotFittedError, match="nothing to save: this FewShotClassifier is not fitted yet"):
        FewShotClassifier().save("never written")


def test_an_empty_batch_of_images_is_refused():
    with pytest.raises(DataError, match="X is empty: no images"):
        FewShotClassifier(Energies()).fit(np.zeros((0, 4, 4, 3), np.uint8), [])


def test_the_head_is_the_minimiser_of_the_balanced_loss():
    # With enough steps the probabilities of each class sum to its share of the balanced loss: the gradient is zero.
    x, y = blobs([2, 5, 11], spread=1.0)
    head = heads.fit_head(x, y, 3, steps=3000, lr=heads.step_size(x, heads.balanced_weights(y, 3)))
    logits = x @ head["kernel"] + head["bias"]
    residual = np.exp(heads.log_softmax(logits)) - np.eye(3)[y]
    weights = 1 / (3 * np.array([2, 5, 11])[y])
    assert np.abs(x.T @ (weights[:, None] * residual)).max() < 5e-3
    assert np.abs(weights @ residual).max() < 5e-3


def test_one_step_from_zero_is_the_gradient_by_hand():
    x, y = blobs([1, 3])
    head = heads.fit_head(x, y, 2, steps=1, lr=0.7)
    weights = np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    residual = weights[:, None] * (np.full((4, 2), 0.5) - np.eye(2)[y])
    np.testing.assert_allclose(head["kernel"], -0.7 * x.T @ residual, atol=1e-6)
    np.testing.assert_allclose(head["bias"], -0.7 * residual.sum(0), atol=1e-6)


def test_many_shots_of_one_class_do_not_drown_another():
    x, y = blobs([40, 2], spread=1.2)
    answers = FewShotClassifier(steps=20).fit(x, y).predict(blobs([200, 200], seed=1, spread=1.2)[0])
    right = answers == np.repeat([0, 1], 200)
    assert abs(right[:200].mean() - right[200:].mean()) < 0.15


def test_names_and_order_of_classes_change_nothing():
    x, y = blobs([2, 3, 4])
    one = FewShotClassifier().fit(x, np.array(["a", "b", "c"])[y])
    other = FewShotClassifier().fit(x[::-1], np.array(["z", "b", "a"])[y[::-1]])
    queries = blobs([5, 5, 5], seed=1)[0]
    np.testing.assert_allclose(one.predict_proba(queries), other.predict_proba(queries)[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("shots", [[3, 3, 2], [60, 50, 30]])
def test_held_out_logits_are_those_of_heads_fitted_without_the_row(shots):
    x, y = blobs(shots)
    held_out = heads.held_out_logits(x, y, 3, steps=30, lr=0.2)
    if len(y) <= heads.LEAVE_ONE_OUT_ROWS:
        rows = np.array([4])
        kept = np.delete(np.arange(len(y)), rows)
    else:  # a tenth of the rows at a time; y is sorted already
        rows = np.arange(3, len(y), heads.FOLDS)
        kept = np.setdiff1d(np.arange(len(y)), rows)
    head = heads.fit_head(x[kept], y[kept], 3, steps=30, lr=0.2)
    np.testing.assert_allclose(held_out[rows], x[rows] @ head["kernel"] + head["bias"], atol=1e-4)


def test_the_temperature_makes_probabilities_honest():
    x, y = blobs([25] * 4, spread=1.5)
    queries, truth = blobs([500] * 4, seed=1, spread=1.5)

    def error(classifier):
        probabilities = classifier.fit(x, y).predict_proba(queries)
        right = probabilities.argmax(1) == truth
        return abs(probabilities.max(1).mean() - right.mean())

    calibrated = FewShotClassifier(steps=5)
    assert error(calibrated) < 0.08 < error(FewShotClassifier(steps=5, temperature=1.0))
    assert calibrated.temperature_ != 1 and calibrated.temperature is None


def test_one_shot_of_each_class_says_nothing_of_the_temperature():
    assert FewShotClassifier().fit(*blobs([1, 1, 1])).temperature_ == 1.0
    assert FewShotClassifier().fit(*blobs([1, 1, 4])).temperature_ != 1.0


def test_unknown_is_answered_below_the_threshold():
    x, y = blobs([5, 5])
    far = np.concatenate([x[:1], (x[:5] + x[5:]).mean(0, keepdims=True) / 2])
    known = FewShotClassifier().fit(x, y)
    threshold = float(np.sort(known.predict_proba(far).max(1)).mean())
    numbers = FewShotClassifier(unknown_threshold=threshold).fit(x, y).predict(far)
    assert numbers.tolist() == [0, -1]
    texts = FewShotClassifier(unknown_threshold=threshold).fit(x, np.array(["cat", "dog"])[y]).predict(far)
    assert texts.tolist() == ["cat", "unknown"]
    with pytest.raises(ConfigError, match="'unknown' is a class"):
        FewShotClassifier(unknown_threshold=0.5).fit(x, np.array(["unknown", "dog"])[y])


def test_partial_fit_equals_fit_on_everything():
    x, y = blobs([4, 3, 5])
    names = np.array(["ant", "bee", "caterpillar"])[y]  # the longest name comes last
    whole = FewShotClassifier().fit(x, names)
    parts = FewShotClassifier()
    for rows in np.array_split(np.arange(len(y)), 4):
        parts.partial_fit(x[rows], names[rows])
    assert parts.classes_.tolist() == whole.classes_.tolist() and parts.temperature_ == whole.temperature_
    np.testing.assert_array_equal(parts.predict_proba(x), whole.predict_proba(x))


def test_partial_fit_embeds_only_what_is_new():
    seen = []

    def embed(images):
        seen.append(len(images))
        return Energies()(images)

    classifier = FewShotClassifier(embed).fit(stripes(3, 0) + stripes(2, 1), [0] * 3 + [1] * 2)
    classifier.partial_fit(stripes(4, 2), [2] * 4)
    assert seen == [5, 4]
    assert classifier.predict(stripes(3, 2, seed=5)).tolist() == [2, 2, 2]


def test_paths_pillow_images_and_arrays_are_the_same_images(folders):
    files, names = folders
    classifier = FewShotClassifier(Energies(), image_size=28, channels=3).fit(files, names)
    answers = classifier.predict_proba(files)
    images = [Image.open(path) for path in files]
    np.testing.assert_array_equal(classifier.predict_proba([str(path) for path in files]), answers)
    np.testing.assert_array_equal(classifier.predict_proba(images), answers)
    np.testing.assert_array_equal(classifier.predict_proba([np.asarray(image) for image in images]), answers)
    assert classifier.score(files, names) == 1.0


def test_own_images_with_a_trained_network(tiny_run, folders):  # noqa: F811
    files, names = folders
    classifier = FewShotClassifier.from_workdir(tiny_run).fit(files, names)
    queries = [stripe for kind in range(3) for stripe in stripes(10, kind, seed=7)]
    truth = np.repeat(["vertical", "horizontal", "diagonal"], 10)
    assert classifier.score(queries, truth) > 0.8
    assert classifier.steps == classifier.embed.inner.steps and classifier.lr == classifier.embed.inner.lr


def test_features_are_those_of_evaluation_and_do_not_depend_on_the_batch(tiny_run):  # noqa: F811
    from mtl_jax import config, evaluation, workdir
    from mtl_jax.config import build

    settings = config.read(workdir.Workdir(tiny_run).config)
    split = build.dataset(settings.data).splits["test"]
    _, model = network.trained(settings, workdir.Workdir(tiny_run), split.images.shape[1:])
    embed = FewShotClassifier.from_workdir(tiny_run).embed
    expected = np.asarray(evaluation.embed_all(model, split.images[:300]))
    np.testing.assert_allclose(embed(np.asarray(split.images[:300])), expected, atol=1e-6)
    np.testing.assert_allclose(embed(np.asarray(split.images[:3])), expected[:3], atol=1e-6)
    copied = pickle.loads(pickle.dumps(embed))
    np.testing.assert_array_equal(copied(np.asarray(split.images[:3])), embed(np.asarray(split.images[:3])))


def test_a_saved_classifier_answers_the_same_and_knows_its_backbone(tiny_run, other_tiny_run, folders, tmp_path):  # noqa: F811
    files, names = folders
    classifier = FewShotClassifier.from_workdir(tiny_run, unknown_threshold=0.1).fit(files, names)
    classifier.save(tmp_path / "stripes.safetensors")
    loaded = FewShotClassifier.load(tmp_path / "stripes.safetensors", tiny_run)
    np.testing.assert_array_equal(loaded.predict_proba(files), classifier.predict_proba(files))
    assert loaded.unknown_threshold == 0.1 and loaded.classes_.tolist() == classifier.classes_.tolist()
    loaded.partial_fit(files[:1], ["new"])
    assert "new" in loaded.classes_
    with pytest.raises(CheckpointError, match="fitted on features of backbone"):
        FewShotClassifier.load(tmp_path / "stripes.safetensors", other_tiny_run)
    alone = FewShotClassifier.load(tmp_path / "stripes.safetensors")
    np.testing.assert_array_equal(alone.predict_proba(classifier.support_features_), classifier.predict_proba(files))
    with pytest.raises(DataError, match="no embed"):
        alone.predict(files)


@pytest.mark.parametrize("labels", [[3, 7], [True, False], ["a", "bcd"], [1.0, 2.0]])
def test_kinds_of_labels_survive_the_file(labels, tmp_path):
    x, y = blobs([2, 2])
    classifier = FewShotClassifier().fit(x, np.array(labels)[y])
    classifier.save(tmp_path / "c.safetensors")
    answers = FewShotClassifier.load(tmp_path / "c.safetensors").predict(x)
    np.testing.assert_array_equal(answers, classifier.predict(x))
    assert answers.dtype == np.array(labels).dtype


def test_a_damaged_file_is_an_error_of_one_line(tmp_path):
    path = tmp_path / "c.safetensors"
    FewShotClassifier().fit(*blobs([2, 2])).save(path)
    whole = path.read_bytes()
    for data in (
        b"",
        whole[:50],
        whole[:-3],
        b"\x80\x04pickle" + whole,
        whole.replace(b'\\"format\\"', b'\\"fromat\\"'),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"c\.safetensors: .*save it again"):
            FewShotClassifier.load(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors, path)  # without the metadata
    with pytest.raises(CheckpointError, match="not a whole file"):
        FewShotClassifier.load(path)
    with pytest.raises(CheckpointError, match="no such file"):
        FewShotClassifier.load(tmp_path / "none")


def test_support_labels_that_are_no_classes_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    classifier = FewShotClassifier().fit(*blobs([2, 2]))
    classifier.support_labels_ = classifier.support_labels_ + 1
    classifier.save(path)
    with pytest.raises(CheckpointError, match="support labels that are no positions in its classes"):
        FewShotClassifier.load(path)


def test_images_that_cannot_be_read_are_skipped_where_asked(folders, tmp_path):
    files, names = folders
    classifier = FewShotClassifier(Energies(), image_size=16).fit(files, names)
    (tmp_path / "a.png").write_bytes(b"<html>")
    mixed = [tmp_path / "a.png", *files, tmp_path / "missing.jpg"]
    with pytest.raises(DataError, match=r"a\.png: not an image"):
        classifier.predict(mixed)
    with pytest.warns(
        UserWarning, match=r"^2 files left out: .*a\.png: not an image but an HTML page.*; .*missing\.jpg: "
    ):
        answers = classifier.predict(mixed, errors="skip")
    assert answers.dtype == object and answers[0] is answers[-1] is None
    assert answers[1:-1].tolist() == classifier.predict(files).tolist()
    with pytest.warns(UserWarning, match="2 files left out"):
        probabilities = classifier.predict_proba(mixed, errors="skip")
    assert np.isnan(probabilities[[0, -1]]).all()
    np.testing.assert_array_equal(probabilities[1:-1], classifier.predict_proba(files))
    classifier.set_params(unknown_threshold=1.0)
    with pytest.warns(UserWarning, match="2 files left out"):
        assert classifier.predict(mixed, errors="skip").tolist() == [None, *["unknown"] * len(files), None]
    with pytest.warns(UserWarning, match="1 file left out"):
        assert classifier.predict(mixed[:1], errors="skip").tolist() == [None]


def test_skipping_changes_nothing_where_all_can_be_read(folders):
    files, names = folders
    classifier = FewShotClassifier(Energies(), image_size=16).fit(files, names, errors="skip")
    answers = classifier.predict(files, errors="skip")
    assert answers.dtype.kind == "U" and len(classifier.support_labels_) == len(files)
    with pytest.raises(ConfigError, match="errors is 'ignore', expected one of raise, skip"):
        classifier.predict(files, errors="ignore")
    with pytest.raises(ConfigError, match="errors is 'ignore'"):
        FewShotClassifier().fit(*blobs([2, 2]), errors="ignore")


def test_a_support_set_without_what_cannot_be_read(folders, tmp_path):
    files, names = folders
    plain = FewShotClassifier(Energies(), image_size=16).fit(files, names)
    (tmp_path / "a.png").write_bytes(b"")
    mixed, labels = [tmp_path / "a.png", *files], [names[-1], *names]
    classifier = FewShotClassifier(Energies(), image_size=16)
    with pytest.warns(UserWarning, match=r"^1 file left out: .*a\.png: the file is empty"):
        classifier.fit(mixed, labels, errors="skip")
    np.testing.assert_array_equal(classifier.coef_, plain.coef_)
    with pytest.warns(UserWarning, match="1 file left out"):
        classifier.partial_fit([mixed[0], stripes(1, 0, seed=7)[0]], [names[0]] * 2, errors="skip")
    assert len(classifier.support_labels_) == len(files) + 1
    with (
        pytest.warns(UserWarning, match="1 file left out"),
        pytest.raises(DataError, match=r"no image of class 'new' can be read; left out: .*the file is empty"),
    ):
        classifier.partial_fit(mixed[:1], ["new"], errors="skip")
    with pytest.warns(UserWarning, match="1 file"), pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier.fit(mixed, names, errors="skip")


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 8, 8, 3), np.uint8), np.array([], object)])
def test_no_images_are_said_to_be_none(folders, nothing):
    classifier = FewShotClassifier(Energies(), image_size=16)
    with pytest.raises(DataError, match=r"^X is empty: no images$"):
        classifier.fit(nothing, [])
    classifier.fit(*folders)
    for method in (classifier.predict, classifier.predict_proba):
        with pytest.raises(DataError, match=r"^X is empty: no images$"):
            method(nothing)


def test_a_folder_of_class_folders_is_fitted(folders):
    files, names = folders
    root = files[0].parents[1]
    plain = FewShotClassifier(Energies(), image_size=16).fit(files, names)
    classifier = FewShotClassifier(Energies(), image_size=16).fit_folder(str(root))
    np.testing.assert_allclose(classifier.coef_, plain.coef_, atol=1e-6)
    assert classifier.classes_.tolist() == ["diagonal", "horizontal", "vertical"]
    (root / "diagonal" / "notes.txt").write_text("a text")
    with pytest.warns(UserWarning, match=r"^1 file left out: .*notes\.txt: not an image"):
        classifier.fit_folder(root)
    (root / "diagonal" / "notes.txt").unlink()
    (root / "diagonal" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"c\.png: .*; replace it, or leave it out"):
        classifier.fit_folder(root)
    with pytest.warns(UserWarning, match=r"1 file left out: .*c\.png"):
        classifier.fit_folder(root, errors="skip")
    assert len(classifier.support_labels_) == len(files)
    with pytest.raises(DataError, match="none: no such folder"):
        classifier.fit_folder(root / "none")


def test_a_file_is_loaded_with_the_network_of_the_package_that_it_was_fitted_with(folders, tmp_path):
    files, names = folders
    classifier = FewShotClassifier.from_pretrained().fit(files, names)
    classifier.save(tmp_path / "c.safetensors")
    loaded = FewShotClassifier.load(tmp_path / "c.safetensors")
    assert loaded.embed.fingerprint == classifier.embed.fingerprint
    np.testing.assert_array_equal(loaded.predict_proba(files), classifier.predict_proba(files))


def test_what_images_can_be_wrong_with(tmp_path):
    (tmp_path / "a.png").write_bytes(b"<html>")
    classifier = FewShotClassifier(Energies())
    with pytest.raises(DataError, match=r"a\.png: not an image but an HTML page"):
        classifier.fit([tmp_path / "a.png"], ["a"])
    with pytest.raises(DataError, match=r"missing\.png: cannot be read"):
        classifier.fit([tmp_path / "missing.png"], ["a"])
    with pytest.raises(DataError, match=r"image 1: an image of .* bring them to one size"):
        classifier.fit([np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)], ["a", "b"])
    with pytest.raises(DataError, match="pixels are uint8"):
        classifier.fit(np.zeros((2, 4, 4, 3)), ["a", "b"])
    with pytest.raises(DataError, match="no embed"):
        FewShotClassifier().fit(np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"])
    with pytest.raises(DataError, match=r"an HTML page .*; replace it, or leave it out$"):
        classifier.fit([tmp_path / "a.png"], ["a"])


@pytest.mark.parametrize(
    "one", ["a.png", Path("a.png"), Image.new("L", (8, 8)), np.zeros((8, 8, 3), np.uint8)], ids=lambda one: type(one)
)
def test_a_single_image_is_asked_for_as_a_list(one):
    with pytest.raises(DataError, match=r"X is a single image; give a list of images: \[image\]"):
        FewShotClassifier(Energies()).fit(one, ["a"])
    with pytest.raises(DataError, match="X is an iterator"):
        FewShotClassifier(Energies()).fit(iter([one]), ["a"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"steps": 0}, "steps is 0"), ({"lr": "fast"}, "lr is 'fast'"), ({"lr": -1}, "lr is -1"),
     ({"temperature": 0.0}, "temperature is 0.0"), ({"unknown_threshold": 2}, "unknown_threshold is 2")],
)  # fmt: skip
def test_parameters_are_checked_when_fitting(parameters, message):
    with pytest.raises(ConfigError, match=message):
        FewShotClassifier(**parameters).fit(*blobs([2, 2]))


def test_a_run_whose_features_depend_on_the_batch_is_refused(tiny_run, tmp_path):  # noqa: F811
    text = (tiny_run / "config.json").read_text()
    meta = text.index('"meta"')
    (tmp_path / "config.json").write_text(
        text[:meta] + text[meta:].replace('"batch_norm": "running"', '"batch_norm": "batch"', 1)
    )
    with pytest.raises(ConfigError, match="features depend on the images beside it"):
        FewShotClassifier.from_workdir(tmp_path)

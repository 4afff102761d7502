"""FewShotClassifier with base-learners other than its own head: each against the base-learner called by hand."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from tiny_runs import tiny_run  # noqa: F401, a fixture

from mtl_jax import FewShotClassifier, config
from mtl_jax.classify import head as heads
from mtl_jax.classify import learner as learning
from mtl_jax.config import build
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.evaluate import network
from mtl_jax.learners import Inner, with_way
from mtl_jax.solved_learners import Logistic, Prototypes, Ridge
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints

LEARNERS = [
    Prototypes(5, "cosine"), Ridge(5, 0.5), Logistic(5), Inner(20, 0.3, features="l2"),
    Inner(5, 0.1, head="cosine", start="prototypes", ensemble=True, learn_lr=True),
]  # fmt: skip


def name_of(value):
    """A short name for a test's line."""
    return getattr(value, "__name__", type(value).__name__)


each = pytest.mark.parametrize("learner", LEARNERS, ids=name_of)


def blobs(shots, seed=0, features=8, spread=0.3):
    """Points around one corner of a cube a class: (x [S, F], y [S])."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(shots)), shots)
    centres = np.random.default_rng(9).normal(size=(len(shots), features))
    return centres[y] + spread * rng.normal(size=(len(y), features)), y


def nearest_row(learned, support, labels, query):
    """A base-learner of one's own, in NumPy: minus the distance to the nearest row of each class."""
    support, labels, query = map(np.asarray, (support, labels, query))
    distances = ((query[:, None] - support) ** 2).sum(-1)
    return np.stack([-distances[:, labels == c].min(1) for c in range(labels.max() + 1)], 1) * learned.get("scale", 1)


def softmax(logits):
    return np.asarray(jax.nn.softmax(jnp.asarray(logits), -1))


@each
def test_answers_are_those_of_the_base_learner(learner):
    x, y = blobs([4, 4, 4])
    queries = blobs([3, 2, 2], seed=1, spread=1.0)[0]
    classifier = FewShotClassifier(base_learner=learner, temperature=2.0).fit(x, np.array(["a", "b", "c"])[y])
    by_hand = with_way(learner, 3)
    learned = by_hand.init(jax.random.key(0), 8)
    expected = softmax(
        jax.jit(lambda *arrays: by_hand(*arrays))(learned, jnp.float32(x), jnp.asarray(y), jnp.float32(queries)) / 2
    )
    np.testing.assert_allclose(classifier.predict_proba(queries), expected, atol=2e-5)
    assert classifier.score(blobs([20] * 3, seed=2)[0], np.repeat(["a", "b", "c"], 20)) > 0.9
    assert not hasattr(classifier, "coef_") and classifier.base_learner == learner


@pytest.mark.parametrize("learner", [*LEARNERS, nearest_row], ids=name_of)
def test_names_order_and_numbers_of_photographs(learner):
    x, y = blobs([2, 3, 1, 4])
    one = FewShotClassifier(base_learner=learner).fit(x, np.array(list("abcd"))[y])
    other = FewShotClassifier(base_learner=learner).fit(x[::-1], np.array(list("zyxw"))[y[::-1]])
    queries, truth = blobs([5] * 4, seed=1)
    np.testing.assert_allclose(one.predict_proba(queries), other.predict_proba(queries)[:, ::-1], atol=2e-3)
    assert one.temperature_ == pytest.approx(other.temperature_, rel=1e-3) and one.temperature_ != 1
    assert one.score(queries, np.array(list("abcd"))[truth]) > 0.9


@pytest.mark.parametrize("loss_scale", ["mean", "per_shot"])
def test_every_class_counts_the_same_in_an_inner_loop(loss_scale):
    x, y = blobs([1, 3, 4])
    lr = 0.5 if loss_scale == "mean" else 0.5 / 3
    inner = FewShotClassifier(base_learner=Inner(30, lr, loss_scale=loss_scale), temperature=1.0).fit(x, y)
    plain = FewShotClassifier(steps=30, lr=0.5, temperature=1.0).fit(x, y)
    np.testing.assert_allclose(inner.predict_proba(x), plain.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize("learner", [Ridge(0), Prototypes(0), nearest_row], ids=name_of)
@pytest.mark.parametrize("shots", [[3, 1, 2], [60, 1, 47]])
def test_held_out_logits_are_of_classifiers_fitted_without_the_row(learner, shots):
    x, y = blobs(shots)
    fitted = learning.fitted(learner, None, x, y, 3, temperature=1.0)
    own = fitted["base_learner"], fitted["learned"]
    held_out, rows = learning.held_out_logits(*own, x, y, 3)
    assert sorted(rows) == np.flatnonzero(y != 1).tolist()  # never the only row of a class
    if len(y) <= heads.LEAVE_ONE_OUT_ROWS:
        out = rows[:1]
    else:
        out = rows[heads.folds(y[y != 1])[np.searchsorted(np.flatnonzero(y != 1), rows)] == 3]
        assert len(out) == 11
    kept = np.setdiff1d(np.arange(len(y)), out)
    expected = learning.logits(*own, x[kept], y[kept], x[out], 3)
    np.testing.assert_allclose(held_out[np.isin(rows, out)], expected, atol=1e-4)


def test_probabilities_are_honest_whatever_the_size_of_the_logits():
    x, y = blobs([10] * 3, spread=1.0)
    queries, truth = blobs([200] * 3, seed=1, spread=1.0)
    classifiers = [FewShotClassifier(base_learner=Prototypes(3, scale=scale)).fit(x, y) for scale in (0.001, 1.0, 1e3)]
    small, plain, large = [classifier.predict_proba(queries) for classifier in classifiers]
    np.testing.assert_allclose(small, plain, atol=1e-3)
    np.testing.assert_allclose(large, plain, atol=1e-3)
    assert abs(plain.max(1).mean() - (plain.argmax(1) == truth).mean()) < 0.08


def test_one_photograph_of_each_class_says_nothing_of_the_temperature():
    assert FewShotClassifier(base_learner=Ridge(5)).fit(*blobs([1, 1, 1])).temperature_ == 1.0


@pytest.mark.parametrize("learner", [Ridge(5), Inner(5, 0.3, features="l2"), nearest_row], ids=name_of)
def test_classes_and_photographs_may_come_later(learner):
    x, y = blobs([4, 3, 5])
    whole = FewShotClassifier(base_learner=learner).fit(x, y)
    parts = FewShotClassifier(base_learner=learner)
    for label in range(3):  # a single class at first
        parts.partial_fit(x[y == label], y[y == label])
    np.testing.assert_allclose(parts.predict_proba(x), whole.predict_proba(x), atol=1e-6)
    again = clone(whole).fit(x, y)
    np.testing.assert_array_equal(again.predict_proba(x), whole.predict_proba(x))
    whole.set_params(base_learner=None, unknown_threshold=0.99).refit()
    assert whole.coef_.shape == (8, 3) and not hasattr(whole, "base_learner_")
    whole.set_params(base_learner=learner).refit()
    assert not hasattr(whole, "coef_")
    assert set(whole.predict(np.zeros((2, 8)))) <= {0, 1, 2, -1}


@pytest.mark.filterwarnings("ignore")  # as in test_classifier.py
def test_scikit_learns_checks_of_an_estimator():
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(FewShotClassifier(base_learner=Prototypes(0)), on_fail=None, on_skip=None)
    wrong = [(r["check_name"], r["exception"]) for r in results if r["status"] not in ("passed", "skipped")]
    assert not wrong and len(results) > 40


@each
def test_a_file_says_which_base_learner(learner, tmp_path):
    x, y = blobs([3, 4, 2])
    classifier = FewShotClassifier(base_learner=learner, unknown_threshold=0.2).fit(x, y)
    classifier.save(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", framework="np") as file:
        content = json.loads(file.metadata()["mtl_jax"])
    assert content["base_learner"]["name"] == type(learner).__name__ and content["base_learner"]["way"] == 3
    loaded = FewShotClassifier.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(x), classifier.predict_proba(x))
    more = loaded.partial_fit(x[:2] + 5, [7, 7]).predict_proba(x)
    np.testing.assert_array_equal(more, classifier.partial_fit(x[:2] + 5, [7, 7]).predict_proba(x))


def test_what_was_learned_goes_into_the_file(tmp_path):
    x, y = blobs([3, 4, 2])
    learned = {"log_l2": np.float32(-3), "scale": np.float32(7)}
    classifier = FewShotClassifier(base_learner=Ridge(5), learned=learned).fit(x, y)
    classifier.save(tmp_path / "c.safetensors")
    loaded = FewShotClassifier.load(tmp_path / "c.safetensors").refit()
    assert loaded.learned_["log_l2"] == -3
    np.testing.assert_array_equal(loaded.predict_proba(x), classifier.predict_proba(x))
    tensors = load_file(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", framework="np") as file:
        metadata = file.metadata()
    damaged = [("Ridge", "Rigde"), ('"way": 3', '"way": 4'), ('"way": 3', '"vay": 3'), ('"plain"', '"plan"')]
    for old, new in damaged:
        save_file(tensors, tmp_path / "d", {"mtl_jax": metadata["mtl_jax"].replace(old, new)})
        with pytest.raises(CheckpointError, match="damaged classifier file"):
            FewShotClassifier.load(tmp_path / "d")
    for name in ("learned/scale", "support_features"):
        save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "d", metadata)
        with pytest.raises(CheckpointError, match=r"d: .*save it again"):
            FewShotClassifier.load(tmp_path / "d")


def test_a_function_of_ones_own_is_not_saved(tmp_path):
    classifier = FewShotClassifier(base_learner=nearest_row, learned={"scale": 2.0}).fit(*blobs([2, 2]))
    with pytest.raises(ConfigError, match=r"^base_learner is nearest_row, code of your own, which no file can hold; "):
        classifier.save(tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"base_learner": "ridge"}, "base_learner is 'ridge', expected None, a value of Inner, Logistic, .*Ridge"),
        ({"base_learner": Ridge}, "base_learner is .*Ridge'>, expected"),
        ({"base_learner": Inner(3, 0.1, adapt="all")}, "adapts the backbone too"),
        ({"base_learner": Inner(3, 0.1, head="square")}, "head is 'square'"),
        ({"base_learner": Inner(3, [0.1] * 3)}, r"base_learner.lr is \[0.1"),
        ({"base_learner": Inner(3, 0.1, head="cosine")}, "cannot start from zeros"),
        ({"base_learner": Prototypes(3, "manhattan")}, "distance is 'manhattan'"),
        ({"base_learner": Ridge(3), "learned": {"log_l2": 0.0}}, "learned has no 'scale', which Ridge takes"),
        ({"base_learner": Inner(3, 0.1), "learned": {"kernel": np.zeros((8, 5)), "bias": np.zeros(5)}}, r"\[1, 5\]"),
        ({"base_learner": lambda learned, s, y, q: q}, r"gives logits \[1, 8\] for 1 rows and 2 classes"),
        ({"base_learner": lambda learned, s, y, q: q[:, :2] * np.nan}, "not finite"),
    ],
)
def test_what_cannot_be_is_said_when_fitting(parameters, message):
    classifier = FewShotClassifier(**parameters)
    with pytest.raises(ConfigError, match=message) as error:
        classifier.fit(*blobs([2, 2]))
    assert "\n" not in str(error.value) and not hasattr(classifier, "classes_")


def run_of(tiny_run, path, **inner):  # noqa: F811
    """`tiny_run` as if trained with another base-learner: its config says so, and its checkpoint has one."""
    shutil.copytree(tiny_run, path)
    settings = config.read(Workdir(path).config)
    settings.inner.update(inner)
    Workdir(path).config.write_text(json.dumps(config.to_json(settings)))
    checkpoints = Checkpoints(path / "meta")
    found = checkpoints.read(checkpoints.best()["step"])
    start = build.fresh_head(settings, len(found.items["learned"]["head"]["kernel"]))
    found.items["learned"]["head"] = jax.tree.map(lambda a: np.asarray(a + 0.3, np.float32), start)
    checkpoints.save(found.step, found.items, found.metadata)
    checkpoints.mark_best(found.step, 0.5)
    return path


@pytest.mark.parametrize(
    "inner",
    [{"base_learner": "ridge"}, {"base_learner": "prototypes"}, {"features": "l2"},
     {"base_learner": "cosine", "head_init": "he", "learn_lr": True}],
    ids=lambda inner: next(iter(inner.values())),
)  # fmt: skip
def test_a_run_with_another_base_learner_gives_its_classifier(tiny_run, tmp_path, inner):  # noqa: F811
    path = run_of(tiny_run, tmp_path / "run", **inner)
    classifier = FewShotClassifier.from_workdir(path, temperature=1.0)
    embed = classifier.embed
    images = np.random.default_rng(0).integers(0, 256, (12, *embed.image_shape), np.uint8)
    labels = np.repeat(["a", "b", "c"], 4)
    classifier.fit(images, labels)
    settings = config.read(Workdir(path).config)
    learned = network.trained(settings, Workdir(path), embed.image_shape)[1].learned["head"]
    learner = with_way(embed.inner, 3)
    if "features" in inner:
        learner = learner._replace(start="zero")
    if "learn_lr" in inner:
        learner, learned = learner._replace(start="prototypes"), {name: learned[name] for name in ("scale", "lr")}
        assert not np.allclose(learned["scale"], 10)  # it was learned
    features = jnp.asarray(embed(images))
    expected = softmax(learner(learned, features, jnp.repeat(jnp.arange(3), 4), features))
    np.testing.assert_allclose(classifier.predict_proba(images), expected, atol=1e-4)
    with pytest.raises(ConfigError, match=r"run: its base-learner is .*, to which steps does not apply"):
        FewShotClassifier.from_workdir(path, steps=3)
    assert FewShotClassifier.from_workdir(path, base_learner=Logistic(5)).learned is None
    classifier.save(tmp_path / "c")
    loaded = FewShotClassifier.load(tmp_path / "c", path)
    np.testing.assert_array_equal(loaded.predict_proba(images), classifier.predict_proba(images))

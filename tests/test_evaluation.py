"""Meta-test: shared features against features per task, both against the plain writing of one task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax import ClassTable, augment, evaluation, sample_episode, scale_shift
from mtl_jax.augment import normalize
from mtl_jax.base_learner import adapt_head, logits
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluation import Model, Protocol, Tasks, evaluate_tasks
from mtl_jax.layers import BatchNorm
from mtl_jax.meta import Embed, Frozen, Inner

CLASSES, EACH, FEATURES = 5, 7, 6
PROTOCOL = Protocol(way=3, shot=2, query=3, num_tasks=7, seed=4, inner=Inner(5, 0.5))


class Small(nn.Module):
    """A backbone that compiles in no time: a convolution, batch norm, an average that keeps left and right apart."""

    @nn.compact
    def __call__(self, images, train=False, batch_statistics="running"):
        x = nn.Conv(FEATURES, (3, 3), name="conv")(images)
        x = jnp.tanh(BatchNorm(name="norm")(x, batch_statistics))
        return (x * jnp.linspace(0, 1, x.shape[2])[:, None]).mean((1, 2))


def prepare(images):
    return normalize(images, mean=(0.5,), std=(0.25,))


def raw(logits, labels):
    """An outcome that hides nothing."""
    return logits


@pytest.fixture(scope="module")
def setup():
    """Images of classes of their own brightness and slope, their table, and a model with SS off the identity."""
    rng = np.random.default_rng(0)
    slope = np.linspace(-60, 60, CLASSES).repeat(EACH)[:, None, None, None] * np.linspace(-1, 1, 8)[:, None]
    images = np.clip(128 + slope + rng.normal(0, 40, (CLASSES * EACH, 8, 8, 1)), 0, 255).astype(np.uint8)
    table = ClassTable(np.arange(CLASSES * EACH, dtype=np.int32).reshape(CLASSES, EACH), np.full(CLASSES, EACH))
    variables = jax.jit(Small().init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    stats = {"norm": {"mean": jnp.linspace(-1, 1, FEATURES), "var": jnp.linspace(0.5, 2, FEATURES)}}
    ss = jax.tree.map(lambda leaf: leaf + jnp.linspace(0.1, 0.5, FEATURES), scale_shift.init(variables["params"]))
    head = {"kernel": jax.random.normal(jax.random.key(1), (FEATURES, 3)), "bias": jnp.array([0.1, 0.0, -0.2])}
    return Model(Embed(Small(), "running", prepare), {"head": head, "ss": ss}, Frozen(variables["params"], stats)), (
        images, table
    )  # fmt: skip


def mode(model, name):
    return model._replace(embed=model.embed._replace(batch_statistics=name))


def plainly(model, images, table, protocol, task):
    """Query logits and labels of a task by one call after the other, with the support loss over N K as it stands."""
    key = jax.random.fold_in(jax.random.key(protocol.seed), task)
    sizes = {"way": protocol.way, "shot": protocol.shot, "query": protocol.query}
    support, query = sample_episode(key, table, **sizes)
    own, labels = images[np.asarray(support).ravel()], np.arange(protocol.way).repeat(protocol.shot)
    views = [own[:, :, ::-1]] if protocol.flips else []
    for crop in range(protocol.crops):
        keys = jnp.stack([jax.random.fold_in(jax.random.key(crop), row) for row in np.asarray(support).ravel()])
        views.append(augment.random_resized_crop(keys, own, 8, scale=(protocol.crop_area, 1.0)))
    own, labels = np.concatenate([own, *views]), np.tile(labels, 1 + len(views))
    scale = protocol.shot if protocol.inner.loss_scale == "per_shot" else len(labels)
    options = {"steps": protocol.inner.steps, "lr": protocol.inner.lr, "weights": jnp.full(len(labels), 1 / scale)}

    @jax.jit
    def answer(own, labels, query):
        params = scale_shift.apply(model.frozen.params, model.learned["ss"])
        variables = {"params": params, "batch_stats": model.frozen.batch_stats}
        mode = model.embed.batch_statistics
        own, query = (Small().apply(variables, prepare(x), batch_statistics=mode) for x in (own, query))
        return logits(adapt_head(model.learned["head"], own, labels, **options), query)

    found = answer(own, labels, images[np.asarray(query).ravel()])
    return found, np.arange(protocol.way).repeat(protocol.query)


@pytest.mark.parametrize(
    ("name", "flips", "loss_scale"),
    [("running", False, "mean"), ("batch", True, "mean"), ("running", True, "per_shot"), ("batch", False, "per_shot")],
)
def test_a_task_is_what_its_plain_writing_gives(setup, name, flips, loss_scale):
    """With flips the support set is doubled and 'per_shot' still divides by K: twice the step."""
    model, data = setup
    protocol = PROTOCOL._replace(flips=flips, inner=PROTOCOL.inner._replace(loss_scale=loss_scale))
    found = evaluate_tasks(mode(model, name), *data, protocol, outcome=raw)
    np.testing.assert_allclose(found[6], plainly(mode(model, name), *data, protocol, 6)[0], atol=2e-5)


@pytest.mark.parametrize("flips", [False, True])
def test_random_parts_join_the_support_set(setup, flips):
    """Each image's own parts, whatever the task, drawn by its number in the split."""
    model, data = setup
    protocol = PROTOCOL._replace(flips=flips, crops=2, crop_area=0.3)
    found = evaluate_tasks(model, *data, protocol, outcome=raw, embed_batch=8)
    np.testing.assert_allclose(found[5], plainly(model, *data, protocol, 5)[0], atol=5e-5)
    assert np.abs(found - evaluate_tasks(model, *data, protocol._replace(crops=1), outcome=raw)).max() > 1e-3


def test_random_parts_need_shared_features(setup):
    model, data = setup
    with pytest.raises(ConfigError, match=r"evaluate\.crops is 1.*batch_norm"):
        evaluate_tasks(mode(model, "batch"), *data, PROTOCOL._replace(crops=1))


@pytest.mark.parametrize("flips", [False, True])
def test_shared_features_give_what_features_per_task_give(setup, flips):
    model, data = setup
    protocol = PROTOCOL._replace(flips=flips)
    shared = evaluate_tasks(model, *data, protocol, outcome=raw)
    apart = evaluation.adapt_per_task(model, model.learned["head"], *data, protocol, outcome=raw)
    np.testing.assert_allclose(shared, apart, atol=2e-5)
    assert shared.shape == (7, 9, 3)


def test_train_mode_is_evaluated_by_running_averages(setup):
    model, data = setup
    running, train, batch = (evaluate_tasks(mode(model, m), *data, PROTOCOL, outcome=raw)
                             for m in ("running", "train", "batch"))  # fmt: skip
    np.testing.assert_array_equal(running, train)
    assert np.abs(running - batch).max() > 0.01


def test_accuracy_is_of_the_right_labels(setup):
    model, data = setup
    found = evaluate_tasks(model, *data, PROTOCOL)
    for task in (1, 3):
        answers, labels = plainly(model, *data, PROTOCOL, task)
        assert found[task] == pytest.approx(np.mean(np.argmax(answers, -1) == labels))
    trained = PROTOCOL._replace(num_tasks=21, inner=Inner(100, 10.0), zero_head=True)
    assert evaluate_tasks(model, *data, trained).mean() > 0.6  # classes differ in slope; chance is 1/3


@pytest.mark.parametrize("name", ["running", "batch"])
def test_the_trajectorys_ends_are_the_initial_and_the_adapted_head(setup, name):
    model, data = setup
    path = evaluate_tasks(mode(model, name), *data, PROTOCOL, every_step=True, outcome=raw)
    assert path.shape == (7, 6, 9, 3)
    np.testing.assert_allclose(path[:, -1], evaluate_tasks(mode(model, name), *data, PROTOCOL, outcome=raw), atol=1e-5)
    none = PROTOCOL._replace(inner=PROTOCOL.inner._replace(steps=0))
    np.testing.assert_allclose(path[:, 0], evaluate_tasks(mode(model, name), *data, none, outcome=raw), atol=1e-5)


def test_chunks_and_batches_make_no_difference(setup):
    """Sizes that divide the number of tasks and images, that do not, and that are larger."""
    model, data = setup
    whole = evaluate_tasks(model, *data, PROTOCOL, outcome=raw)
    for embed_batch, chunk in ((8, 3), (1000, 1000)):
        parts = evaluate_tasks(model, *data, PROTOCOL, outcome=raw, embed_batch=embed_batch, chunk=chunk)
        np.testing.assert_allclose(parts, whole, atol=1e-5)
    bank = evaluation.embed_all(model, data[0], batch=8)
    assert bank.shape == (CLASSES * EACH, FEATURES)  # without the rows that filled up the last batch


def test_tasks_are_their_numbers_alone(setup):
    """The first tasks of a longer evaluation are a shorter one; another seed has others; given tasks are taken."""
    model, data = setup
    protocol = PROTOCOL._replace(num_tasks=4)
    tasks = evaluation.sample_all(data[1], PROTOCOL, chunk=3)
    assert tasks.support.shape == (7, 3, 2)
    assert tasks.query.shape == (7, 3, 3)
    shorter = evaluation.sample_all(data[1], protocol)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:4]), shorter, tasks)
    assert not np.array_equal(shorter.support, evaluation.sample_all(data[1], protocol._replace(seed=5)).support)
    drawn = evaluate_tasks(model, *data, PROTOCOL, outcome=raw)
    given = evaluate_tasks(model, *data, PROTOCOL, tasks=tasks, outcome=raw, chunk=3)
    np.testing.assert_allclose(given, drawn, atol=1e-5)
    reversed_tasks = Tasks(tasks.support[::-1], tasks.query[::-1])
    backwards = evaluate_tasks(model, *data, PROTOCOL, tasks=reversed_tasks, outcome=raw)
    np.testing.assert_allclose(backwards, drawn[::-1], atol=1e-5)


def test_another_way_starts_from_a_zero_head(setup):
    """Then classes may be named in any order: the answers are permuted with them."""
    model, data = setup
    protocol = PROTOCOL._replace(way=4, query=1, zero_head=True)
    tasks = evaluation.sample_all(data[1], protocol)
    found = evaluate_tasks(model, *data, protocol, tasks=tasks, outcome=raw)
    order = np.array([2, 0, 3, 1])
    renamed = Tasks(tasks.support[:, order], tasks.query[:, order])
    permuted = evaluate_tasks(model, *data, protocol, tasks=renamed, outcome=raw)
    np.testing.assert_allclose(permuted, found[:, order][:, :, order], atol=1e-5)


def test_answers_are_those_that_tasks_were_scored_by(setup):
    model, data = setup
    answers = evaluate_tasks(model, *data, PROTOCOL, outcome=evaluation.answers)
    assert answers.shape == (PROTOCOL.num_tasks, 9)
    right = (answers == np.arange(3).repeat(3)).mean(1)
    np.testing.assert_allclose(right, evaluate_tasks(model, *data, PROTOCOL), atol=1e-6)


def test_another_rate_seed_or_number_of_tasks_compiles_nothing(setup):
    """Counted by an outcome that is called when a function is traced, not when it runs."""
    model, data = setup
    traces = []

    def counting(logits, labels):
        traces.append(1)
        return logits.max()

    for protocol in (
        PROTOCOL, PROTOCOL._replace(seed=9), PROTOCOL._replace(num_tasks=14),
        PROTOCOL._replace(inner=PROTOCOL.inner._replace(lr=0.01)),
    ):  # fmt: skip
        assert len(evaluate_tasks(model, *data, protocol, outcome=counting, chunk=7)) == protocol.num_tasks
    assert len(traces) == 1
    evaluate_tasks(model, *data, PROTOCOL._replace(shot=1), outcome=counting, chunk=7)
    assert len(traces) == 2  # the counter does count


@pytest.mark.parametrize(("name", "adapt"), [("running", "head"), ("batch", "head"), ("running", "all")])
def test_rates_of_steps_at_test(setup, name, adapt):
    """Three steps of which the last has the rate 0 are two."""
    model, data = setup
    if adapt != "head":
        model = model._replace(learned={"head": model.learned["head"]})
    inner = Inner(2, 0.5, adapt=adapt)
    protocol = PROTOCOL._replace(num_tasks=2)
    found = [
        evaluate_tasks(mode(model, name), *data, protocol._replace(inner=loop), outcome=raw)
        for loop in (inner, inner._replace(steps=3, lr=(0.5, 0.5, 0.0)))
    ]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_figures_that_would_be_of_other_tasks_are_refused(setup):
    model, (images, table) = setup
    tasks = evaluation.sample_all(table, PROTOCOL)
    run = lambda protocol=PROTOCOL, table=table, **kept: evaluate_tasks(model, images, table, protocol, **kept)  # noqa: E731
    for protocol in (PROTOCOL._replace(num_tasks=9), PROTOCOL._replace(shot=1), PROTOCOL._replace(query=2)):
        with pytest.raises(ConfigError, match=r"tasks have shapes \(7, 3, 2\) and \(7, 3, 3\), expected"):
            run(protocol, tasks=tasks)
    with pytest.raises(ConfigError, match="the learned head has 3 classes, but tasks are 4-way"):
        run(PROTOCOL._replace(way=4))
    with pytest.raises(ConfigError, match="adapt is 'last'"):
        run(PROTOCOL._replace(inner=Inner(5, 0.5, adapt="last")))
    with pytest.raises(DataError, match=r"the table has 1 class with fewer than 2 \+ 3"):
        run(table=table._replace(counts=np.array([7, 7, 4, 7, 7])))
    for wrong in (table._replace(indices=table.indices + 1), ClassTable(np.full((5, 7), 99), table.counts)):
        with pytest.raises(DataError, match=r"expected 0 to 34"):
            run(table=wrong)
    with pytest.raises(DataError, match=r"positions of images are -1 to"):
        run(tasks=Tasks(tasks.support - 1 - tasks.support.min(), tasks.query))


def test_fewer_tasks_at_once_under_batch_statistics(setup, monkeypatch):
    """`chunk` is heeded there as well, though never more than two."""
    model, data = setup
    sizes, gather = [], evaluation.episodes.gather

    def noted(images, support, query):
        sizes.append(len(support))
        return gather(images, support, query)

    monkeypatch.setattr(evaluation.episodes, "gather", noted)
    for chunk, wanted in ((1, [1] * 4), (2, [2, 2]), (1000, [2, 2])):
        sizes.clear()
        evaluate_tasks(mode(model, "batch"), *data, PROTOCOL._replace(num_tasks=4), chunk=chunk)
        assert sizes == wanted

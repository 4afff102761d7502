"""Learning from a teacher in pre-training: the loss, what may teach, a run of train.py and how it goes on."""

import copy
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrain import IMAGES, LABELS, Small
from tiny_runs import tiny_config, tiny_run  # noqa: F401

from mtl_jax import pretrain, train
from mtl_jax.config import build, to_json
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import network
from mtl_jax.reference_weights import kept_networks
from mtl_jax.train import plan, pretraining, replay, teacher
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints
from mtl_jax.workdir.manifest import read as read_manifest

CLASSIFIER = pretrain.Classifier(3)


def networks():
    """Parameters and averages of a student and of its teacher, in float64; call in float64."""
    made = []
    for seed in (0, 1):
        state = pretrain.init_state(jax.random.key(seed), Small(), CLASSIFIER, (4, 4, 1), pretrain.optax.sgd(0.1))
        made.append(jax.tree.map(lambda leaf: np.asarray(leaf, float), (state.params, state.batch_stats)))
    params, stats = made[1]
    stats["norm"] = {"mean": stats["norm"]["mean"] + 0.3, "var": stats["norm"]["var"] * 2}
    return (
        *made[0],
        {"backbone": {"params": params["backbone"], "batch_stats": stats}, "classifier": params["classifier"]},
    )


def teach(variables, images):
    """The teacher's logits."""
    features = Small().apply(variables["backbone"], images, batch_statistics="running")
    return CLASSIFIER.apply({"params": variables["classifier"]}, features)


def loss_of(labels=LABELS, weight=0.3, **options):
    """(params, stats, teacher) -> the loss of the batch."""
    take = functools.partial(pretrain.classification_loss, backbone=Small(), classifier=CLASSIFIER)
    distillation = pretrain.Distillation(teach, weight, 2.5)
    return jax.jit(
        lambda params, stats, variables: take(
            params, stats, IMAGES, labels, jax.random.key(0), distillation=distillation, teacher=variables, **options
        )[0]
    )


def numpys(params, variables, shares, weight=0.3):
    """The same loss by NumPy; shares: [B, classes] of labels."""
    p_student, p_teacher = (
        _softmax(_logits(p["backbone"], p["classifier"], stats))
        for p, stats in (
            (params, None),
            ({"backbone": variables["backbone"]["params"], "classifier": variables["classifier"]},
             variables["backbone"]["batch_stats"]["norm"]),
        )
    )  # fmt: skip
    student, taught = (p ** (1 / 2.5) / (p ** (1 / 2.5)).sum(1, keepdims=True) for p in (p_student, p_teacher))
    divergence = (taught * np.log(taught / student)).sum(1)
    return ((1 - weight) * -(shares * np.log(p_student)).sum(1) + weight * 2.5**2 * divergence).mean()


def _logits(backbone, classifier, averages):
    x = IMAGES.reshape(6, -1) @ backbone["dense"]["kernel"] + backbone["dense"]["bias"]
    averages = averages or {"mean": x.mean(0), "var": x.var(0)}
    x = (x - averages["mean"]) / np.sqrt(averages["var"] + 1e-5) * backbone["norm"]["scale"] + backbone["norm"]["bias"]
    return x @ classifier["output"]["kernel"] + classifier["output"]["bias"]


def _softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_numpys_with_labels_and_with_shares_of_them(float64, mixed):
    params, stats, variables = networks()
    shares = np.eye(3)[LABELS]
    if mixed:
        shares = 0.7 * shares + 0.3 * shares[::-1]
    found = loss_of(shares if mixed else LABELS)(params, stats, variables)
    np.testing.assert_allclose(found, numpys(params, variables, shares), rtol=1e-12)


def test_its_gradient_is_that_of_finite_differences(float64):
    params, stats, variables = networks()
    gradient = jax.grad(loss_of())(params, stats, variables)
    rng, step = np.random.default_rng(1), 1e-6
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    ends = [
        numpys(jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, direction), variables, np.eye(3)[LABELS])
        for sign in (1, -1)
    ]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-6)


def test_turned_images_are_turned_for_the_teacher_too(float64):
    params, stats, variables = networks()
    params["rotation"] = pretrain.ROTATIONS.init(jax.random.key(2), jnp.zeros((1, 2)))["params"]
    seen = []

    def watched(variables, images):
        seen.append(np.asarray(images))
        return teach(variables, images)

    pretrain.classification_loss(
        params, stats, IMAGES, LABELS, jax.random.key(0), backbone=Small(), classifier=CLASSIFIER, rotation=1.0,
        distillation=pretrain.Distillation(watched), teacher=variables,
    )  # fmt: skip
    np.testing.assert_allclose(seen[0], np.concatenate([np.rot90(IMAGES, turn, (1, 2)) for turn in range(4)]))


def student(run, **words):
    """The config of a run that learns from another one."""
    config = tiny_config()
    config.pretrain.update({"teacher": str(run), "steps": 6, "val_every": 0})
    config.meta.learn = "none"
    config.runtime.update({"checkpoint_every": 2, "log_every": 1})
    config.update_from_flattened_dict(words)
    return config


def check(config, dataset):
    """Whether the teacher of a config can teach it on a data set."""
    teacher.check(build.pretraining(config), dataset)


def digests(run):
    """What all arrays of the last checkpoint of pre-training were, and the metrics."""
    return read_manifest(run / "pretrain" / "6").arrays, (run / "metrics.jsonl").read_bytes()


def test_a_run_learns_from_its_teacher_and_goes_on_bit_for_bit_the_same(tiny_run, tmp_path):  # noqa: F811
    config = student(tiny_run, **{"backbone.width": 0.1, "pretrain.average": 0.9})
    train.train(config, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    checkpoints = tmp_path / "stopped" / "pretrain"
    shutil.rmtree(checkpoints / "6")
    train.train(config, str(tmp_path / "stopped"))
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
    saved = Checkpoints(tmp_path / "whole" / "pretrain").read().items
    assert set(saved) == {"params", "batch_stats", "opt_state", "average"}  # the teacher stays behind
    goes_on = network.pretrained(config, Workdir(tmp_path / "whole"))
    jax.tree.map(
        np.testing.assert_array_equal,
        goes_on,
        (saved["average"]["params"]["backbone"], saved["average"]["batch_stats"]),
    )


@pytest.mark.slow
def test_a_step_of_it_is_the_same_when_it_is_run_again(tiny_run, tmp_path):  # noqa: F811
    config = student(tiny_run, **{"pretrain.average": 0.9, "pretrain.rotation": 1.0})
    train.train(config, str(tmp_path / "whole"))
    found = replay.replay(config, str(tmp_path / "whole"), ("pretrain", 6))
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found.loss == last["pretrain/loss"]
    assert found.parts[0].loss == pytest.approx(found.loss, rel=1e-4)


def test_the_network_of_the_selected_checkpoint_teaches_by_its_running_averages(tiny_run):  # noqa: F811
    config = student(tiny_run)
    best = Checkpoints(tiny_run / "pretrain").best()["step"]
    found = Checkpoints(tiny_run / "pretrain").read(best).items
    saved = teacher.checkpoints(build.pretraining(config).teacher)
    variables, logits = teacher.network(saved.read(best), "float32")
    images = np.random.default_rng(0).normal(size=(5, 28, 28, 1)).astype(np.float32)
    module = build.backbone(config.backbone)
    features = module.apply({"params": found["params"]["backbone"], "batch_stats": found["batch_stats"]}, images)
    output = found["params"]["classifier"]["output"]
    np.testing.assert_allclose(logits(variables, images), features @ output["kernel"] + output["bias"], atol=1e-5)


def test_the_plan_counts_the_teacher(tiny_run):  # noqa: F811
    data = build.dataset(tiny_config().data)
    alone, taught = (
        plan.make(student(tiny_run, **words), data, 1).phases[0] for words in ({"pretrain.teacher": ""}, {})
    )
    assert 1.25 < taught.flops / alone.flops < 1.45  # one pass forward beside one forward and back
    assert taught.bytes > alone.bytes


def test_what_cannot_teach_is_refused_in_a_line(tiny_run, tmp_path):  # noqa: F811
    data = build.dataset(tiny_config().data)
    check(student(tiny_run), data)
    (tmp_path / "empty").mkdir()
    for words, pattern in (
        (
            {"pretrain.teacher": str(tmp_path / "empty")},
            r"teacher is '.*empty', which has no pre-training checkpoint in ",
        ),
        ({"data.crop": 24}, r"whose image size is \(32, 32, 1\), but this run's is \(24, 24, 1\)"),
        ({"data.mean": (0.4,)}, r"whose data\.mean is \(0\.5,\), but this run's is \(0\.4,\)"),
    ):
        with pytest.raises(ConfigError, match=pattern):
            check(student(tiny_run, **words), data)
    # A run that is not pre-trained has no teacher to check.
    train.run.load_data(student(tiny_run, **{"pretrain.teacher": "/nowhere", "pretrain.init": "elsewhere"}))


def test_a_teacher_of_other_classes_or_images_is_refused(tiny_run):  # noqa: F811
    data = build.dataset(tiny_config().data)
    other = copy.copy(data)
    object.__setattr__(other, "fingerprint", "0" * 64)
    with pytest.raises(ConfigError, match=r"whose fingerprint of images is \w{12}, but this run's is 0{12}; "):
        check(student(tiny_run), other)
    names = data.splits["train"].class_names
    fewer = copy.copy(data.splits["train"])
    object.__setattr__(fewer, "class_names", names[:-1])
    object.__setattr__(other, "splits", {"train": fewer})
    with pytest.raises(ConfigError, match=rf"number of classes is {len(names)}, but this run's is {len(names) - 1}"):
        check(student(tiny_run), other)


def test_a_teacher_without_running_averages_is_refused(tiny_run, monkeypatch):  # noqa: F811
    found = teacher.newest_manifest(build.pretraining(student(tiny_run)).teacher)
    found.metadata["config"]["pretrain"]["batch_norm"] = "batch"
    monkeypatch.setattr(teacher, "newest_manifest", lambda teacher: found)
    with pytest.raises(ConfigError, match=r"whose pretrain\.batch_norm is 'batch': it has no running averages"):
        check(student(tiny_run), build.dataset(tiny_config().data))


def test_a_tilde_is_the_home_folder(tiny_run, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tiny_run.parent))
    check(student("~/tiny"), build.dataset(tiny_config().data))
    found = network.pretrained(student("", **{"pretrain.init": "~/tiny"}), Workdir("elsewhere"))
    jax.tree.map(np.testing.assert_array_equal, found, network.pretrained(tiny_config(), Workdir(tiny_run)))


def test_a_kept_network_does_not_tell_where_its_teacher_was(tiny_run, tmp_path):  # noqa: F811
    config = student(tiny_run, **{"pretrain.init": str(tiny_run)})
    step, model = network.trained(config, Workdir(tiny_run), (32, 32, 1))
    path = tmp_path / "kept.safetensors"
    kept_networks.write(path, kept_networks.Kept(to_json(config), step, (32, 32, 1), model))
    assert str(tiny_run).encode() not in path.read_bytes()


def test_averaged_weights_are_what_is_validated(monkeypatch):
    config = tiny_config()
    config.pretrain.average = 0.9
    splits = build.dataset(config.data).splits
    phase = pretraining.phase(build.pretraining(config), splits, jax.local_devices()[:1])
    monkeypatch.setattr(pretraining, "score", lambda model, *rest: model.frozen)
    marked = jax.tree.map(lambda leaf: leaf + 1, phase.state.average)
    params, stats = phase.validate(phase.state._replace(average=marked))
    phase.close()
    jax.tree.map(np.testing.assert_array_equal, params, marked["params"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, stats, marked["batch_stats"])

"""Evaluation protocols: accuracy after every inner step, and what is said of how the checkpoint was chosen."""

import csv
import json
import shutil

import numpy as np
import pytest
import tiny_runs
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import config, evaluation, frozen_episodes, workdir
from mtl_jax.config import build
from mtl_jax.evaluate import describe, evaluate
from mtl_jax.evaluate.run import BY_STEP
from mtl_jax.frozen_episodes import choose_tasks
from mtl_jax.launch import program
from mtl_jax.train import __main__ as train_main


@pytest.fixture
def place(tiny_run, tmp_path):  # noqa: F811
    """A copy of the tiny run to write evaluations into."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return workdir.Workdir(tmp_path / "run")


def test_accuracy_after_every_inner_step_as_figures(place):
    settings = config.read(place.config)
    plain = evaluate(settings, str(place.path))
    settings.evaluate.every_step = True
    result = evaluate(settings, str(place.path))
    steps = settings.inner.steps
    with open(place.evaluation("test", "csv", way=5, shot=1), newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["task", *(f"accuracy{step}" for step in range(steps)), "accuracy"]
    values = np.array(rows, float)[:, 1:]
    np.testing.assert_allclose(values.mean(0), [step["accuracy"] for step in result["accuracy_by_step"]])
    assert result["accuracy"] == plain["accuracy"] == result["accuracy_by_step"][-1]["accuracy"]
    written = json.loads(place.evaluation("test", "json", way=5, shot=1).read_text())
    assert written["accuracy_by_step_note"] == BY_STEP and written["inner_by"] == "config"


@pytest.mark.parametrize(("select", "said"), [("best", "validation"), ("last", "last step")])
def test_a_figure_says_how_its_checkpoint_was_chosen(place, select, said):
    settings = config.read(place.config)
    settings.meta.select = select
    result = evaluate(settings, str(place.path))
    assert json.loads(place.evaluation("test", "json", way=5, shot=1).read_text())["checkpoint_by"] == said
    assert f"checkpoint {result['checkpoint_step']} by {said}, " in describe(result)
    for fact in ("5 queries a class", "20 inner steps at 1.0", "batch norm: running"):
        assert fact in describe(result)


def test_without_validation_the_checkpoint_is_the_last(place):
    settings = tiny_config()
    settings.meta.val_every = 0
    settings.runtime.keep = 5
    assert evaluate(settings, str(place.path))["checkpoint_by"] == "last step"


def test_training_never_reads_the_test_split(tiny_run):  # noqa: F811
    assert tiny_runs.asked == {"train", "val"}


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections loads a config so
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.meta.val_split=test", "val_split"),
        ("--config.pretrain.val_split=test", "val_split"),
        ("--config.meta.select=test", "meta.select is 'test', expected one of best, last"),
        ("--config.pretrain.select=test", "pretrain.select is 'test', expected one of best, last"),
    ],
)
def test_the_test_split_cannot_be_asked_for_in_training(word, message, tmp_path, capsys, monkeypatch):
    given = ["train.py", "--config=configs/glyphs.py", f"--workdir={tmp_path / 'run'}", word]
    monkeypatch.setattr("sys.argv", given)  # where ml_collections looks for overrides
    assert program.run(train_main.main, given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_inner_step_chosen_by_test_tasks_is_labelled(place):
    """On validation tasks it may be chosen; a number of steps given at test is said to be."""
    settings = config.read(place.config)
    settings.evaluate.update({"split": "val", "every_step": True})
    assert evaluate(settings, str(place.path))["accuracy_by_step_note"] == ""
    settings.evaluate.update({"split": "test", "every_step": False, "inner_steps": 7})
    result = evaluate(settings, str(place.path))
    assert result["inner_by"] == "command line" and "7 inner steps at 1.0 by command line, " in describe(result)


def test_a_figure_on_validation_is_of_other_tasks_than_those_that_chose_the_checkpoint(place):
    """The test split's tasks are those of the seed, as ever."""
    settings = config.read(place.config)
    for name in ("test", "val"):
        settings.evaluate.split = name
        split = build.dataset(settings.data).splits[name]
        protocol = build.protocol(settings)._replace(num_tasks=settings.meta.val_tasks)
        validation = evaluation.sample_all(split.table(), protocol)
        tasks = choose_tasks(None, split, protocol, None)
        same = [(a == b).reshape(len(a), -1).all(1).any() for a, b in zip(validation, tasks, strict=True)]
        assert same == [name == "test"] * 2
        found = evaluate(settings, str(place.path))["episodes"]
        of_seed = evaluation.sample_all(split.table(), build.protocol(settings))
        assert (found == frozen_episodes.content_hash(split, of_seed)) == (name == "test")

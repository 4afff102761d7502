"""Evaluation protocols: accuracy after every inner step, and what is said of how the checkpoint was chosen."""

import csv
import json
import shutil

import numpy as np
import pytest
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import config, workdir
from mtl_jax.evaluate import describe, evaluate


@pytest.fixture
def place(tiny_run, tmp_path):  # noqa: F811
    """A copy of the tiny run to write evaluations into."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return workdir.Workdir(tmp_path / "run")


def test_accuracy_after_every_inner_step_as_figures_and_picture(place):
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
    assert place.evaluation("test", "png", way=5, shot=1).read_bytes().startswith(b"\x89PNG")


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

"""Overrides of a config that is read from a workdir, as evaluate.py takes them."""

import sys

import pytest
from tiny_runs import tiny_config

from mtl_jax import config, workdir
from mtl_jax.config import schema
from mtl_jax.errors import ConfigError


@pytest.fixture
def saved(tmp_path):
    """A config as a run leaves it, in which inner_steps is unset."""
    workdir.write_json_atomic(tmp_path / "config.json", config.to_json(tiny_config()))
    return config.read(tmp_path / "config.json")


@pytest.mark.parametrize("in_argv", [True, False])
def test_an_unset_value_can_be_given(saved, in_argv, monkeypatch):
    words = ["--config.evaluate.inner_steps=50", "--config.evaluate.inner_lr=0.5", "--config.evaluate.flips=True"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words] if in_argv else ["pytest"])
    found = config.override(saved, words)
    assert (found.evaluate.inner_steps, found.evaluate.inner_lr, found.evaluate.flips) == (50, 0.5, True)
    assert saved.evaluate.inner_steps is None and saved.evaluate.flips is False


@pytest.mark.parametrize(
    "word", ["--config.evaluate.inner_steps=many", "--config.evaluate.steps=5", "--config.evaluate.flips=3.5"]
)
def test_a_mistake_in_one_is_named(saved, word, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", word])
    with pytest.raises(ConfigError, match=r"evaluate\W*\.?\w*"):
        config.override(saved, [word])


def test_every_number_has_a_range_and_every_range_and_choice_a_key():
    numbers = {key for key, kind in schema.kinds().items() if kind.type in (int, float, tuple)}
    bounded = schema.RANGES.keys() | schema.CHOICES.keys()
    assert numbers - bounded == {"data.mean"}
    assert bounded <= schema.kinds().keys()
    assert not schema.RANGES.keys() & schema.CHOICES.keys()

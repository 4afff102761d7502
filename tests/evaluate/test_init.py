"""What meta-training may start from besides its own pre-training: a network of the package, by its name."""

import jax
import numpy as np
import pytest
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import config
from mtl_jax.config import run_data
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import evaluate, network
from mtl_jax.reference_weights import kept_networks
from mtl_jax.train import train
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints

NAME = "fc100-conv4"


def starting(init=NAME, channels=3):
    settings = tiny_config()
    settings.backbone.width = 1.0
    settings.data.channels = channels
    settings.pretrain.init = str(init)
    settings.meta.update({"steps": 1, "tasks_per_step": 1, "way": 2, "query": 2, "val_every": 0})
    settings.evaluate.update({"num_tasks": 4, "query": 2})
    return settings


def test_meta_training_starts_from_a_network_of_the_package_by_its_name(tmp_path):
    train(starting(), str(tmp_path))
    assert config.read(tmp_path / "config.json").pretrain.init == NAME
    items = Checkpoints(tmp_path / "meta").read().items
    kept = kept_networks.read(kept_networks.packaged(NAME))
    jax.tree.map(np.testing.assert_array_equal, items["params"], kept.model.frozen.params)
    jax.tree.map(np.testing.assert_array_equal, items["batch_stats"], kept.model.frozen.batch_stats)
    result = evaluate(starting(), str(tmp_path))
    assert result["trained_on"][1] == {"dataset": "fc100 (fc100-conv4)", "fingerprint": "unknown"}
    assert run_data.describe(result).endswith(" and fc100 (fc100-conv4) unknown")
    said = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "WARNING config.pretrain.init" in line]
    assert len(said) == 2
    assert "is fc100-conv4, which was trained with other values: data.mean: [0.49" in said[0] and "data.std" in said[0]
    assert said[1].endswith("was trained on fc100 (fc100-conv4), so it may have seen the test classes")


def test_what_does_not_fit_is_said_in_a_line(tmp_path):
    with pytest.raises(ConfigError, match=r"not a bundled network \(did you mean fc100-conv4\?\); give a workdir"):
        train(starting("fc100-conv"), str(tmp_path / "a"))
    with pytest.raises(ConfigError, match=r"fc100-conv4', which does not fit .* images of 1 channels") as caught:
        train(starting(channels=1), str(tmp_path / "b"))
    assert "\n" not in str(caught.value)


def test_another_run_that_does_not_fit_is_said_in_a_line(tiny_run, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match=r"which does not fit config\.backbone"):
        train(starting(tiny_run, channels=1), str(tmp_path))  # of another width


def test_a_run_that_is_as_the_network_was_is_told_nothing(caplog, tiny_run):  # noqa: F811
    kept = kept_networks.read(kept_networks.packaged(NAME))
    settings = config.complete({**kept.settings, "pretrain": {**kept.settings["pretrain"], "init": NAME}})
    network.check_start(settings, *kept.model.frozen, kept.image_shape)
    settings = config.read(tiny_run / "config.json")
    place = Workdir(tiny_run)
    own = network.pretrained(settings, place)
    settings.pretrain.init = str(tiny_run)
    network.check_start(settings, *own, (32, 32, 1))
    assert not caplog.records
    settings.data.mean = (0.25,)
    network.check_start(settings, *own, (32, 32, 1))
    assert "data.mean: [0.5] in the checkpoint, [0.25] now" in caplog.text


def test_a_folder_of_that_name_comes_before_the_package(tmp_path, monkeypatch):
    assert kept_networks.init_path(NAME) == str(kept_networks.packaged(NAME))
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert kept_networks.init_path(NAME) == NAME
    assert kept_networks.init_path("") == "" and kept_networks.init_path("runs/a") == "runs/a"

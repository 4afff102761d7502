"""Base-learners and a custom backbone from the command line to the test: training, resuming, evaluation."""

import json
import sys

import jax
import numpy as np
import pytest
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import config, evaluate
from mtl_jax.config import own_backbone
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate.__main__ import main as evaluate_main
from mtl_jax.evaluate.run import describe
from mtl_jax.report import report
from mtl_jax.train import train
from mtl_jax.train.__main__ import main as train_main
from mtl_jax.train.run import dry_run
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints


def settings(run, **inner):
    made = tiny_config()
    made.pretrain.init = str(run)
    made.inner.update(inner)
    made.meta.update({"decay": "constant", "head_lr": 0.1})
    made.hard_tasks.update({"enabled": True, "round": 2, "extra": 2})
    return made


def learned(path):
    return Checkpoints(Workdir(path).checkpoints("meta")).read().items["learned"]


@pytest.mark.parametrize(
    ("inner", "group"),
    [
        ({"base_learner": "ridge"}, {"log_l2", "scale"}),
        pytest.param({"base_learner": "prototypes", "features": "l2"}, {"scale"}, marks=pytest.mark.slow),
        pytest.param(
            {
                "base_learner": "cosine",
                "start": "prototypes",
                "learn_lr": True,
                "ensemble": True,
                "steps": 3,
                "lr": 0.1,
            },
            {"scale", "lr", "ensemble"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_base_learner_by_config_alone(tiny_run, tmp_path, inner, group):  # noqa: F811
    """With hard tasks and validation; in chunks; gone on from half its steps; tested, at another way as well."""
    made = settings(tiny_run, **inner)
    text = dry_run(made, str(tmp_path / "none"))
    assert "meta-training learns" in text and "of the head" in text
    whole, halves, chunks = (tmp_path / name for name in ("whole", "halves", "chunks"))
    train(made, str(whole))
    half = made.copy_and_resolve_references()
    half.meta.steps = 2
    train(half, str(halves))
    train(made, str(halves))
    assert (halves / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    found = learned(whole)
    assert set(found["head"]) == group
    jax.tree.map(np.testing.assert_array_equal, found, learned(halves))
    fresh = config.build.fresh_head(made, 16)
    assert all(not np.array_equal(found["head"][name], fresh[name]) for name in group)  # all of it is learned
    made.runtime.chunk = 1
    train(made, str(chunks))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, learned(chunks))
    result = evaluate.evaluate(config.read(whole / "config.json"), str(whole))
    assert result["base_learner"] == inner["base_learner"] and 0 <= result["accuracy"] <= 1
    assert f", {inner['base_learner']}, batch norm: running" in describe(result)
    assert ("inner steps at" in describe(result)) == ("steps" in inner)
    evaluate_main(["evaluate.py", f"--workdir={whole}", "--way=3", "--num_tasks=5"])
    saved = json.loads((whole / "evaluation" / "test-3way-1shot.json").read_text())
    assert saved["way"] == 3 and saved["num_tasks"] == 5
    if inner["base_learner"] == "ridge":
        report(str(whole), tmp_path / "page", {})
        assert "The base-learner, ridge, has no inner steps." in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"inner.base_learner": "ridge", "evaluate.inner_steps": 3}, "ridge', which has no inner steps"),
        ({"inner.base_learner": "ridge", "inner.adapt": "all"}, "which has no inner steps: set adapt to 'head'"),
        ({"inner.base_learner": "cosine", "inner.adapt": "last_block"}, "which moves a linear head"),
        ({"inner.learn_lr": True, "evaluate.inner_steps": 3}, "config.inner.learn_lr is True, which learns a value"),
        ({"inner.learn_lr": True, "evaluate.inner_lr": 0.3}, "the rates are learned"),
        ({"inner.base_learner": "rigde"}, r"expected one of linear, cosine.*\(did you mean ridge"),
        ({"inner.l2": 0.0}, "config.inner.l2 is 0.0, expected more than 0"),
    ],
)
def test_what_does_not_go_together_is_named(keys, said):
    made = tiny_config()
    made.update_from_flattened_dict(keys)
    with pytest.raises(ConfigError, match=said):
        config.validate(made)


NET = """
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), strides=4)(images))
        return nn.Dropout(0.1, deterministic=not train)(nn.relu(x)).mean((1, 2))


def factory():
    print("imported")
    return Net()
"""


@pytest.mark.filterwarnings("ignore:the load_module")  # absl's way to read a config file
def test_a_backbone_of_ones_own(tmp_path, monkeypatch, capsys):
    """From a file; every program that reads the run wants the flag again, and without it no code is imported."""
    monkeypatch.setattr(own_backbone, "_factories", {})
    file, run = tmp_path / "net.py", tmp_path / "run"
    file.write_text(NET)
    name, glyphs = f"{file}:factory", "--config=configs/glyphs.py:1shot"
    words = ["pretrain.steps=4", "pretrain.val_every=2", "pretrain.val_tasks=5", "meta.steps=2", "meta.val_every=2",
             "meta.val_tasks=5", "meta.query=2", "evaluate.num_tasks=5", "meta.per=output"]  # fmt: skip
    overrides = [f"--config.{word}" for word in words]
    argv = ["train.py", glyphs, f"--workdir={run}", f"--backbone={name}", *overrides]
    monkeypatch.setattr(sys, "argv", argv)  # where ml_collections finds which keys are given
    assert train_main(argv) == 0
    assert json.loads((run / "config.json").read_text())["backbone"]["name"] == name
    assert set(learned(run)["ss"]) == {"Conv_0", "BatchNorm_0"}
    monkeypatch.setattr(own_backbone, "_factories", {})
    capsys.readouterr()
    with pytest.raises(ConfigError, match=f"give --backbone={name}, since a config alone never imports code"):
        evaluate_main(["evaluate.py", f"--workdir={run}"])
    assert "imported" not in capsys.readouterr().out
    assert evaluate_main(["evaluate.py", f"--workdir={run}", f"--backbone={name}"]) == 0
    assert "over 5 tasks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("{file}:other", "AttributeError: module 'net' has no attribute 'other'"),
        ("{folder}/none.py:factory", "FileNotFoundError: no such file"),
        ("no_such_module:factory", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("conv4", "expected module:factory or FILE.py:factory"),
        ("{file}:number", "number is 7, expected a function"),
    ],
)
def test_what_is_no_backbone_is_named(tmp_path, flag, said):
    (tmp_path / "net.py").write_text(NET + "\nnumber = 7\n")
    with pytest.raises(ConfigError, match=f"^--backbone=.*{said}"):
        own_backbone.load(flag.format(file=tmp_path / "net.py", folder=tmp_path))


def test_options_of_the_packages_backbones_do_not_apply_to_ones_own():
    made = tiny_config()
    made.backbone.name = "net.py:factory"
    with pytest.raises(ConfigError, match=r"config.backbone.width is 0.25, but net.py:factory does not use it"):
        config.validate(made)

"""A finished run that is given more steps: the bytes of one that had them from the start, or a line that says not."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
from tiny_runs import tiny_config, tiny_run  # noqa: F401, a fixture

from mtl_jax import config, optimizers
from mtl_jax.config import more_steps
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.evaluate import evaluate
from mtl_jax.train import train
from mtl_jax.workdir import Workdir, named_arrays
from mtl_jax.workdir.checkpoint import Checkpoints


def settings(pretrain, meta):
    """Rates that do not depend on the number of steps; the shorter phases end between two validations."""
    made = tiny_config()
    made.pretrain.update({"steps": pretrain, "decay": "constant", "val_every": 4, "average": 0.9})
    made.meta.update({"steps": meta, "decay": "steps", "decay_every": 3, "val_every": 3})
    made.hard_tasks.update({"enabled": True, "round": 4, "extra": 2})
    made.runtime.update({"log_every": 4, "checkpoint_every": 100})
    return made


def warnings(path):
    lines = (path / "log.txt").read_text().splitlines()
    return [line.partition(" WARNING ")[2] for line in lines if " WARNING " in line]


def contents(path):
    """All of a run that must be the same: metrics, and each phase's last and best checkpoint."""
    found = {"metrics": (path / "metrics.jsonl").read_bytes()}
    for phase in ("pretrain", "meta"):
        checkpoints = Checkpoints(path / phase)
        last, best = checkpoints.read(), checkpoints.best()
        # Its config is that of when it was saved: another phase may have been raised since.
        found[phase] = last.step, {**last.metadata, "config": last.metadata["config"][phase]}, best
        for step in (last.step, best["step"]):
            arrays = named_arrays.flatten(checkpoints.read(step).items)
            found[phase, step] = {name: np.asarray(a).tobytes() for name, a in arrays.items()}
    return found


@pytest.mark.slow
def test_both_phases_end_with_the_bytes_of_a_run_that_had_the_steps_from_the_start(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(settings(10, 7), str(whole))
    train(settings(6, 5), str(run))
    first = (run / "metrics.jsonl").read_bytes()
    result = evaluate(settings(6, 5), str(run))
    train(settings(10, 5), str(run))  # meta-training starts anew, from another backbone
    train(settings(10, 7), str(run))
    assert contents(run) == contents(whole)
    aside = run / "after-6-pretraining-steps"
    assert [line for line in warnings(run) if "CPU" not in line] == [
        f"pre-training continues from 6 to 10 steps, so meta-training starts over; the earlier one is kept in {aside}, "
        "itself a workdir"
    ]
    # What was is kept and can be tested; nothing of it is left beside the new network.
    assert not (run / "evaluation").exists() and (aside / "metrics.jsonl").read_bytes() == first
    assert json.loads((aside / "evaluation" / "test.json").read_text())["accuracy"] == result["accuracy"]
    assert evaluate(config.read(aside / "config.json"), str(aside))["accuracy"] == result["accuracy"]


def changed(path, **overrides):
    """The config of a workdir, with other values: `meta__steps=8`."""
    made = config.read(path / "config.json")
    made.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return made


@pytest.fixture
def run(tiny_run, tmp_path):  # noqa: F811
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_fewer_steps_and_any_other_change_are_refused(run):
    with pytest.raises(ConfigError, match=r"meta\.steps: 4 in the .*, 2 now; .*\(steps may be raised, not lowered\)$"):
        train(changed(run, meta__steps=2), str(run))
    with pytest.raises(ConfigError, match=r"run of another config: seed: 0 in the checkpoint, 1 now; .*--workdir$"):
        train(changed(run, meta__steps=8, seed=1), str(run))


def test_meta_training_does_not_go_on_from_another_backbone(run):
    newest = Checkpoints(run / "meta").read()
    newest.items["params"]["block1"]["conv"]["kernel"] *= 2
    Checkpoints(run / "meta").save(newest.step, newest.items, newest.metadata)
    said = r"started from another pre-trained backbone .*pretrain\.init"
    train(changed(run), str(run))  # it is done
    assert re.search(said, warnings(run)[-1])
    with pytest.raises(CheckpointError, match=said):
        train(changed(run, meta__steps=8), str(run))


@pytest.mark.parametrize(("decay", "says"), [("constant", False), ("steps", False), ("cosine", True)])
def test_a_rate_that_falls_over_all_steps_is_said(decay, says):
    group = {**tiny_config().meta, "decay": decay, "decay_every": 2}
    then, now = ({"config": {"meta": {**group, "steps": steps}}} for steps in (4, 8))
    assert more_steps.changed_rates(now, now, "meta", 4) == ""
    assert more_steps.changed_rates(then, now, "meta", 4) == says * (
        "meta step 4: the phase now has 8 steps, not 4, over which config.meta.decay='cosine' lowers the learning rate:"
        " it continues at 50 % of its first value, not 0 %, so the run differs from one with 8 steps from the start; "
        "for that, give another --workdir"
    )


@pytest.mark.parametrize("decay", optimizers.DECAYS)
def test_which_rates_fall_over_all_steps(decay):
    group = {**tiny_config().meta, "decay": decay, "decay_every": 2}
    four, eight = (more_steps.fraction({**group, "steps": steps}, 3) for steps in (4, 8))
    assert (four != eight) == (decay in optimizers.OVER_ALL_STEPS)


def test_nothing_is_set_aside_without_more_pre_training(run, caplog):
    with caplog.at_level(logging.WARNING):
        more_steps.set_meta_training_aside(Workdir(run), 40)
        more_steps.set_meta_training_aside(Workdir(run / "nothing"), 80)
    assert not caplog.records and (run / "meta").exists()

"""One device or several: the same tasks, and the same parameters after ten steps, in float64."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
VIRTUAL = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": "1"}


@functools.cache
def runs(script, *what):
    done = subprocess.run(
        [sys.executable, HERE / script, *what],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **VIRTUAL},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def assert_same(one, other, cancelled=lambda name: False):
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-9)
    assert_same_arrays(one["arrays"], other["arrays"], cancelled)


def assert_same_arrays(one, other, cancelled=lambda name: False):
    assert other.keys() == one.keys()
    for name, value in one.items():
        if not cancelled(name):
            np.testing.assert_allclose(other[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("devices", ["2", "4"])
@pytest.mark.parametrize("mode", ["running", pytest.param("train", marks=pytest.mark.slow)])
def test_meta_training_is_the_same_on_any_number_of_devices(mode, devices):
    """pmap on 2 and 4 virtual devices equals jit on one; nothing is traced again after the first step."""

    def cancelled(name):  # by BN: gradients of rounding noise, which Adam makes steps of
        return mode == "train" and ("shift" in name or "['block1']['conv']['scale']" in name)

    one, other = (runs("devices_run.py", mode)[count] for count in ("1", devices))
    assert len(one["losses"]) == 10
    assert other["tasks"] == one["tasks"]
    assert len({str(step) for step in one["tasks"]}) == 10
    assert other["retraced"] == one["retraced"] == 0
    assert_same(one, other, cancelled)


def test_steps_in_one_dispatch_are_the_same_steps():
    one, scan = (runs("devices_run.py", "running")[name] for name in ("1", "scan"))
    assert scan["tasks"] == one["tasks"]
    assert_same(one, scan)


@pytest.mark.parametrize("devices", ["2", "4"])
def test_pretraining_normalises_and_averages_over_the_whole_batch(devices):
    assert_same(*(runs("devices_run.py", "pretrain")[count] for count in ("1", devices)))


def test_images_are_turned_by_their_place_in_the_whole_batch_and_shown_to_the_teacher():
    pretrain = runs("devices_run.py", "pretrain")
    assert_same(pretrain["quarter 1"], pretrain["quarter 4"])
    assert pretrain["quarter 1"]["losses"] != pretrain["1"]["losses"]


@pytest.mark.parametrize("form", ["pmap 2", "shard_map 2", "shard_map 4", "unchecked shard_map 4"])
@pytest.mark.parametrize("kind", ["head", "all", "pretrain", "adapt"])
def test_a_step_is_the_same_in_every_way_to_spread_it(kind, form):
    """A hard task's step by the head, a step of second order by all weights, pre-training, the inner loops alone."""
    found = runs("mapped_run.py")[kind]
    assert_same_arrays(found["jit 4"], found[form])

"""One device or several: the same tasks, and the same parameters after ten steps, in float64."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("devices_run.py")
VIRTUAL = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": "1"}


@functools.cache
def runs(what):
    done = subprocess.run(
        [sys.executable, SCRIPT, what], capture_output=True, text=True, check=False, env={**os.environ, **VIRTUAL}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def assert_same(one, other, cancelled=lambda name: False):
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-9)
    assert other["arrays"].keys() == one["arrays"].keys()
    for name, value in one["arrays"].items():
        if not cancelled(name):
            np.testing.assert_allclose(other["arrays"][name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("devices", ["2", "4"])
@pytest.mark.parametrize("mode", ["running", "train"])
def test_meta_training_is_the_same_on_any_number_of_devices(mode, devices):
    """pmap on 2 and 4 virtual devices equals jit on one; nothing is traced again after the first step."""

    def cancelled(name):  # by BN: gradients of rounding noise, which Adam makes steps of
        return mode == "train" and ("shift" in name or "['block1']['conv']['scale']" in name)

    one, other = runs(mode)["1"], runs(mode)[devices]
    assert len(one["losses"]) == 10
    assert other["tasks"] == one["tasks"]
    assert len({str(step) for step in one["tasks"]}) == 10
    assert other["retraced"] == one["retraced"] == 0
    assert_same(one, other, cancelled)


def test_steps_in_one_dispatch_are_the_same_steps():
    one, scan = runs("running")["1"], runs("running")["scan"]
    assert scan["tasks"] == one["tasks"]
    assert_same(one, scan)


@pytest.mark.parametrize("devices", ["2", "4"])
def test_pretraining_normalises_and_averages_over_the_whole_batch(devices):
    assert_same(runs("pretrain")["1"], runs("pretrain")[devices])


def test_images_are_turned_by_their_place_in_the_whole_batch_and_shown_to_the_teacher():
    assert_same(runs("pretrain")["quarter 1"], runs("pretrain")["quarter 4"])
    assert runs("pretrain")["quarter 1"]["losses"] != runs("pretrain")["1"]["losses"]

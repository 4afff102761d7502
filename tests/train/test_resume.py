"""A run on four devices that is stopped and started again ends with the same bytes as one that never was."""

import subprocess
import sys

import pytest

from tests.chaos.runs import ROOT, Setting


@pytest.mark.slow
def test_a_stopped_run_on_four_devices_ends_with_the_same_bytes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.resume_run", tmp_path], capture_output=True, text=True, check=False, cwd=ROOT,
        env=Setting(tmp_path, devices=4).environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "4 []"

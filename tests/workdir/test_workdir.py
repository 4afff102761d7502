import json
import os
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import MtlError
from mtl_jax.workdir import Workdir, lock, write_bytes_atomic, write_json_atomic

HOLD = """
    import os, sys, time
    from mtl_jax.workdir import lock
    with lock(sys.argv[1]):
        if "fork" in sys.argv and os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(60)
        if "fork" not in sys.argv:
            print(os.getpid(), flush=True)
        time.sleep(60)
"""


def _hold(path, *arguments):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(path), *arguments], stdout=subprocess.PIPE, text=True
    )
    return child, int(child.stdout.readline())


def test_paths_are_those_of_the_contract(tmp_path):
    workdir = Workdir(tmp_path)
    found = [
        workdir.config,
        workdir.metrics,
        workdir.timing,
        workdir.log,
        workdir.checkpoints("meta"),
        workdir.evaluation("test", "json", way=5, shot=1),
        workdir.evaluation("test", "csv", way=5, shot=1),
        workdir.evaluation("test", "json"),
    ]
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "config.json",
        "metrics.jsonl",
        "timing.jsonl",
        "log.txt",
        "meta",
        "evaluation/test-5way-1shot.json",
        "evaluation/test-5way-1shot.csv",
        "evaluation/test.json",
    ]
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_a_file_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MtlError, match=r"file/run: cannot be a workdir: .*--workdir") as caught:
        Workdir(tmp_path / "file" / "run").create()
    assert "\n" not in str(caught.value)


def test_json_takes_numpy_jax_and_paths_but_no_nan(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json_atomic(path, {"a": np.float32(0.5), "b": jnp.arange(2), "c": tmp_path, "d": np.int64(3)})
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [0, 1], "c": str(tmp_path), "d": 3}
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(path, {"a": float("nan")})
    assert json.loads(path.read_text())["d"] == 3


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_bytes_atomic(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes_atomic(path, b"new")
    with pytest.raises(MtlError, match="No space left on device; free space"):
        write_json_atomic(path, 1)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path):
    child, holder = _hold(tmp_path)
    with child:
        with pytest.raises(MtlError, match=rf"in use by process {holder} on \S+ since .*--workdir"), lock(tmp_path):
            pass
        child.kill()


def test_the_lock_of_a_killed_process_is_not_in_the_way_nor_is_its_name(tmp_path):
    child, holder = _hold(tmp_path)
    with child:
        child.send_signal(signal.SIGKILL)
    # The number in the file is that of a living process, as if it had been given out again.
    (tmp_path / ".lock").write_text(f"process {os.getpid()} on here\n")
    with lock(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    assert holder != os.getpid()


def test_a_forked_child_that_outlives_a_killed_run_does_not_keep_its_lock(tmp_path):
    child, grandchild = _hold(tmp_path, "fork")
    with child:
        with pytest.raises(MtlError, match="in use"), lock(tmp_path):
            pass
        child.kill()
    try:
        os.kill(grandchild, 0)  # it lives
        with lock(tmp_path):
            pass
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_the_lock_is_free_again_after_an_error_and_not_shared_within_a_process(tmp_path):
    with pytest.raises(RuntimeError), lock(tmp_path):
        with pytest.raises(MtlError, match="in use"), lock(tmp_path):
            pass
        raise RuntimeError
    with lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def unsupported(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with lock(tmp_path):
        assert "has no locks" in caplog.text

"""Rows that are computed once: whole or not at all, gone on with, written anew where they are damaged."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from mtl_jax.data.cache import rows
from mtl_jax.errors import DataError

SHAPE = (10, 2, 3)
WHOLE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(rows, "PART", 2)


class Compute:
    """Gives parts of `WHOLE`, notes which, and stops before the row `stop`."""

    def __init__(self, stop=None):
        self.stop, self.parts = stop, []

    def __call__(self, start, end):
        if start == self.stop:
            raise KeyboardInterrupt
        self.parts.append((start, end))
        return WHOLE[start:end].astype(np.float32)


def test_it_is_computed_once_and_opened_after(tmp_path):
    first, path = Compute(), tmp_path / "cache" / "maps.npy"
    array = rows.kept(path, SHAPE, np.float16, first)
    np.testing.assert_array_equal(array, WHOLE)
    assert isinstance(array, np.memmap)
    assert array.dtype == np.float16
    assert first.parts == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    np.testing.assert_array_equal(rows.kept(path, SHAPE, np.float16, pytest.fail), WHOLE)
    assert [name for name in os.listdir(path.parent) if not name.endswith(".lock")] == ["maps.npy"]


@pytest.mark.parametrize("stop", [0, 2, 4, 8])
def test_a_stopped_one_goes_on(tmp_path, stop):
    path = tmp_path / "maps.npy"
    with pytest.raises(KeyboardInterrupt):
        rows.kept(path, SHAPE, np.float16, Compute(stop))
    assert not path.exists()
    second = Compute()
    np.testing.assert_array_equal(rows.kept(path, SHAPE, np.float16, second), WHOLE)
    assert second.parts[0][0] == max(0, stop - 2)  # the last part that was written is not trusted


def test_a_stop_within_a_write_leaves_nothing_wrong(tmp_path):
    path = tmp_path / "maps.npy"
    with pytest.raises(KeyboardInterrupt):
        rows.kept(path, SHAPE, np.float16, Compute(6))
    unfinished = tmp_path / ".partial-maps.npy" / "rows.npy"
    content = unfinished.read_bytes()
    for length in (0, 5, 100, 128, len(content) - 1, len(content) - 13):
        unfinished.parent.mkdir(exist_ok=True)
        unfinished.write_bytes(content[:length])
        np.testing.assert_array_equal(rows.kept(path, SHAPE, np.float16, Compute()), WHOLE)
        path.unlink()


def test_the_rest_of_another_shape_is_not_gone_on_with(tmp_path):
    path = tmp_path / "maps.npy"
    with pytest.raises(KeyboardInterrupt):
        rows.kept(path, (12, 2, 3), np.float16, Compute(8))
    np.testing.assert_array_equal(rows.kept(path, SHAPE, np.float16, Compute()), WHOLE)


@pytest.mark.parametrize("damage", ["truncated", "text", "other shape", "empty"])
def test_a_damaged_file_is_named_and_computed_anew(tmp_path, caplog, damage):
    path = tmp_path / "maps.npy"
    rows.kept(path, SHAPE, np.float16, Compute())
    content = path.read_bytes()
    if damage == "other shape":
        np.save(path, WHOLE[:4])
    else:
        path.write_bytes({"truncated": content[:-1], "text": b"text", "empty": b""}[damage])
    np.testing.assert_array_equal(rows.kept(path, SHAPE, np.float16, Compute()), WHOLE)
    assert f"{path}: damaged" in caplog.text
    np.testing.assert_array_equal(rows.kept(path, SHAPE, np.float16, pytest.fail), WHOLE)


def test_of_two_that_want_it_one_computes(tmp_path):
    path, started, go_on = tmp_path / "maps.npy", threading.Event(), threading.Event()
    first = Compute()

    def slow(start, end):
        started.set()
        assert go_on.wait(60)
        return first(start, end)

    one = threading.Thread(target=rows.kept, args=(path, SHAPE, np.float16, slow))
    one.start()
    assert started.wait(60)
    arrays = []
    other = threading.Thread(target=lambda: arrays.append(rows.kept(path, SHAPE, np.float16, pytest.fail)))
    other.start()
    go_on.set()
    one.join()
    other.join()
    np.testing.assert_array_equal(arrays[0], WHOLE)


def test_one_that_was_killed_goes_on(tmp_path):
    path = tmp_path / "maps.npy"
    script = (
        "import os, signal, numpy as np; from pathlib import Path; from mtl_jax.data.cache import rows; rows.PART = 2\n"
        "def compute(start, end):\n"
        "    if start == 6: os.kill(os.getpid(), 9)\n"
        f"    return np.full((end - start, *{SHAPE[1:]}), 7)\n"
        f"rows.kept(Path({str(path)!r}), {SHAPE}, np.float16, compute)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode < 0
    second = Compute()
    array = rows.kept(path, SHAPE, np.float16, second)
    assert second.parts[0] == (4, 6)
    assert (array[:4] == 7).all()
    np.testing.assert_array_equal(array[4:], WHOLE[4:])


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(rows.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5}))
    with pytest.raises(DataError, match="no room on the disk"):
        rows.kept(tmp_path / "maps.npy", SHAPE, np.float16, Compute())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set another place"):
        rows.kept(tmp_path / "file" / "maps.npy", SHAPE, np.float16, Compute())

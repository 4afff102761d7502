"""The cache: prepared once, opened after, whole or not at all; and the embedded glyphs."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import data_layouts
import numpy as np
import pytest

from mtl_jax import data
from mtl_jax.data.cache import blocks, build, locks, reader, writer
from mtl_jax.data.source import Rows, Source
from mtl_jax.data.sources import archives, glyphs
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A test part of three classes with four images each."""
    images = data_layouts.pixels()
    for label in range(3):
        (tmp_path / "data" / "test" / f"c{label}").mkdir(parents=True)
        for i in range(4):
            (tmp_path / "data" / "test" / f"c{label}" / f"{i}.png").write_bytes(data_layouts.png(images[label, i]))
    return tmp_path / "data"


@pytest.fixture
def load(folder, tmp_path):
    return lambda **options: data.load("folder", str(folder), cache_dir=str(tmp_path / "cache"), **options)


def entries(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_second_load_decodes_nothing(load, monkeypatch):
    first = load()
    monkeypatch.setattr(build, "build", lambda *args, **kwargs: pytest.fail("prepared again"))
    second = load()
    np.testing.assert_array_equal(first.splits["test"].images, second.splits["test"].images)
    assert isinstance(second.splits["test"].images, np.memmap)


def test_changed_files_and_options_are_prepared_anew(load, folder, tmp_path):
    before = load().fingerprint
    (folder / "test" / "c0" / "4.png").write_bytes(data_layouts.png(data_layouts.pixels()[50, 0]))
    assert load().fingerprint != before
    assert load(image_size=16).splits["test"].images.shape == (13, 16, 16, 3)
    assert load(channels=1).splits["test"].images.shape == (13, 32, 32, 1)
    assert len(entries(tmp_path)) == 4


def test_a_moved_data_set_keeps_its_cache(load, folder, tmp_path, monkeypatch):
    load()
    shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.setattr(build, "build", lambda *args, **kwargs: pytest.fail("prepared again"))
    data.load("folder", str(tmp_path / "elsewhere"), cache_dir=str(tmp_path / "cache"))


def test_a_prepared_archive_is_not_opened_again(folder, tmp_path, monkeypatch):
    shutil.make_archive(str(tmp_path / "set"), "tar", folder)
    options = {"cache_dir": str(tmp_path / "cache")}
    before = data.load("folder", str(tmp_path / "set.tar"), **options)
    monkeypatch.setattr(archives, "open_tree", lambda path: pytest.fail("opened again"))
    assert data.load("folder", str(tmp_path / "set.tar"), **options).fingerprint == before.fingerprint


def test_fingerprint_does_not_depend_on_size_names_or_order(load, folder):
    before = load()
    assert load(image_size=20).fingerprint == before.fingerprint
    (folder / "test" / "c0").rename(folder / "test" / "zz")
    (folder / "test" / "c1" / "0.png").rename(folder / "test" / "c1" / "9.png")
    assert load().fingerprint == before.fingerprint
    (folder / "test" / "c1" / "9.png").rename(folder / "test" / "c2" / "9.png")
    assert load().fingerprint != before.fingerprint


def test_place_of_the_cache(monkeypatch):
    monkeypatch.setenv(reader.VARIABLE, "/somewhere")
    assert str(reader.directory()) == "/somewhere"
    assert str(reader.directory("/elsewhere")) == "/elsewhere"
    monkeypatch.delenv(reader.VARIABLE)
    assert str(reader.directory()) == os.path.expanduser("~/.cache/mtl_jax")


def test_cache_of_another_version(load, tmp_path):
    load()
    index = entries(tmp_path)[0] / "index.json"
    facts = json.loads(index.read_text())
    index.write_text(json.dumps({**facts, "version": 99}))
    with pytest.raises(
        DataError, match=r"index\.json: written by cache version 99, this is version 1; remove the fold"
    ):
        load()


@pytest.mark.parametrize("name", ["index.json", "test.npy", "test.digests.npy", "test.names.npy"])
def test_damaged_cache(name, load, tmp_path):
    load()
    file = entries(tmp_path)[0] / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"{name}: damaged cache \(.*\); remove the folder .* to prepare it again"):
        load()


def test_disk_without_room_is_seen_before(load, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(
        DataError, match=r"no room on the disk for the cache \(0\.0 GB needed, 0\.0 GB free\); make room"
    ):
        load()
    assert entries(tmp_path) == []


def test_disk_that_fills_up_leaves_nothing_half_written(load, tmp_path, monkeypatch):
    def full(self, rows):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer.ArrayFile, "append", full)
    with pytest.raises(DataError, match=r"cache: no room on the disk for the cache; make room, or set data\.cache_dir"):
        load()
    assert entries(tmp_path) == []


def test_cache_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: the cache cannot be written there \(.*\); set another place"):
        data.load("folder", str(folder), cache_dir=str(tmp_path / "file"))


def test_an_error_leaves_nothing_behind(load, folder, tmp_path):
    (folder / "test" / "c2" / "0.png").write_bytes(b"")
    with pytest.raises(DataError):
        load()
    assert entries(tmp_path) == []


def test_what_a_killed_process_left_is_removed(load, folder, tmp_path):
    program = """
import os, signal, sys
from mtl_jax import data
from mtl_jax.data.cache import writer
writer.Writer.commit = lambda self, facts: os.kill(os.getpid(), signal.SIGKILL)
data.load("folder", sys.argv[1], cache_dir=sys.argv[2])
"""
    killed = subprocess.run([sys.executable, "-c", program, str(folder), str(tmp_path / "cache")])
    assert killed.returncode == -signal.SIGKILL
    left, *_ = sorted(entry for entry in entries(tmp_path) if entry.is_dir())
    assert (left / "test.npy").exists()
    at_work = tmp_path / "cache" / ".tmp-another"
    with locks.locked(at_work):
        load()
        assert not left.exists() and at_work.exists()
    shutil.rmtree(at_work)
    with locks.locked(at_work):
        at_work.rename(tmp_path / "elsewhere")
    assert [entry.name[:5] for entry in entries(tmp_path)] == ["folde"]


def test_two_that_prepare_at_once(folder, tmp_path, monkeypatch):
    meet = threading.Barrier(2, timeout=20)
    commit = writer.Writer.commit

    def meet_and_commit(self, facts):
        meet.wait()
        commit(self, facts)

    monkeypatch.setattr(writer.Writer, "commit", meet_and_commit)
    results = {}

    def prepare(number):
        results[number] = data.load("folder", str(folder), cache_dir=str(tmp_path / "cache"))

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results[0].splits["test"].images, results[1].splits["test"].images)
    assert len(entries(tmp_path)) == 1


def test_array_file_is_a_npy_whatever_its_length(tmp_path):
    for count in (0, 1, 12345):
        rows = np.arange(count * 6, dtype=np.uint8).reshape(count, 2, 3)
        with writer.ArrayFile(tmp_path / "a.npy", np.uint8, (2, 3), expected=10**9) as file:
            file.append(rows[: count // 2])
            file.append(rows[count // 2 :])
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), rows)


def test_decoding_keeps_the_order_whatever_the_threads(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (120, 64, 64, 3), np.uint8)

    class Slow(Rows):
        def read(self, index):
            time.sleep(0.002 * (self.rows[0] % 3))
            return super().read(index)

    contents = {"test": {f"c{c:02d}": Slow(images, range(c * 4, c * 4 + 4), "x") for c in range(30)}}
    source = Source("arrays", [], lambda scratch: contents, "x")
    done = []
    for threads in (1, 7):
        build.build(source, tmp_path / f"{threads}", Transform(), workers=threads, progress=lambda *n: done.append(n))
    one, other = (reader.open_folder(tmp_path / name, "x").splits["test"] for name in ("1", "7"))
    np.testing.assert_array_equal(one.images, other.images)
    assert {bytes(image.tobytes()) for image in one.images[:4]} == {image.tobytes() for image in images[:4]}
    assert done[-1] == (120, 120) and done == sorted(done[:30]) * 2


@pytest.mark.parametrize("memory", [1, 10_000, 1 << 30])
def test_classes_too_large_for_the_memory(memory, load, tmp_path, monkeypatch):
    before = load()
    monkeypatch.setattr(blocks, "IN_MEMORY", memory)
    monkeypatch.setattr(blocks, "CHUNK", memory)
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_array_equal(load().splits["test"].images, before.splits["test"].images)
    assert len(entries(tmp_path)) == 1


def test_threads_by_the_size_of_images(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for side, threads in ((28, 1), (84, 4), (300, 16)):
        contents = {"test": {"c": Rows(np.zeros((1, side, side), np.uint8), [0], "x")}}
        assert build.default_threads(contents) == threads


@pytest.fixture(scope="module")
def letters():
    return glyphs.read()


def test_glyphs_are_split_by_script(letters):
    assert {split: len(classes) for split, classes in letters.items()} == {"train": 670, "val": 78, "test": 82}
    scripts = {split: {name.split("/")[0] for name in classes} for split, classes in letters.items()}
    assert scripts == {"train": {"Latin", "Greek", "Cyrillic"}, "val": {"Armenian"}, "test": {"Georgian"}}
    assert all(list(classes) == sorted(classes) for classes in letters.values())


def test_no_bitmap_stands_in_two_classes(letters):
    seen = {}
    for classes in letters.values():
        for name, images in classes.items():
            for face, code in images.letters:
                bitmap = glyphs.cut_out(face, code)
                assert seen.setdefault((face, bitmap.size, bitmap.tobytes()), name) == name
    names = [name for classes in letters.values() for name in classes]
    assert "Latin/0041 A" in names and not any(name.endswith((" Α", " А")) for name in names)  # Greek, Cyrillic A
    assert not any(name.endswith((" o", " ο", " о")) for name in names) and "Armenian/0585 օ" in names


def test_glyphs_are_deterministic_and_hard(letters):
    one = letters["test"]["Georgian/10D0 ა"]
    images = np.stack([one.read(i) for i in range(len(one))])
    assert images.shape == (48, 32, 32) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[7], glyphs.read()["test"]["Georgian/10D0 ა"].read(7))
    assert len({image.tobytes() for image in images}) == 48
    edges = np.median(images[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=1)
    assert 12 <= np.sum(edges > 128) <= 36  # inverted contrast, about half of the time


def test_glyphs_load(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "IMAGES_PER_CLASS", 2)
    found = data.load(cache_dir=str(tmp_path))
    assert found.format == "glyphs" and found.splits["train"].images.shape == (1340, 32, 32, 1)

"""Frozen episodes: the same tasks and the same figures from the file, anywhere; nothing else from a changed one."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import other_tiny_run, tiny_run  # noqa: F401, fixtures

from mtl_jax import config, data, evaluation, frozen_episodes, workdir
from mtl_jax.config import build
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluate import evaluate, network
from mtl_jax.evaluate.__main__ import main
from mtl_jax.evaluate.run import with_episodes
from mtl_jax.evaluation import Protocol, Tasks
from mtl_jax.frozen_episodes import __main__ as frozen_episodes_main
from mtl_jax.meta import Inner

PROTOCOL = Protocol(way=3, shot=2, query=4, num_tasks=7, seed=5, inner=Inner(3, 0.1))


@pytest.fixture(scope="module")
def glyphs():
    return data.load("glyphs")


@pytest.fixture
def frozen(glyphs):
    split = glyphs.splits["test"]
    tasks = evaluation.sample_all(split.table(), PROTOCOL, chunk=4)
    facts = {"dataset": "glyphs", "fingerprint": glyphs.fingerprint, "seed": PROTOCOL.seed}
    return frozen_episodes.freeze(split, tasks, **facts), tasks, split


@pytest.mark.parametrize("name", ["e.json", "e.json.gz"])
def test_a_file_gives_its_tasks_back(frozen, tmp_path, name):
    content, tasks, split = frozen
    frozen_episodes.write(tmp_path / name, content)
    replayed = frozen_episodes.file.replay(frozen_episodes.read(tmp_path / name), split)
    assert replayed.by_file_name == 0
    np.testing.assert_array_equal(replayed.tasks.support, tasks.support)
    np.testing.assert_array_equal(replayed.tasks.query, tasks.query)
    first = (tmp_path / name).read_bytes()
    frozen_episodes.write(tmp_path / name, content)
    assert (tmp_path / name).read_bytes() == first


def test_all_tasks_are_those_of_the_protocol(frozen):
    _, tasks, split = frozen
    support, query = evaluation.sample(split.table(), PROTOCOL, 0, 7)
    np.testing.assert_array_equal(tasks.support, support)
    np.testing.assert_array_equal(tasks.query, query)


def test_the_hash_is_what_the_documentation_says(frozen, glyphs):
    content, tasks, split = frozen
    state = hashlib.sha256()
    for support, query in zip(*tasks, strict=True):
        for rows in np.concatenate([support, query], axis=1):
            name = split.class_names[split.labels[rows[0]]]
            state.update(hashlib.blake2b(name.encode(), digest_size=16).digest())
            for row in rows:  # glyphs are stored as they are, so the digest is that of the stored image
                image = np.ascontiguousarray(split.images[row])
                state.update(hashlib.blake2b(image, digest_size=16, salt=b"32x32x1").digest())
    assert content.facts["sha256"] == state.hexdigest()


def test_every_word_of_the_tasks_is_in_the_hash(frozen, tmp_path):
    content, _, _ = frozen
    path = tmp_path / "e.json"
    frozen_episodes.write(path, content)
    original = json.loads(path.read_text())

    def change(edit):
        changed = json.loads(json.dumps(original))
        edit(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(DataError, match=r"e\.json: "):
            frozen_episodes.read(path)

    change(lambda c: c["tasks"].reverse())
    change(lambda c: c["tasks"][2].reverse())
    change(lambda c: c["tasks"][1][0][1].reverse())
    change(lambda c: c["tasks"].pop())
    change(lambda c: c["tasks"][0][0].reverse())  # support and query
    change(lambda c: c["tasks"][0][0][0].__setitem__(0, c["tasks"][0][1][0][0]))  # an image of another class
    change(lambda c: c["images"][0].update({"digest": "00" * 16}))
    change(lambda c: c["images"][0].update({"digest": "xyz"}))
    change(lambda c: c["tasks"][0][0][0].__setitem__(0, -1))
    change(lambda c: c["tasks"][0][0][0].__setitem__(0, 10**9))
    change(lambda c: [image.update({"class": image["class"] + "'"}) for image in c["images"]])
    change(lambda c: c.update({"version": 2}))
    change(lambda c: c.update({"sha256": 5}))
    change(lambda c: c.pop("images"))


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\x1f\x8b", None])
def test_what_is_no_file_of_episodes_is_an_error_of_one_line(tmp_path, damage):
    for name in ("e.json", "e.json.gz"):
        if damage is not None:
            (tmp_path / name).write_bytes(damage)
        with pytest.raises(DataError, match=rf"{name}: (cannot be read as|not) a file of episodes"):
            frozen_episodes.read(tmp_path / name)


def test_a_cut_gzip_is_an_error_of_one_line(frozen, tmp_path):
    path = tmp_path / "e.json.gz"
    frozen_episodes.write(path, frozen[0])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as a file of episodes"):
        frozen_episodes.read(path)
    path.write_bytes(gzip.compress(b'{"format": 1}'))
    with pytest.raises(DataError, match="expected 'few-shot episodes'"):
        frozen_episodes.read(path)


def _write_folders(root, suffix, quality=None):
    rng = np.random.default_rng(3)
    for name in ("ant", "bee", "cat"):
        folder = root / "test" / name
        folder.mkdir(parents=True)
        for i in range(6):
            smooth = np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((5, 5, 1), np.uint8))
            Image.fromarray(smooth).save(folder / f"{i}{suffix}", **({"quality": quality} if quality else {}))
    return root


def _load(root, tmp_path):
    return data.load("folder", str(root), image_size=20, cache_dir=str(tmp_path / "cache"))


def test_the_hash_is_the_same_from_any_format_and_any_file_names(tmp_path):
    png, bmp = (_load(_write_folders(tmp_path / f, f".{f}"), tmp_path) for f in ("png", "bmp"))
    tasks = evaluation.sample_all(png.splits["test"].table(), PROTOCOL)
    hashes = {frozen_episodes.content_hash(d.splits["test"], tasks) for d in (png, bmp)}
    assert len(hashes) == 1 and png.splits["test"].file_names[0] != bmp.splits["test"].file_names[0]


def test_another_decoders_images_are_known_by_their_file_names(tmp_path):
    one = _load(_write_folders(tmp_path / "a", ".jpg", 95), tmp_path)
    other = _load(_write_folders(tmp_path / "b", ".jpg", 60), tmp_path)
    split, there = one.splits["test"], other.splits["test"]
    tasks = evaluation.sample_all(split.table(), PROTOCOL)
    content = frozen_episodes.freeze(split, tasks, dataset="folder", fingerprint=one.fingerprint)
    replayed = frozen_episodes.file.replay(content, there, other.fingerprint)
    assert replayed.by_file_name == len(content.digests) > 0
    np.testing.assert_array_equal(there.file_names[replayed.tasks.query], split.file_names[tasks.query])
    nameless = content._replace(file_names=[""] * len(content.digests))
    with pytest.raises(DataError, match=r"test split: image .* of class 'ant' of the episodes is not there"):
        frozen_episodes.file.replay(nameless, there, other.fingerprint)


def test_other_data_are_refused(frozen, glyphs):
    with pytest.raises(DataError, match=r"train split: class '.*' of the episodes is not there; they were made from"):
        frozen_episodes.file.replay(frozen[0], glyphs.splits["train"], glyphs.fingerprint)


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_given_tasks_are_evaluated_as_the_drawn_ones(glyphs, tiny_run, mode):  # noqa: F811
    settings = config.read(workdir.Workdir(tiny_run).config)
    split = glyphs.splits["test"]
    _, model = network.trained(settings, workdir.Workdir(tiny_run), split.images.shape[1:])
    model = model._replace(embed=model.embed._replace(batch_statistics=mode))
    rows = np.flatnonzero(split.labels < 4)
    small = split.images[rows]
    table = type(split.table())(*(part[:4] for part in split.table()))
    protocol = Protocol(3, 1, 4, 5, 5, Inner(3, 1.0), flips=True, zero_head=True)
    tasks = evaluation.sample_all(table, protocol)
    drawn = evaluation.evaluate_tasks(model, small, table, protocol, every_step=True)
    kept = {"tasks": tasks, "chunk": 2}
    replayed = evaluation.evaluate_tasks(model, small, table, protocol, every_step=True, **kept)
    np.testing.assert_array_equal(replayed, drawn)
    answers = evaluation.evaluate_tasks(model, small, table, protocol, outcome=evaluation.answers, **kept)
    truth = np.repeat(np.arange(3), 4)
    np.testing.assert_allclose((answers == truth).mean(1), drawn[:, -1], atol=1e-6)
    backwards = Tasks(*(part[::-1] for part in tasks))
    np.testing.assert_array_equal(
        evaluation.evaluate_tasks(model, small, table, protocol, every_step=True, tasks=backwards), drawn[::-1]
    )


def test_another_process_replays_a_file_to_the_last_digit(tiny_run, tmp_path, capsys):  # noqa: F811
    path = tmp_path / "episodes.json.gz"
    arguments = ["", "make", f"--workdir={tiny_run}", f"--output={path}", "--num_tasks=20", "--shot=2", "--seed=9"]
    assert frozen_episodes_main.main(arguments) == 0
    frozen = frozen_episodes.read(path)
    assert f"sha256 {frozen.facts['sha256']}" in capsys.readouterr().out
    settings = with_episodes(config.read(workdir.Workdir(tiny_run).config), frozen)
    here = evaluate(settings, str(tiny_run), episodes=frozen)
    file = tiny_run / "evaluation" / f"test-5way-2shot-{frozen.facts['sha256'][:8]}.json"
    file.unlink()
    program = Path(__file__).parents[2] / "evaluate.py"
    command = [sys.executable, str(program), f"--workdir={tiny_run}", f"--episodes={path}"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert run.returncode == 0, run.stderr
    there = json.loads(file.read_text())
    facts = {"accuracy", "ci95", "episodes", "num_tasks", "shot", "seed"}
    assert {k: there[k] for k in facts} == {k: here[k] for k in facts}
    assert there["episodes"] == frozen.facts["sha256"] and there["seed"] == 9 and there["shot"] == 2
    assert frozen.facts["sha256"][:12] in run.stdout


def test_drawn_and_replayed_tasks_of_one_seed_have_one_hash_and_one_accuracy(tiny_run):  # noqa: F811
    settings = config.read(workdir.Workdir(tiny_run).config)
    dataset, protocol = build.dataset(settings.data), build.protocol(settings)
    split = dataset.splits["test"]
    tasks = evaluation.sample_all(split.table(), protocol)
    frozen = frozen_episodes.freeze(split, tasks, dataset="glyphs", fingerprint=dataset.fingerprint, seed=1)
    drawn = evaluate(settings, str(tiny_run), dataset)
    replayed = evaluate(with_episodes(settings, frozen), str(tiny_run), dataset, frozen)
    assert {**drawn, "seconds": 0} == {**replayed, "seconds": 0}


def test_a_flag_that_contradicts_the_file_is_refused(tiny_run, frozen, tmp_path):  # noqa: F811
    path = tmp_path / "e.json"
    frozen_episodes.write(path, frozen[0])
    with pytest.raises(ConfigError, match="--shot=1, but the file of episodes has 2"):
        main(["evaluate.py", f"--workdir={tiny_run}", f"--episodes={path}", "--shot=1"])


def test_show_lists_a_task(frozen, tmp_path, capsys):
    content, tasks, split = frozen
    path = tmp_path / "e.json"
    frozen_episodes.write(path, content)
    assert frozen_episodes_main.main(["", "show", str(path), "--task=6"]) == 0
    out = capsys.readouterr().out
    assert "7 tasks, 3-way 2-shot, 4 queries a class, of the test split of glyphs" in out
    assert out.count(bytes(split.digests[tasks.query[6, 2, 3]]).hex()) == 1
    assert frozen_episodes_main.main(["", "show", str(path), "--task=7"]) == 2


def test_make_wants_a_workdir_or_a_data_set(tmp_path, capsys):
    assert frozen_episodes_main.main(["", "make", f"--output={tmp_path / 'e.json'}"]) == 2
    assert "give either --workdir=DIR or --data=NAME" in capsys.readouterr().err

"""What a run was trained on, and what tests it: the same data anywhere, other data by name, never what it has seen."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_runs import tiny_run  # noqa: F401, a fixture

from mtl_jax import config, data
from mtl_jax.config import run_data
from mtl_jax.data import Dataset, Split
from mtl_jax.errors import CheckpointError, ConfigError, DataError
from mtl_jax.evaluate import __main__ as evaluate_main
from mtl_jax.report import __main__ as report_main
from mtl_jax.workdir import Workdir, write_json_atomic
from mtl_jax.workdir.checkpoint import Checkpoints


def split(name, classes, start):
    """Two images a class, whose digests count from `start`."""
    rows = 2 * len(classes)
    digests = np.repeat(np.arange(start, start + rows, dtype=np.uint8)[:, None], 16, 1)
    files = np.array([f"{i}.png".encode() for i in range(rows)])
    counts = np.full(len(classes), 2)
    return Split(name, np.zeros((rows, 8, 8, 1), np.uint8), np.repeat(np.arange(len(classes)), 2),
                 tuple(classes), counts, files, digests)  # fmt: skip


def dataset(fingerprint, train=("ant", "bee", "1"), test=("cat", "dog"), start=0, name="folder"):
    parts = {"train": split("train", train, start), "test": split("test", test, start + 50)}
    return Dataset(name, "made here", fingerprint, parts)


@pytest.fixture
def place(tmp_path):
    """A workdir that was trained on `dataset('a' * 32)`."""
    place = Workdir(tmp_path / "run").create()
    write_json_atomic(place.config, config.to_json(config.complete({})))
    run_data.record(place, dataset("a" * 32))
    return place


def test_training_records_its_data(tiny_run):  # noqa: F811
    (own,) = run_data.read(Workdir(tiny_run))
    found = data.load("glyphs")
    assert own.named() == {"dataset": "glyphs", "fingerprint": found.fingerprint}
    assert own.classes == found.splits["train"].class_names
    np.testing.assert_array_equal(own.digests, found.splits["train"].digests)


def test_the_same_images_are_taken_wherever_they_lie(place):
    again = dataset("a" * 32, train=("ant", "bee"), test=("ant", "bee"))  # what its own splits share is said elsewhere
    assert run_data.check(again, place, "test")[0].fingerprint == "a" * 32
    assert run_data.check(again, place, "train", other=True)


def test_other_images_are_refused_where_they_are_not_meant(place):
    with pytest.raises(ConfigError, match=r"fingerprint aaaaaaaaaaaa, not bbbbbbbbbbbb.*--data=NAME:PATH"):
        run_data.check(dataset("b" * 32, test=("x", "y"), start=100), place, "test")
    assert run_data.check(dataset("b" * 32, test=("x", "y"), start=100), place, "test", other=True)


def test_classes_that_were_trained_on_are_refused(place):
    with pytest.raises(DataError, match=r"test split: .* was trained on 1 of its 2 classes \(folder\), such as 'bee'"):
        run_data.check(dataset("b" * 32, test=("bee", "owl"), start=100), place, "test", other=True)
    numbers = dataset("b" * 32, test=("1", "2"), start=100)  # of unnamed classes: the same number says nothing
    assert run_data.check(numbers, place, "test", other=True)


def test_images_that_were_trained_on_are_refused_under_other_names(place):
    with pytest.raises(DataError, match=r"trained on 2 of its 4 images \(folder\), such as .*0.png"):
        run_data.check(_with_test(dataset("b" * 32), split("test", ("x", "y"), 4)), place, "test", other=True)


def _with_test(found, test):
    return Dataset(found.name, found.format, found.fingerprint, {"test": test})


def test_images_of_another_size_are_refused(place):
    small = split("test", ("x", "y"), 100)
    small = Split(**{**vars(small), "images": small.images[:, :4]})
    with pytest.raises(DataError, match=r"images are \[4, 8, 1\], but .* was trained on \[8, 8, 1\], which are"):
        run_data.check(_with_test(dataset("b" * 32), small), place, "test", other=True)


def test_what_the_pretraining_saw_counts(place, tmp_path):
    second = Workdir(tmp_path / "second").create()
    run_data.record(second, dataset("b" * 32, train=("owl",), start=100, name="birds"), init=str(place.path))
    assert [one.named()["dataset"] for one in run_data.read(second)] == ["birds", "folder"]
    assert [len(one.digests) for one in run_data.read(second)] == [2, 6]
    own_test = dataset("b" * 32, train=("owl",), test=("ant", "jay"), start=100, name="birds")
    with pytest.raises(DataError, match=r"trained on 1 of its 2 classes \(folder\), such as 'ant'"):
        run_data.check(own_test, second, "test")
    third = Workdir(tmp_path / "third").create()
    run_data.record(third, dataset("a" * 32), init=str(place.path))  # the same data twice is once
    assert len(run_data.read(third)) == 1


def test_runs_of_before_data_json_are_known_by_their_checkpoints(place, caplog):
    place.data.unlink()
    assert run_data.read(place) == []
    assert run_data.check(dataset("b" * 32), place, "test") == []
    assert "does not record its training data" in caplog.text
    metadata = {"data": "a" * 32, "image_shape": [8, 8, 1], "config": {"data": {"name": "folder"}}}
    Checkpoints(place.checkpoints("meta")).save(1, {"a": {"b": np.zeros(1)}}, metadata)
    with pytest.raises(ConfigError, match="was trained on other images"):
        run_data.check(dataset("b" * 32), place, "test")
    assert run_data.check(dataset("b" * 32), place, "test", other=True)
    assert "does not record its training classes" in caplog.text


def test_a_run_of_other_images_keeps_its_record(place):
    Checkpoints(place.checkpoints("meta")).save(1, {"a": {"b": np.zeros(1)}}, {"data": "a" * 32})
    run_data.record(place, dataset("b" * 32))  # which `loop.run_phase` then refuses
    assert run_data.read(place)[0].fingerprint == "a" * 32


def test_a_damaged_record_is_refused(place):
    place.data.with_suffix(".digests").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"data.json: damaged .*rerun the train.py command"):
        run_data.read(place)
    place.data.write_text("{")
    with pytest.raises(CheckpointError, match=r"data.json: damaged"):
        run_data.read(place)


@pytest.mark.parametrize(
    ("word", "name", "path"),
    [("cub:D/CUB", "cub", "D/CUB"), ("folder:C:\\d", "folder", "C:\\d"), ("glyphs", "glyphs", ""),
     ("tfds:a/b:D", "tfds:a/b", "D"), ("tfds:a:1.0.2:D", "tfds:a:1.0.2", "D")],
)  # fmt: skip
def test_other_data_has_its_own_split_and_the_runs_images(place, word, name, path):
    settings = config.complete({"data": {"fractions": (0.6, 0.2, 0.2), "mean": (0.1,), "cache_dir": "c", "resize": 9}})
    found = run_data.with_other(settings, place, word).data
    assert (found.name, found.path, found.fractions, found.cache_dir) == (name, path, (), "c")
    assert (found.image_size, found.channels, found.mean, found.resize) == (8, 1, (0.1,), 9)
    with pytest.raises(ConfigError, match="--data=: expected NAME:PATH"):
        run_data.with_other(settings, place, "")


def birds(root, seed):
    """Photographs in colour, larger than glyphs and no squares: five classes in test/, five images in each."""
    rng = np.random.default_rng(seed)
    for name in ("jay", "owl", "tit", "kite", "rook"):
        (root / "test" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / "test" / name / f"{number}.png")
    return root


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    """evaluate.py on a copy of the tiny run: words -> what is printed."""
    path = tmp_path / "run"
    shutil.copytree(tiny_run, path)
    shutil.rmtree(path / "evaluation", ignore_errors=True)

    def run(*words):
        query = [] if any("query" in word for word in words) else ["--config.evaluate.query=2"]
        evaluate_main.main(["evaluate.py", f"--workdir={path}", *query, *words])
        return capsys.readouterr().out

    run.path = path
    return run


def test_a_run_is_tested_on_other_data_beside_its_own(run, tmp_path):
    run("--num_tasks=4")
    own = (run.path / "evaluation" / "test-5way-1shot.json").read_bytes()
    roots = [birds(tmp_path / name, seed) for seed, name in enumerate(("here", "there"))]
    printed = [run("--num_tasks=4", f"--data=folder:{root}") for root in roots]
    assert (run.path / "evaluation" / "test-5way-1shot.json").read_bytes() == own
    assert "trained_on" in json.loads(own) and json.loads(own)["dataset"] == "glyphs"
    glyphs = data.load("glyphs").fingerprint
    files = sorted((run.path / "evaluation").glob("folder-*-test-5way-1shot.json"))
    assert len(files) == 2  # two folders of one NAME
    assert len(list((run.path / "evaluation").glob("folder-*-test-5way-1shot.csv"))) == 2
    for file in files:
        result = json.loads(file.read_text())
        assert (result["dataset"], result["split"]) == ("folder", "test")
        assert result["trained_on"] == [{"dataset": "glyphs", "fingerprint": glyphs}]
        assert file.name.startswith(f"folder-{result['fingerprint'][:8]}-")
        said = f"over 4 tasks of folder {result['fingerprint'][:12]}, trained on glyphs {glyphs[:12]} ("
        assert any(said in line for line in printed)


def test_how_other_data_is_read_can_be_said_and_what_is_the_networks_not(run, tmp_path):
    classes = birds(tmp_path, 0) / "test"  # class folders without a split
    assert "of folder" in run("--num_tasks=2", f"--data=folder:{classes}", "--config.data.fractions=(0,0,1)")
    with pytest.raises(ConfigError, match=r"data.image_size: \d+ in the checkpoint, 64 now; leave these unchanged$"):
        run(f"--data=folder:{classes}", "--config.data.image_size=64")
    with pytest.raises(ConfigError, match=r"--data and --config\.data\.path mean the same"):
        run(f"--data=folder:{classes}", f"--config.data.path={classes}")
    with pytest.raises(ConfigError, match=r"data.name: glyphs in the checkpoint, cub now.*give --data=NAME:PATH"):
        run("--config.data.name=cub")
    with pytest.raises(ConfigError, match="--data needs a run's own config"):
        run("--data=folder:D", "--weights=theirs.pth")


def test_one_task_has_no_interval_and_few_are_counted(run, tmp_path):
    assert " ± " not in run("--num_tasks=1")
    result = json.loads((run.path / "evaluation" / "test-5way-1shot.json").read_text())
    assert result["ci95"] is None and result["distinct_tasks"] == 1
    run("--num_tasks=1", "--config.evaluate.every_step=True")
    result = json.loads((run.path / "evaluation" / "test-5way-1shot.json").read_text())
    assert {step["ci95"] for step in result["accuracy_by_step"]} == {None}
    root = birds(tmp_path, 0)
    # Ten pairs of classes, each class with one of five images as its support set: 250 tasks can be told apart.
    printed = run("--num_tasks=300", "--way=2", "--config.evaluate.query=4", f"--data=folder:{root}")
    found = re.search(r"over 300 tasks, (\d+) of them distinct of folder", printed)
    assert 100 < int(found[1]) <= 250


def test_a_report_on_other_data_names_it(run, tmp_path, capsys):
    root, output = birds(tmp_path, 0), tmp_path / "page"
    words = ["", str(run.path), "--num_tasks=2", "--query=2", f"--data=folder:{root}"]
    assert report_main.main(words) == 2
    assert "--data needs --output=FOLDER" in capsys.readouterr().err
    assert report_main.main([*words, f"--output={output}"]) == 0
    text, glyphs = (output / "index.html").read_text(), data.load("glyphs").fingerprint
    fingerprint = data.load("folder", str(root), channels=1).fingerprint  # of the images as the run sees them
    assert f"test 5-way 1-shot, 2 tasks of folder {fingerprint[:12]}, trained on glyphs {glyphs[:12]} (" in text
    assert fingerprint in text and glyphs in text and f"--data=folder:{root}" in text

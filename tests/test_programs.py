"""train.py and evaluate.py as a user runs them, on class folders of tiny images."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SMALL = [
    "--config.data.name=folder", "--config.data.mean=(0.5,)", "--config.backbone.width=0.1",
    "--config.pretrain.steps=6", "--config.pretrain.batch_size=8", "--config.pretrain.val_every=3",
    "--config.pretrain.val_tasks=10", "--config.meta.steps=6", "--config.meta.val_every=3",
    "--config.meta.val_tasks=10", "--config.meta.way=2", "--config.meta.query=2", "--config.meta.tasks_per_step=2",
    "--config.evaluate.query=2", "--config.runtime.log_every=1", "--config.runtime.checkpoint_every=2",
]  # fmt: skip


def run(program, *words, **environment):
    return subprocess.run(
        [sys.executable, ROOT / program, *map(str, words)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders: two or three classes a split, six grey 28 x 28 images each."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, classes in (("train", 3), ("val", 2), ("test", 2)):
        for number in range(classes):
            (root / split / f"{split}{number}").mkdir(parents=True)
            for image in range(6):
                pixels = rng.integers(0, 256, (28, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"{split}{number}" / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(folder, cache, tmp_path_factory):
    """A workdir after train.py, with what it printed."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    words = ["--config=configs/default.py", f"--workdir={workdir}", f"--config.data.path={folder}", *SMALL]
    done = run("train.py", *words, MTL_JAX_CACHE=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, words, done.stderr


def scalars(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_in_its_workdir(trained):
    workdir, _, log = trained
    for name in ("config.json", "metrics.jsonl", "timing.jsonl", "log.txt", "pretrain/best.json", "meta/best.json"):
        assert (workdir / name).is_file(), name
    assert (workdir / "pretrain" / "6").is_dir()
    assert (workdir / "meta" / "6").is_dir()
    rows = scalars(workdir)
    assert [row["step"] for row in rows if "meta/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "meta/val_accuracy" in row] == [3, 6]
    assert "validation" in log


def test_phases_that_are_done_are_not_done_again(trained, cache):
    workdir, words, _ = trained
    before = (workdir / "metrics.jsonl").read_bytes()
    again = run("train.py", *words, MTL_JAX_CACHE=cache)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert "validation" not in again.stderr


def test_evaluate_writes_the_contracts_files(trained, cache):
    workdir, _, _ = trained
    done = run("evaluate.py", f"--workdir={workdir}", "--num_tasks=20", MTL_JAX_CACHE=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((workdir / "evaluation" / "test-2way-1shot.json").read_text())
    assert f"{100 * result['accuracy']:.2f} ± {100 * result['ci95']:.2f} %" in done.stdout
    facts = {"num_tasks": 20, "way": 2, "shot": 1, "query": 2, "inner_steps": 20, "batch_norm": "running", "seed": 1}
    assert facts.items() <= result.items()
    rows = (workdir / "evaluation" / "test-2way-1shot.csv").read_text().splitlines()
    accuracies = [float(row.split(",")[-1]) for row in rows[1:]]
    assert len(accuracies) == 20
    assert np.mean(accuracies) == pytest.approx(result["accuracy"])
    other = run("evaluate.py", f"--workdir={workdir}", "--num_tasks=5", "--shot=3", "--split=val", MTL_JAX_CACHE=cache)
    assert "val 2-way 3-shot" in other.stdout, other.stderr[-2000:]


def test_a_stopped_run_goes_on_to_the_same_bytes(trained, folder, cache, tmp_path):
    """Stopped by SIGTERM in the middle, and started again with the same command."""
    workdir, words, _ = trained
    words = [word if not word.startswith("--workdir") else f"--workdir={tmp_path / 'w'}" for word in words]
    environment = {**os.environ, "MTL_JAX_CACHE": cache}
    metrics, log = tmp_path / "w" / "metrics.jsonl", tmp_path / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, ROOT / "train.py", *words], env=environment, stderr=file)
    while not metrics.exists() or not metrics.read_bytes():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) in (0, 75)  # 0: it had come to its end before the signal
    again = run("train.py", *words, MTL_JAX_CACHE=cache)
    assert again.returncode == 0, again.stderr[-3000:]
    assert metrics.read_bytes() == (workdir / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.meta.wya=3"], "wya"),
        (["--config.meta.batch_norm=runing"], "config.meta.batch_norm.*running"),
        (["--config.meta.way=4"], "train has 3 classes"),
        (["--config.meta.shot=5"], "fewer than 5 \\+ 2 images"),
        (["config.meta.way=2"], "two dashes"),
    ],
)
def test_mistakes_are_one_line_and_status_2(trained, cache, tmp_path, words, message):
    _, good, _ = trained
    kept = [word for word in good if not any(word.startswith(w.split("=")[0]) for w in words)]
    kept = [word if not word.startswith("--workdir") else f"--workdir={tmp_path / 'w'}" for word in kept]
    done = run("train.py", *kept, *words, MTL_JAX_CACHE=cache)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert re.search(message, done.stderr.strip().splitlines()[-1]), done.stderr


def test_another_config_in_the_same_workdir_is_refused(trained, cache):
    _, words, _ = trained
    done = run("train.py", *words, "--config.inner.steps=7", MTL_JAX_CACHE=cache)
    assert done.returncode == 2
    assert "inner.steps: 20 in the checkpoint, 7 now" in done.stderr

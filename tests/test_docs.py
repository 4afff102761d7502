"""README and docs/ say what is so: links lead somewhere, what is named exists, every block of code runs (make docs)."""

import csv
import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import docs_configs
import docs_world
import numpy as np
import pytest
from docs_blocks import NEEDS, PAGES, ROOT, Block, blocks, commands
from PIL import Image

from mtl_jax import FewShotClassifier, data
from mtl_jax import __main__ as listing

TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
EXAMPLES = sorted(f"{path.stem}.py" for path in (ROOT / "examples").glob("*.ipynb"))
WRITTEN = "configs/mine.py"  # by the reader of docs/configs.md
every_page = pytest.mark.parametrize("page", PAGES)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, headings), target


@every_page
def test_every_block_is_known_to_run_or_says_what_it_needs(page):
    for block in blocks(page):
        where = f"{page}:{block.line}"
        assert block.kind, f"{where}: give the block a language (sh, python, text, json, ...)"
        assert set(block.needs) <= set(NEEDS), f"{where}: needs {block.needs}, expected some of {NEEDS}"


@every_page
def test_what_is_named_exists(page):
    text = TEXTS[page]
    for program in re.findall(r"python -m mtl_jax\.(\w+)", text):
        assert program in listing.PROGRAMS, program
    for config in re.findall(r"--config=(configs/\w+\.py)", text):
        assert (ROOT / config).exists() or config == WRITTEN, config
    for name in re.findall(r"\b((?:docs|tests|mtl_jax|examples|configs|benchmarks)/[\w/]+\.(?:py|md|png))\b", text):
        assert (ROOT / name).exists() or name == WRITTEN, name
    for path in re.findall(r"`mtl_jax((?:\.\w+)+)`", text):
        _resolve(path)
    for target in re.findall(r"`make (\w+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def _resolve(path):
    found = importlib.import_module("mtl_jax")
    for name in path.strip(".").split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            found = importlib.import_module(f"{found.__name__}.{name}")


def test_every_key_and_every_config_is_in_the_page_of_configs():
    text = TEXTS["docs/configs.md"]
    assert docs_configs.written(text) == text, "python tests/docs_configs.py writes its tables anew"
    assert "`pretrain.augment.resized_crop_scale` | `(0.08, 1.0)` | range of the crop's area" in text
    for file in (ROOT / "configs").glob("[!_]*.py"):
        assert f"`configs/{file.name}` |" in text, file.name


def test_the_index_has_every_page():
    for page in PAGES[1:]:
        name = Path(page).name
        assert name == "README.md" or f"({name})" in TEXTS["docs/README.md"], name


def test_blocks_are_found_with_their_marks(tmp_path, monkeypatch):
    monkeypatch.setattr("docs_blocks.ROOT", tmp_path)
    (tmp_path / "a.md").write_text(
        "x\n\n    make demo  # comment\n    python train.py \\\n      --a=1\n\n"
        "<!-- needs: gpu, time -->\n\n```sh\nls\n```\n"
        "- item\n\n    more of it\n\n<!-- run -->\n```python\nx = '''\n# y'''\n```\ntext\n```\nwhat is this\n```\n"
    )
    first, second, third, fourth = blocks("a.md")
    assert commands(first) == ["make demo", "python train.py --a=1"] and first.kind == "shell" and not first.in_full
    assert (second.kind, second.needs) == ("shell", ("gpu", "time"))
    assert (third.kind, third.text, third.needs, third.in_full) == ("python", "x = '''\n# y'''", (), True)
    assert fourth.kind == ""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder that all pages share, as a reader's who follows them one after the other."""
    root = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTL_JAX_CACHE", str(root / "cache"))
        patch.chdir(root)
        docs_world.make(root)
        yield root


@pytest.mark.docs
@every_page
def test_every_block_of_a_page_runs(page, world, monkeypatch):
    stand_in_for_trackers(monkeypatch)
    names: dict = {"__name__": "page"}
    for block in blocks(page):
        if not block.needs:
            print(f"{page}:{block.line}", flush=True)
            _run(block, names)


def _run(block: Block, names: dict) -> None:
    if block.kind == "python":
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), names)
    elif block.kind == "shell":
        for command in commands(block):
            docs_world.execute(command, in_full=block.in_full)


def stand_in_for_trackers(monkeypatch) -> list:
    """Weights & Biases and MLflow as the pages call them; neither is a dependency. Returns what was logged."""
    logged: list = []
    wandb = types.SimpleNamespace(
        init=lambda **given: None, finish=lambda: None, log=lambda scalars, step: logged.append((step, dict(scalars)))
    )
    mlflow = types.SimpleNamespace(
        start_run=lambda: None, end_run=lambda: None, log_params=lambda given: None,
        log_metrics=lambda scalars, step: logged.append((step, dict(scalars))),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return logged


@pytest.mark.docs
@pytest.mark.parametrize("script", EXAMPLES)
def test_the_examples_run(script, world):
    docs_world.execute(f"python examples/{script}")


SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.docs
@pytest.mark.skipif(not (SHARED / "cifar100").exists(), reason="no real photographs in ../shared/data")
def test_three_photographs_of_five_classes_by_command_and_from_python(tmp_path, monkeypatch):
    """The story of docs/own_images.md on FC100's classes: both ways agree, and are better than chance."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    subprocess.run([sys.executable, SHARED / "unpack.py", "cifar100", tmp_path / "cifar"], check=True)
    split = data.load("fc100", str(tmp_path / "cifar"), image_size=32, channels=3).splits["test"]
    rng = np.random.default_rng(0)
    for label in rng.choice(len(split.class_names), 5, replace=False):
        rows, name = rng.permutation(np.flatnonzero(split.labels == label)), split.class_names[label]
        for number, row in enumerate(rows[:23]):
            file = tmp_path / (f"photos/{name}" if number < 3 else "rest") / f"{name}.{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[row]).save(file)
    docs_world.execute(
        f"python -m mtl_jax.classify --support={tmp_path}/photos --query={tmp_path}/rest --output={tmp_path}/found.csv"
    )
    with open(tmp_path / "found.csv") as file:
        found = {row["file"]: row["class"] for row in csv.DictReader(file)}
    photos = sorted((tmp_path / "photos").rglob("*.png"))
    classifier = FewShotClassifier.from_pretrained().fit(photos, [photo.parent.name for photo in photos])
    answers = classifier.predict([tmp_path / "rest" / name for name in found])
    assert np.mean([a == b for a, b in zip(answers, found.values(), strict=True)]) > 0.98  # batches round differently
    assert len(found) == 100 and np.mean([name.split(".")[0] == answer for name, answer in found.items()]) > 0.4

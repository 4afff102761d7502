"""What the commands of README and docs/ find when a test runs them: images of one's own, trained runs, the programs."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import data_layouts
import numpy as np
from docs_blocks import ROOT
from mtl_jax.configs import folder
from PIL import Image
from tiny_runs import tiny_config

from mtl_jax.train import train

SIDE = 32
CLASSES = {"train": 12, "val": 6, "test": 6}
KINDS = ("cat", "cup", "dog", "fern", "lamp", "moss")  # the test split's


def picture(kind: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: a class's colours and stripes, with noise."""
    own = np.random.default_rng(kind)
    colours, angle, width = own.uniform(0, 1, (2, 3)), own.uniform(0, np.pi), own.uniform(4, 12)
    y, x = np.mgrid[:SIDE, :SIDE] + rng.uniform(0, 20)
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / width)[..., None] > 0
    pixels = np.where(stripes, *colours) + rng.normal(0, 0.15, (SIDE, SIDE, 3))
    return (255 * pixels.clip(0, 1)).astype(np.uint8)


def write_images(root: Path) -> None:
    """D/SPLIT/CLASS, CLASSES/CLASS without splits, my_classes/CLASS of three photographs, and unsorted/."""
    rng, number = np.random.default_rng(0), 0
    for split, count in CLASSES.items():
        for index in range(count):
            name = KINDS[index] if split == "test" else f"{split}{index}"
            for each in range(22):
                number, pixels = number + 1, Image.fromarray(picture(100 * len(split) + index, rng))
                places = [root / "D" / split / name, root / "CLASSES" / name]
                if split == "test" and index < 5 and each < 20:
                    places.append(root / "my_classes" / name if each < 3 else root / "unsorted")
                for place in places:
                    place.mkdir(parents=True, exist_ok=True)
                    pixels.save(place / f"{name}-{each}.png")


def write_copies(root: Path) -> None:
    """The published sets as docs/data.md names them, small: a format each, 16 images a class, the true classes."""
    images = data_layouts.pixels(each=16)
    data_layouts.csv_images(root / "mini-imagenet", images, "cifar_fs")
    data_layouts.png_pickles(root / "tiered-imagenet", images, "cifar_fs")
    data_layouts.npz(root / "arrays", images, "cifar_fs")
    data_layouts.cifar_python(root / "cifar", images, "cifar_fs")
    for number, alphabet in enumerate(("Armenian", "Greek", "Latin", "Tengwar")):
        part = "evaluation" if alphabet == "Tengwar" else "background"
        for character in range(1, 7):
            folder = root / "omniglot" / f"images_{part}" / alphabet / f"character{character:02d}"
            folder.mkdir(parents=True)
            rng = np.random.default_rng((number, character))
            for each in range(16):
                Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{each:02d}.png")


def small_config(path: Path, seed: int = 0):
    """conv4 with 16 channels on the images, a few steps."""
    config = folder.get_config("conv4,1shot")
    config.seed = seed
    config.data.update({"path": str(path), "image_size": 0, "resize": 0, "crop": 0})
    config.data.update({"mean": (0.5,), "std": (0.5,)})
    config.backbone.width = 0.25
    config.pretrain.update({"steps": 60, "batch_size": 32, "lr": 0.1, "val_every": 30, "val_tasks": 50})
    config.pretrain.augment.resized_crop = 0
    config.meta.update({"steps": 8, "val_every": 4, "val_tasks": 50, "tasks_per_step": 2})
    config.inner.lr = 0.3
    config.evaluate.num_tasks = 100
    config.runtime.update({"log_every": 2, "checkpoint_every": 200})
    return config


def make(root: Path) -> None:
    """A folder for the pages: the programs, the images, runs/mine and runs/other, trained on them, and runs/demo."""
    for name in (
        "train.py",
        "evaluate.py",
        "configs",
        "examples",
        "Makefile",
        "setup.cfg",
        "setup.py",
        "pyproject.toml",
    ):
        (root / name).symlink_to(ROOT / name)
    write_images(root)
    write_copies(root)
    train(tiny_config(), str(root / "runs" / "demo" / "1shot"))
    shutil.copytree(root / "runs" / "demo" / "1shot", root / "runs" / "demo" / "5shot")
    train(small_config(root / "D"), str(root / "runs" / "mine"))
    shutil.copytree(root / "runs" / "mine", root / "runs" / "other")


def execute(command: str, *, in_full: bool = False) -> None:
    """Runs one command in the current folder and raises unless it ends with status 0.

    Python programs run in this process, which has JAX imported; training, unless in full, with --dry_run in a workdir
    of its own. Of `make` it is checked that it knows what it is asked for.
    """
    assignments = re.match(r"(?:\w+=\S* )*", command)[0]
    words = shlex.split(command[len(assignments) :])
    for name, value in (word.split("=", 1) for word in assignments.split()):
        os.environ[name] = value
    if words[0] == "mtl-jax":
        words = ["python", "-m", "mtl_jax", *words[1:]]
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    assert words[0].removesuffix("3") == "python", f"{command}: mark the block with what it needs"
    program, arguments = (_module(words[2]), words[3:]) if words[1] == "-m" else (Path(words[1]), words[2:])
    if program.name == "train.py" and not in_full:
        others = [word for word in arguments if not word.startswith("--workdir=") and word != "--dry_run"]
        arguments = [*others, "--dry_run", "--workdir=dry"]  # a flag that is given twice is refused
    _run_python(program, arguments, command)


def _module(name: str) -> Path:
    file = Path(find_spec(name).origin)
    return file.with_name("__main__.py") if file.name == "__init__.py" else file


def _run_python(program: Path, arguments: list[str], command: str) -> None:
    before = sys.argv
    sys.argv = [str(program), *arguments]
    try:
        with warnings.catch_warnings():  # ml_collections loads a config as Python 3.12 will not
            warnings.simplefilter("ignore", DeprecationWarning)
            runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{command}: status {end.code}"
    finally:
        sys.argv = before

"""Writes test tasks to a file that programs in any framework can replay, or shows such a file.

    python -m mtl_jax.frozen_episodes make --workdir=runs/glyphs --output=episodes.json.gz
    python -m mtl_jax.frozen_episodes show episodes.json.gz
    python evaluate.py --workdir=runs/glyphs --episodes=episodes.json.gz

evaluate.py takes the split, way, shot, query and number of tasks from the file, and refuses contradicting flags.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax import config
from mtl_jax.config import build, run_data
from mtl_jax.errors import DataError
from mtl_jax.frozen_episodes import file
from mtl_jax.frozen_episodes.file import Frozen
from mtl_jax.launch import environment, program
from mtl_jax.words import counted
from mtl_jax.workdir import Workdir

DEFAULTS = {"num_tasks": 600, "way": 5, "shot": 1, "query": 15, "seed": 1}


def parser() -> program.Parser:
    """The parser of both commands."""
    root = program.Parser("python -m mtl_jax.frozen_episodes", description=f"{__doc__}\n{file.__doc__}")
    commands = root.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="draw test tasks and write them to a file")
    make.add_argument("--output", type=Path, required=True, help="the file, .json or .json.gz")
    make.add_argument("--workdir", type=Path, help="run whose data and protocol to use; flags change the protocol")
    make.add_argument("--data", help="or a data set: glyphs, omniglot, miniimagenet, cub, ..., folder, tfds:NAME")
    make.add_argument("--path", default="", help="where the data set is")
    make.add_argument("--split", help="train, val or test (test)")
    for name, default in DEFAULTS.items():
        make.add_argument(f"--{name}", type=int, help=f"default without --workdir: {default}")
    show = commands.add_parser("show", help="describe a file")
    show.add_argument("file", metavar="FILE", type=Path, help="what `make` wrote")
    show.add_argument("--task", type=int, help="list the images of this task, counted from 0")
    return root


def make(flags: argparse.Namespace) -> Frozen:
    """Draws the tasks and writes the file."""
    if (flags.workdir is None) == (flags.data is None):
        raise DataError("give either --workdir=DIR or --data=NAME [--path=PATH]")
    settings = _settings(flags)
    for name in (*DEFAULTS, "split"):
        if getattr(flags, name) is not None:
            settings.evaluate[name] = getattr(flags, name)
    config.validate(settings)
    environment.check_devices()
    dataset, protocol = build.dataset(settings.data), build.protocol(settings)
    if flags.workdir:
        run_data.check(dataset, Workdir(flags.workdir), settings.evaluate.split)
    split = dataset.split(settings.evaluate.split)
    tasks = file.choose_tasks(dataset, split, protocol, None)
    facts: dict[str, Any] = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "seed": protocol.seed}
    frozen = file.freeze(split, tasks, **facts)
    file.write(flags.output, frozen)
    return frozen


def _settings(flags: argparse.Namespace) -> ConfigDict:
    if flags.workdir:
        return config.read(Workdir(flags.workdir).config)
    from mtl_jax.configs import default

    settings = default.get_config()
    settings.data.update({"name": flags.data, "path": flags.path})
    # Digests are of images before resizing, so the stored size does not matter: a small one is prepared sooner.
    settings.data.image_size = 0 if flags.data in ("glyphs", "omniglot") else 84
    return settings


def describe(frozen: Frozen) -> str:
    """A file of episodes in three lines."""
    facts, classes = frozen.facts, Counter(frozen.class_names)
    sizes = f"{facts['way']}-way {facts['shot']}-shot, {counted(facts['query'], 'query')} a class"
    origin = f"{facts['split']} split of {facts['dataset']} (fingerprint {facts['fingerprint'][:12]})"
    return (
        f"{counted(facts['num_tasks'], 'task')}, {sizes}, of the {origin}, seed {facts['seed']}\n"
        f"{counted(len(frozen.digests), 'image')} of {counted(len(classes), 'class')}\nsha256 {facts['sha256']}"
    )


def describe_task(frozen: Frozen, number: int) -> str:
    """The images of one task, one line per class."""
    if not 0 <= number < frozen.facts["num_tasks"]:
        raise DataError(f"--task={number}: the file has tasks 0 to {frozen.facts['num_tasks'] - 1}")
    lines = []
    for support, query in zip(*(part[number] for part in frozen.tasks), strict=True):
        named = [" ".join(frozen.file_names[i] or frozen.digests[i] for i in part) for part in (support, query)]
        lines.append(f"{frozen.class_names[support[0]]}: support {named[0]}; query {named[1]}")
    return "\n".join(lines)


def run(argv: Sequence[str]) -> int:
    """The program."""
    flags = parser().parse_args(argv[1:])
    frozen = make(flags) if flags.command == "make" else file.read(flags.file)
    print(describe(frozen))
    if getattr(flags, "task", None) is not None:
        print(describe_task(frozen, flags.task))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

"""The program `python -m mtl_jax.frozen_episodes`; see there."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mtl_jax import config, workdir
from mtl_jax.config import build, run_data
from mtl_jax.errors import DataError
from mtl_jax.frozen_episodes import file
from mtl_jax.frozen_episodes.file import Frozen, choose_tasks
from mtl_jax.launch import program

SIZES = ("num_tasks", "way", "shot", "query", "seed")


def parser() -> program.Parser:
    """The parser of both commands."""
    root = program.Parser(
        "python -m mtl_jax.frozen_episodes", description=file.__doc__)  # fmt: skip
    commands = root.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="draw test tasks and write them into a file")
    make.add_argument("--output", type=Path, required=True, help="the file, .json or .json.gz")
    make.add_argument("--workdir", type=Path, help="a run: its data, and its protocol where no flag says otherwise")
    make.add_argument("--data", help="or a data set: glyphs, omniglot, miniimagenet, cub, ..., folder, tfds:NAME")
    make.add_argument("--path", default="", help="where the data set is")
    make.add_argument("--split", help="train, val or test (test)")
    for name, default in zip(SIZES, (600, 5, 1, 15, 1), strict=True):
        make.add_argument(f"--{name}", type=int, help=f"without a workdir {default}")
    show = commands.add_parser("show", help="say what is in a file")
    show.add_argument("file", type=Path)
    show.add_argument("--task", type=int, help="list the images of a task, counted from 0")
    return root


def make(flags: argparse.Namespace) -> Frozen:
    """Draws tasks as the flags say, and writes the file."""
    if (flags.workdir is None) == (flags.data is None):
        raise DataError("give either --workdir=DIR or --data=NAME [--path=PATH]")
    settings = _settings(flags)
    for name in (*SIZES, "split"):
        if getattr(flags, name) is not None:
            settings.evaluate[name] = getattr(flags, name)
    config.validate(settings)
    dataset, protocol = build.dataset(settings.data), build.protocol(settings)
    if flags.workdir:
        run_data.check(dataset, workdir.Workdir(flags.workdir), settings.evaluate.split)
    split = dataset.split(settings.evaluate.split)
    tasks = choose_tasks(dataset, split, protocol, None)
    facts = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "seed": protocol.seed}
    frozen = file.freeze(split, tasks, **facts)
    file.write(flags.output, frozen)
    return frozen


def _settings(flags: argparse.Namespace) -> ConfigDict:
    if flags.workdir:
        return config.read(workdir.Workdir(flags.workdir).config)
    from mtl_jax.configs import default

    settings = default.get_config()
    settings.data.update({"name": flags.data, "path": flags.path})
    # Digests are of the images before resizing: any stored size does, and a small one is prepared sooner.
    settings.data.image_size = 0 if flags.data in ("glyphs", "omniglot") else 84
    return settings


def describe(frozen: Frozen) -> str:
    """A file of episodes in a few lines."""
    facts, classes = frozen.facts, Counter(frozen.class_names)
    sizes = f"{facts['way']}-way {facts['shot']}-shot, {facts['query']} queries a class"
    origin = f"{facts['split']} split of {facts['dataset']} (fingerprint {facts['fingerprint'][:12]})"
    return (
        f"{facts['num_tasks']} tasks, {sizes}, of the {origin}, seed {facts['seed']}\n"
        f"{len(frozen.digests)} images of {len(classes)} classes\nsha256 {facts['sha256']}"
    )


def describe_task(frozen: Frozen, number: int) -> str:
    """The images of one task, a line a class."""
    if not 0 <= number < frozen.facts["num_tasks"]:
        raise DataError(f"--task={number}: the file has tasks 0 to {frozen.facts['num_tasks'] - 1}")
    lines = []
    for support, query in zip(*(part[number] for part in frozen.tasks), strict=True):
        named = [" ".join(frozen.file_names[i] or frozen.digests[i] for i in part) for part in (support, query)]
        lines.append(f"{frozen.class_names[support[0]]}: support {named[0]}; query {named[1]}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command."""

    def run(argv: Sequence[str]) -> int:
        flags = parser().parse_args(argv[1:])
        frozen = make(flags) if flags.command == "make" else file.read(flags.file)
        print(describe(frozen))
        if getattr(flags, "task", None) is not None:
            print(describe_task(frozen, flags.task))
        return 0

    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

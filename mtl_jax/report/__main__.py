"""Writes the report of a run, or a comparison of several on the same tasks, as one HTML page and its pictures.

    python -m mtl_jax.report runs/glyphs
    python -m mtl_jax.report runs/a runs/b --episodes=episodes.json.gz --output=a_and_b

For one workdir: learning curves, accuracy by inner step and over tasks, classes, confusions, episodes, features, costs,
config and commands, in WORKDIR/report/index.html. For several: their accuracies, paired differences and scatter plots
on the same tasks, in comparison/index.html. Pages work offline.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax import workdir
from mtl_jax.config import own_backbone
from mtl_jax.errors import ConfigError
from mtl_jax.launch import environment, program
from mtl_jax.report import compare, report

CHANGES = ("split", "num_tasks", "way", "shot", "query", "seed")


def parser() -> program.Parser:
    """The program's parser."""
    root = program.Parser("python -m mtl_jax.report", description=__doc__)
    root.add_argument("workdirs", nargs="+", help="one run, or several to compare")
    root.add_argument("--output", type=Path, help="folder of the page and its pictures")
    root.add_argument("--episodes", type=Path, help="test on the tasks of python -m mtl_jax.frozen_episodes make")
    root.add_argument("--data", default="", help="NAME:PATH: test on other data than the runs'")
    root.add_argument("--split", help="train, val or test")
    for name in CHANGES[1:]:
        root.add_argument(f"--{name}", type=int, help=f"instead of evaluate.{name} of the run's config")
    root.add_argument("--backbone", help=own_backbone.HELP)
    return root


def run(argv: Sequence[str]) -> int:
    """The program."""
    flags = parser().parse_args(argv[1:])
    if flags.backbone:
        own_backbone.load(flags.backbone)
    changes = {name: getattr(flags, name) for name in CHANGES if getattr(flags, name) is not None}
    paths = [path.rstrip("/") for path in flags.workdirs]
    several = len(paths) > 1
    if flags.data and not (several or flags.output):
        raise ConfigError("--data needs --output=FOLDER: WORKDIR/report is for the run's own data")
    environment.check_devices()
    output = flags.output or (Path("comparison") if several else Path(paths[0]) / "report")
    if several:
        print(compare(paths, output, changes, flags.episodes, flags.data))
    else:
        if workdir.Workdir(paths[0]).config.exists():  # or a mistaken name would make a workdir
            workdir.record_command(paths[0], ["mtl_jax/report/__main__.py", *argv[1:]], environment.device_facts())
        print(report(paths[0], output, changes, flags.episodes, flags.data))
    print(f"page: {output / 'index.html'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

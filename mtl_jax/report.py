"""The report of a run, or the comparison of several on the same tasks, as one HTML page and its pictures.

    python -m mtl_jax.report runs/glyphs
    python -m mtl_jax.report runs/a runs/b --episodes=episodes.json.gz --output=a_and_b

Of one workdir: learning curves, accuracy by inner step and over tasks, classes, confusions, episodes, features, costs,
config and commands, in WORKDIR/report/index.html. Of several: paired differences on the same frozen episodes, wins and
losses, scatter pictures, in comparison/index.html. Pages need no network.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_jax import cli, frozen_episodes, workdir
from mtl_jax.errors import ConfigError, MtlError

CHANGES = ("split", "num_tasks", "way", "shot", "query", "seed")


def parser() -> cli.Parser:
    """The program's parser."""
    root = cli.Parser("python -m mtl_jax.report", description=__doc__)
    root.add_argument("workdirs", nargs="+", help="one run, or several to compare")
    root.add_argument("--output", type=Path, help="folder of the page and its pictures")
    root.add_argument("--episodes", type=Path, help="test on the tasks of python -m mtl_jax.frozen_episodes make")
    root.add_argument("--data", default="", help="NAME:PATH: test on other data than the runs'")
    root.add_argument("--split", help="train, val or test")
    for name in CHANGES[1:]:
        root.add_argument(f"--{name}", type=int, help=f"instead of evaluate.{name} of the run's config")
    return root


def report(path: str, output: Path, changes: dict[str, Any], episodes: Path | None = None, data: str = "") -> str:
    """Writes the report of one run; returns the line that sums it up.

    Raises:
      MtlError: what the user can mend.
    """
    from mtl_jax import report_data, report_page

    frozen = frozen_episodes.read(episodes) if episodes else None
    settings = report_data.settings_of(path, changes, frozen, data)
    _make(output)
    tested = report_data.measure(settings, path, frozen, other_data=bool(data))
    built = report_page.run_page(tested)
    _write(output, built)
    return f"{built.headline}, {built.facts}"


def compare(
    paths: Sequence[str], output: Path, changes: dict[str, Any], episodes: Path | None = None, data: str = ""
) -> str:
    """Writes the comparison of several runs on the same tasks; returns it as lines of text.

    Without a file of episodes the tasks are those of the first run's protocol, found again in the others' data.

    Raises:
      ConfigError: their protocols differ. MtlError: what else the user can mend.
    """
    from mtl_jax import comparison, comparison_page, report_data

    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError(f"{' '.join(paths)}: the same run twice; give different ones")
    frozen = frozen_episodes.read(episodes) if episodes else None
    settings = {path: report_data.settings_of(path, changes, frozen, data) for path in paths}
    comparison.check_same({path: report_data.planned_facts(settings[path]) for path in paths})
    _make(output)
    found = {}
    for path in paths:
        found[path] = report_data.measure(settings[path], path, frozen, other_data=bool(data))
        frozen = frozen or report_data.freeze(found[path])
    facts = {path: tested.facts for path, tested in found.items()}
    comparison.check_same(facts)
    _write(output, comparison_page.comparison_page(found))
    return comparison.describe({path: tested.accuracies for path, tested in found.items()}, facts)


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtlError(f"{output}: cannot be made: {error.strerror}; give another --output") from error


def _write(output: Path, built: Any) -> None:
    try:
        for picture in built.pictures:
            workdir.write_bytes_atomic(output / f"{picture.name}.png", picture.light)
        workdir.write_bytes_atomic(output / "index.html", built.html.encode())
    except OSError as error:
        raise MtlError(f"{output}: cannot be written: {error.strerror}; give another --output") from error


def run(argv: Sequence[str]) -> int:
    """The program."""
    flags = parser().parse_args(argv[1:])
    changes = {name: getattr(flags, name) for name in CHANGES if getattr(flags, name) is not None}
    paths = [path.rstrip("/") for path in flags.workdirs]
    several = len(paths) > 1
    if flags.data and not (several or flags.output):
        raise ConfigError("--data needs --output=FOLDER: WORKDIR/report is for the run's own data")
    output = flags.output or (Path("comparison") if several else Path(paths[0]) / "report")
    if several:
        print(compare(paths, output, changes, flags.episodes, flags.data))
    else:
        if workdir.Workdir(paths[0]).config.exists():  # or a mistaken name would make a workdir
            workdir.record_command(paths[0], ["mtl_jax/report.py", *argv[1:]])
        print(report(paths[0], output, changes, flags.episodes, flags.data))
    print(f"page: {output / 'index.html'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return cli.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

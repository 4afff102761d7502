"""Writes the page of one run, or the comparison of several, into a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_jax import frozen_episodes, workdir
from mtl_jax.errors import ConfigError, MtlError


def report(path: str, output: Path, changes: dict[str, Any], episodes: Path | None = None, data: str = "") -> str:
    """Writes the report of one run; returns the line that sums it up.

    Raises:
      MtlError: what the user can mend.
    """
    from mtl_jax.report import measure, page

    frozen = frozen_episodes.read(episodes) if episodes else None
    settings = measure.settings_of(path, changes, frozen, data)
    _make(output)
    tested = measure.measure(settings, path, frozen, other_data=bool(data))
    built = page.run_page(tested)
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
    from mtl_jax.report import comparison, comparison_page, measure

    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError(f"{' '.join(paths)}: the same run twice; give different ones")
    frozen = frozen_episodes.read(episodes) if episodes else None
    settings = {path: measure.settings_of(path, changes, frozen, data) for path in paths}
    comparison.check_same({path: measure.planned_facts(settings[path]) for path in paths})
    _make(output)
    found = {}
    for path in paths:
        found[path] = measure.measure(settings[path], path, frozen, other_data=bool(data))
        frozen = frozen or measure.freeze(found[path])
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

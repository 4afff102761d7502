"""The report of one run: which figures and pictures stand on its page, in which order."""

import functools
import importlib.metadata
import json
import platform
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax import config, frozen_episodes
from mtl_jax.data import pictures
from mtl_jax.errors import MtlError
from mtl_jax.evaluate.run import protocol_line
from mtl_jax.launch import environment
from mtl_jax.metrics import in_percent, mean_interval
from mtl_jax.report import html, measure, plots
from mtl_jax.report.html import Album, Page, Section
from mtl_jax.report.measure import Tested
from mtl_jax.words import counted
from mtl_jax.workdir.console import read_mined

PACKAGES = ("mtl_jax", "jax", "jaxlib", "flax", "optax", "numpy", "matplotlib", "pillow")
PAIR_IMAGES = 4
_TRAINING = re.compile(r"python (-m mtl_jax\.train|train\.py) ")  # of the commands in a workdir


def report(path: str, output: Path, changes: dict[str, Any], episodes: Path | None = None, data: str = "") -> str:
    """Writes the report of one run and returns the line that sums it up.

    Args:
      path: the workdir.
      output: the folder of the page and its pictures.
      changes: of the run's `evaluate` group.
      episodes: a file of frozen episodes to test on.
      data: NAME:PATH of other data than the run's.

    Raises:
      MtlError: what the user can mend.
    """
    frozen = frozen_episodes.read(episodes) if episodes else None
    settings = measure.settings_of(path, changes, frozen, data)
    html.make_folder(output)
    page = run_page(measure.measure(settings, path, frozen, other_data=bool(data)))
    html.write(page, output)
    return f"{page.headline}, {page.facts}"


def run_page(tested: Tested) -> Page:
    """The report of one run."""
    album = Album()
    headline = f"{in_percent(*mean_interval(tested.accuracies, tested.facts['distinct_tasks']))} %"
    facts = protocol_line(tested.facts)
    sections = [
        Section("Warnings", "".join(map(html.paragraph, measure.warnings(tested.place)))),
        Section("Learning curves", _learning_curves(tested, album)),
        Section("Inner loop", _inner_loop(tested, album)),
        Section("Tasks", _tasks(tested, album)),
        Section("Classes", _classes(tested, album)),
        Section("Hardest pairs", _pairs(tested, album)),
        Section("Episodes", _episodes(tested, album)),
        Section("Features", _features(tested, album)),
        Section("Mined classes", _mined(tested, album)),
        Section("Time and memory", _costs(tested)),
        Section("How to get this again", _origin(tested)),
    ]
    whole = html.page(f"Report of {tested.place.path.name}", headline, facts, sections)
    return Page(whole, album.pictures, headline, facts)


def _learning_curves(tested: Tested, album: Album) -> str:
    path = tested.place.metrics
    try:
        found = plots.curves(path)
    except MtlError as error:
        return html.paragraph(str(error))
    parts = []
    for phase, title in plots.PHASES.items():
        if any(name.startswith(f"{phase}/") for name in found):
            drawn = plots.both_themes(functools.partial(plots.learning_curves, path, [phase]))
            parts.append(album.add(f"{phase}_curves", f"accuracy and loss of {title} over its steps", drawn))
    return html.side_by_side(parts) if parts else ""


def _inner_loop(tested: Tested, album: Album) -> str:
    if tested.facts["inner_steps"] is None:
        return html.paragraph(f"The base-learner, {tested.facts['base_learner']}, has no inner steps.")
    by_step = [mean_interval(column, tested.facts["distinct_tasks"]) for column in tested.correct.mean(-1).T]
    mean, ci95 = np.array(by_step, float).T
    best = int(mean.argmax())
    drawn = plots.both_themes(lambda: plots.accuracy_by_step(mean, ci95))
    said = (
        f"{100 * mean[0]:.2f} % before the first step, {100 * mean[-1]:.2f} % after the last; the highest, "
        f"{100 * mean[best]:.2f} %, after {best} (of these test tasks: choose the number of steps on validation tasks)."
    )
    alt = f"accuracy from {100 * mean[0]:.1f} % to {100 * mean[-1]:.1f} %"
    return html.paragraph(said) + album.add("accuracy_by_step", alt, drawn)


def _tasks(tested: Tested, album: Album) -> str:
    accuracies = tested.accuracies
    worst, median, best = np.quantile(accuracies, (0, 0.5, 1))
    said = (
        f"Worst {100 * worst:.1f} %, median {100 * median:.1f} %, best {100 * best:.1f} %; standard deviation "
        f"{100 * accuracies.std():.1f} points."
    )
    step = 1 / (tested.protocol.way * tested.protocol.query)
    drawn = plots.both_themes(lambda: plots.histogram(accuracies, step))
    return html.paragraph(said) + album.add("tasks", "histogram of accuracy over tasks", drawn)


def _classes(tested: Tested, album: Album) -> str:
    ranked = measure.ranked_classes(tested)
    names = measure.class_names(tested, [c for c, _, _ in ranked])
    values = [accuracy for _, accuracy, _ in ranked]
    bars = plots.both_themes(lambda: plots.class_bars(names, values))
    rows = [(name, f"{100 * a:.1f}", n) for name, (_, a, n) in zip(names, ranked, strict=True)]
    seen = np.sort([c for c, _, _ in ranked])
    matrix = measure.confusion(tested)[np.ix_(seen, seen)]
    labels = measure.class_names(tested, seen)
    heat = plots.both_themes(lambda: plots.confusion(matrix, labels))
    said = (
        "Rows are true classes, columns are answers; blank where the two never met in a task. The diagonal is left out."
    )
    return (
        album.add("classes", "accuracy of each class", bars)
        + html.folded(f"All {len(rows)} classes", html.table(("class", "accuracy, %", "queries"), rows))
        + html.paragraph(said)
        + album.add("confusion", "confusion matrix over classes", heat)
    )


def _pairs(tested: Tested, album: Album) -> str:
    pairs = measure.hardest_pairs(tested)
    if not pairs:
        return ""
    names = [measure.class_names(tested, (pair.first, pair.second)) for pair in pairs]
    rows = [(*both, f"{100 * p.rate:.1f}", p.queries) for both, p in zip(names, pairs, strict=True)]
    firsts = [_some_images(tested, pair.first) for pair in pairs]
    seconds = [_some_images(tested, pair.second) for pair in pairs]
    drawn = _both_themes(
        lambda theme: pictures.beside(
            *(pictures.grid(side, theme=theme, largest=pictures.LARGEST) for side in (firsts, seconds))
        )
    )
    header = ("class", "taken for (either way)", "% of queries", "queries of tasks with both")
    alt = "images of the classes that are most often taken for each other"
    return html.table(header, rows) + album.add("hardest_pairs", alt, drawn)


def _some_images(tested: Tested, c: int) -> pictures.Row:
    table = tested.split.table()
    positions = table.indices[c, : min(PAIR_IMAGES, table.counts[c])]
    return tested.split.class_names[c], [*map(pictures.Tile, tested.split.images[positions])]


def _both_themes(draw: Callable[[pictures.Theme], Image.Image]) -> tuple[bytes, bytes]:
    return pictures.png(draw(pictures.LIGHT)), pictures.png(draw(pictures.DARK))


def _episodes(tested: Tested, album: Album) -> str:
    best, worst = measure.extreme_tasks(tested)
    parts = []
    for kind, numbers in (("best", best), ("worst", worst)):
        for rank, number in enumerate(numbers, 1):
            said = f"Task {number}, one of the {kind}: {100 * tested.accuracies[number]:.1f} %"
            drawn = _both_themes(functools.partial(_draw_episode, tested, number))
            parts.append(html.paragraph(said) + html.wide(album.add(f"{kind}_{rank}", said, drawn)))
    return "".join(parts)


def _draw_episode(tested: Tested, number: int, theme: pictures.Theme) -> Image.Image:
    support, query = (part[number] for part in tested.tasks)
    return pictures.task_episode(tested.split, support, query, tested.answers[number, -1], theme=theme)


def _features(tested: Tested, album: Album) -> str:
    points, classes, share = measure.feature_map(tested)
    names = {int(c): tested.split.class_names[c] for c in np.unique(classes)}
    said = f"Up to {measure.MAP_IMAGES} images of {counted(len(names), 'class')}, from the hardest to the easiest."
    drawn = plots.both_themes(lambda: plots.feature_map(points, classes, names, share))
    alt = "images by the first two principal components of their features"
    return html.paragraph(said) + album.add("features", alt, drawn)


def _mined(tested: Tested, album: Album) -> str:
    by_step = read_mined(tested.place.log)
    if not any(by_step.values()):
        return ""
    drawn = plots.both_themes(lambda: plots.mined(by_step))
    return album.add("mined", "failure classes that were mined, by step", drawn)


def _costs(tested: Tested) -> str:
    rows = []
    for phase, costs in measure.costs(tested.place.timing).items():
        memory = "; ".join(f"{value:,.0f} MB ({name.removesuffix('_memory_mb').replace('_', ' ')})"
                           for name, value in costs.items() if name != "seconds")  # fmt: skip
        seconds = costs.get("seconds", 0)
        duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
        rows.append((plots.PHASES.get(phase, phase), duration, memory or "not recorded"))
    return html.table(("phase", "time", "peak memory"), rows) if rows else ""


def _origin(tested: Tested) -> str:
    path = tested.place.path
    started = measure.commands(tested.place)
    ran = [f"{record['command']}   # {record['time']}" for record in started]
    f = tested.facts
    sizes = [f"--{name}={f[name]}" for name in ("split", "num_tasks", "way", "shot")]
    is_other = f["trained_on"] and f["trained_on"][0]["fingerprint"] != f["fingerprint"]
    other = [f"--data={tested.settings.data.name}:{tested.settings.data.path}"] if is_other else []
    again = shlex.join(["python", "evaluate.py", f"--workdir={path}", *other, *sizes])
    trained = ", ".join(f"{one['dataset']} {one['fingerprint']}" for one in f["trained_on"] or ()) or "not known"
    trained_with = dict.fromkeys(
        environment.describe_devices(record)
        for record in started if "device" in record and _TRAINING.match(record["command"])
    )  # fmt: skip
    rows = [
        ("data set", f"{tested.dataset.name}, {tested.dataset.format}"), ("data fingerprint", f["fingerprint"]),
        ("trained on", trained), ("trained with", ", ".join(trained_with) or "not known"),
        ("tested with", environment.describe_devices(environment.device_facts())),
        ("episodes (SHA-256)", f["episodes"]), ("Python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in PACKAGES),
    ]  # fmt: skip
    settings = config.to_json(tested.settings)
    parts = [
        html.table(("what", "value"), rows),
        html.code("\n".join([*ran, again])),
        html.folded("Versions at each start", html.code("\n".join(map(json.dumps, started)))) if started else "",
        html.folded("Config", html.table(("key", "value"), [(k, json.dumps(v)) for k, v in html.dotted(settings)])),
    ]
    return "".join(parts)

"""The report of one run: which numbers and pictures its page has, in which order."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax import frozen_episodes
from mtl_jax.data import pictures
from mtl_jax.errors import MtlError
from mtl_jax.evaluate.run import protocol_line
from mtl_jax.metrics import describe_chance, in_percent, mean_interval, paired_difference
from mtl_jax.report import confusion, history, html, measure, origin, plots
from mtl_jax.report.html import Album, Page, Section
from mtl_jax.report.measure import Tested
from mtl_jax.words import counted
from mtl_jax.workdir.console import read_mined

PAIR_IMAGES = 4


def report(path: str, output: Path, changes: dict[str, Any], episodes: Path | None = None, data: str = "") -> str:
    """Writes the report of one run and returns a line with its result.

    Args:
      path: the workdir.
      output: the folder of the page and its pictures.
      changes: of the run's `evaluate` group.
      episodes: a file of frozen episodes to test on.
      data: NAME:PATH of other data than the run's.

    Raises:
      MtlError: a problem that the user can fix.
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
    distinct = tested.facts["distinct_tasks"]
    headline = (
        f"{in_percent(*mean_interval(tested.accuracies, distinct))} % ({describe_chance(tested.chance)})"
    )  # fmt: skip
    facts = protocol_line(tested.facts)
    sections = [
        Section("Warnings", "".join(map(html.warning, history.warnings(tested.place)))),
        Section("Learning curves", _learning_curves(tested, album)),
        Section("Inner loop", _inner_loop(tested, album)),
        Section("Tasks", _tasks(tested, album)),
        Section("Classes", _classes(tested, album)),
        Section("Hardest pairs", _pairs(tested, album)),
        Section("Episodes", _episodes(tested, album)),
        Section("Features", _features(tested, album)),
        Section("Mined classes", _mined(tested, album)),
        Section("Time and memory", origin.costs(tested)),
        Section("How to get this again", origin.origin(tested)),
    ]
    title = f"Report of {tested.place.path.name}: {tested.backbone} on {tested.facts['dataset']}"
    lines = [facts, *_against_baseline(tested)]
    whole = html.page(title, headline, lines, sections, style=confusion.STYLE, script=confusion.SCRIPT)
    return Page(whole, album.pictures, headline, facts)


def _against_baseline(tested: Tested) -> list[str]:
    if tested.baseline_accuracies is None:
        return []
    distinct = tested.facts["distinct_tasks"]
    alone = in_percent(*mean_interval(tested.baseline_accuracies, distinct))
    gain = in_percent(*paired_difference(tested.accuracies, tested.baseline_accuracies, distinct), "+")
    return [
        f"Pre-training only: {alone} % on the same tasks; meta-training: {gain} points. Both use the inner loop above; "
        "python -m mtl_jax.ablation tunes it for each."
    ]


def _learning_curves(tested: Tested, album: Album) -> str:
    path = tested.place.metrics
    try:
        found = history.read(path)
    except MtlError as error:
        return html.paragraph(str(error))
    parts = []
    levels = {"chance": 1 / tested.settings.meta.way, "baseline": history.validation_before(tested.settings, found)}
    for phase, title in history.PHASES.items():
        if any(name.startswith(f"{phase}/") for name in found):
            drawn = plots.both_themes(functools.partial(plots.learning_curves, path, [phase], **levels))
            parts.append(album.add(f"{phase}_curves", f"accuracy and loss of {title} over its steps", drawn))
    return html.side_by_side(parts) if parts else ""


def _inner_loop(tested: Tested, album: Album) -> str:
    if tested.facts["inner_steps"] is None:
        return html.paragraph(f"The base-learner, {tested.facts['base_learner']}, has no inner steps.")
    by_step = [mean_interval(column, tested.facts["distinct_tasks"]) for column in tested.correct.mean(-1).T]
    mean, ci95 = np.array(by_step, float).T
    best = int(mean.argmax())
    before = None if tested.baseline is None else tested.baseline_correct.mean((0, 2))
    drawn = plots.both_themes(
        lambda: plots.accuracy_by_step(mean, ci95, chance=tested.chance, baseline=before)
    )  # fmt: skip
    said = (
        f"{100 * mean[0]:.2f} % before the first step, {100 * mean[-1]:.2f} % after the last. Highest: "
        f"{100 * mean[best]:.2f} %, after {counted(best, 'step')}, but choose the number of steps on validation tasks, "
        "not on these test tasks."
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
    levels = {"chance": tested.chance, "baseline": tested.baseline_accuracies}
    drawn = plots.both_themes(lambda: plots.histogram(accuracies, step, **levels))
    return html.paragraph(said) + album.add("tasks", "histogram of accuracy over tasks", drawn)


def _classes(tested: Tested, album: Album) -> str:
    ranked = measure.ranked_classes(tested)
    names = measure.class_names(tested, [c for c, _, _ in ranked])
    values = [accuracy for _, accuracy, _ in ranked]
    before = None
    if tested.baseline is not None:
        rates = {c: rate for c, rate, _ in measure.ranked_classes(tested, tested.baseline)}
        before = [rates[c] for c, _, _ in ranked]
    levels = {"chance": tested.chance, "baseline": before}
    bars = plots.both_themes(lambda: plots.class_bars(names, values, **levels))
    rows = [(name, f"{100 * a:.1f}", n) for name, (_, a, n) in zip(names, ranked, strict=True)]
    seen = np.ix_(*2 * [np.sort([c for c, _, _ in ranked])])
    matrix = confusion.figure(
        measure.class_counts(tested)[seen], measure.met_counts(tested)[seen],
        measure.class_names(tested, seen[1][0]),
    )  # fmt: skip
    said = "Rows: true class; columns: prediction. Shade: how often a class is taken for another in tasks with both."
    return (
        album.add("classes", "accuracy of each class", bars)
        + html.folded(f"All {len(rows)} classes", html.table(("class", "accuracy, %", "queries"), rows))
        + html.paragraph(said)
        + matrix
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
    header = ("class", "confused with", "% of queries", "queries in tasks with both")
    alt = "images of the classes that are most often taken for each other"
    return html.table(header, rows) + html.scrolling(album.add("hardest_pairs", alt, drawn))


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
            said = f"Task {number}, one of the {kind}: {100 * tested.accuracies[number]:.1f} %{_before(tested, number)}"
            drawn = _both_themes(functools.partial(_draw_episode, tested, number))
            parts.append(html.paragraph(said) + html.wide(album.add(f"{kind}_{rank}", said, drawn)))
    return "".join(parts)


def _before(tested: Tested, number: int) -> str:
    before = tested.baseline_accuracies
    return "" if before is None else f" (pre-training only: {100 * before[number]:.1f} %)"


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

"""The report of one run: which figures and pictures stand on its page, in which order."""

import functools
import importlib.metadata
import json
import platform
import shlex

import numpy as np
from matplotlib.figure import Figure

from mtl_jax import config
from mtl_jax.config import run_data
from mtl_jax.errors import MtlError
from mtl_jax.metrics import describe_tasks, in_percent, mean_interval
from mtl_jax.report import html as page
from mtl_jax.report import measure, plots, run_plots
from mtl_jax.report.album import Album, Page
from mtl_jax.report.html import Section
from mtl_jax.report.measure import Tested

PACKAGES = ("mtl_jax", "jax", "jaxlib", "flax", "optax", "numpy", "matplotlib", "pillow")
PAIR_IMAGES = 4


def run_page(tested: Tested) -> Page:
    """The report of one run."""
    album = Album()
    headline = f"{in_percent(*mean_interval(tested.accuracies, tested.facts['distinct_tasks']))} %"
    facts = _protocol_line(tested)
    sections = [
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
    html = page.page(f"Report of {tested.place.path.name}", headline, facts, sections)
    return Page(html, album.pictures, headline, facts)


def _protocol_line(tested: Tested) -> str:
    f = tested.facts
    return (
        f"{f['split']} split of {run_data.describe(f)}; {f['way']}-way {f['shot']}-shot, "
        f"{describe_tasks(f['num_tasks'], f['distinct_tasks'])}, "
        f"{f['query']} queries a class, {f['inner_steps']} inner steps at {f['inner_lr']}, batch norm: "
        f"{f['batch_norm']}, {f['head']} head, checkpoint {f['checkpoint_step']}, seed {f['seed']}, "
        f"episodes {f['episodes'][:12]}" + "".join(f"; caveat: {caveat}" for caveat in f["caveats"])
    )


def _learning_curves(tested: Tested, album: Album) -> str:
    path = tested.place.metrics
    try:
        found = plots.curves(path)
    except MtlError as error:
        return page.paragraph(str(error))
    parts = []
    for phase, title in plots.PHASES.items():
        if any(name.startswith(f"{phase}/") for name in found):
            draw = functools.partial(plots.learning_curves, path, [phase])
            parts.append(album.add(f"{phase}_curves", f"accuracy and loss of {title} over its steps", draw))
    return page.side_by_side(parts) if parts else ""


def _inner_loop(tested: Tested, album: Album) -> str:
    by_step = [mean_interval(column, tested.facts["distinct_tasks"]) for column in tested.correct.mean(-1).T]
    mean, ci95 = np.array(by_step, float).T
    best = int(mean.argmax())
    drawn = album.add("accuracy_by_step", f"accuracy from {100 * mean[0]:.1f} % to {100 * mean[-1]:.1f} %",
                      lambda: run_plots.accuracy_by_step(mean, ci95))  # fmt: skip
    said = (
        f"{100 * mean[0]:.2f} % before the first step, {100 * mean[-1]:.2f} % after the last; the most, "
        f"{100 * mean[best]:.2f} %, after {best} (of these test tasks: choose the number of steps on validation tasks)."
    )
    return page.paragraph(said) + drawn


def _tasks(tested: Tested, album: Album) -> str:
    accuracies = tested.accuracies
    worst, median, best = np.quantile(accuracies, (0, 0.5, 1))
    said = (
        f"Worst {100 * worst:.1f} %, median {100 * median:.1f} %, best {100 * best:.1f} %; standard deviation "
        f"{100 * accuracies.std():.1f} points."
    )
    step = 1 / (tested.protocol.way * tested.protocol.query)
    drawn = album.add("tasks", "histogram of accuracy over tasks", lambda: run_plots.histogram(accuracies, step))
    return page.paragraph(said) + drawn


def _classes(tested: Tested, album: Album) -> str:
    ranked = measure.ranked_classes(tested)
    names = measure.class_names(tested, [c for c, _, _ in ranked])
    values = [accuracy for _, accuracy, _ in ranked]
    bars = album.add("classes", "accuracy of each class", lambda: run_plots.class_bars(names, values))
    rows = [(name, f"{100 * a:.1f}", n) for name, (_, a, n) in zip(names, ranked, strict=True)]
    seen = np.sort([c for c, _, _ in ranked])
    matrix = measure.confusion(tested)[np.ix_(seen, seen)]
    labels = measure.class_names(tested, seen)
    drawn = album.add("confusion", "confusion matrix over classes", lambda: run_plots.confusion(matrix, labels))
    every = page.folded(f"All {len(rows)} classes", page.table(("class", "accuracy, %", "queries"), rows))
    said = "A row a true class, a column an answer; blank where the two never met in a task. The diagonal is left out."
    return bars + every + page.paragraph(said) + drawn


def _pairs(tested: Tested, album: Album) -> str:
    pairs = measure.hardest_pairs(tested)
    if not pairs:
        return ""
    table, images = tested.split.table(), tested.split.images

    def some(c: int) -> np.ndarray:
        return images[table.indices[c, : min(PAIR_IMAGES, table.counts[c])]]

    drawn = [(tested.split.class_names[p.first], some(p.first), tested.split.class_names[p.second], some(p.second))
             for p in pairs]  # fmt: skip
    rows = [(*measure.class_names(tested, (p.first, p.second)), f"{100 * p.rate:.1f}", p.queries) for p in pairs]
    header = ("class", "taken for (either way)", "% of queries", "queries of tasks with both")
    return page.table(header, rows) + album.add(
        "hardest_pairs", "images of the classes that are most often taken for each other",
        lambda: run_plots.hardest_pairs(drawn),
    )  # fmt: skip


def _episodes(tested: Tested, album: Album) -> str:
    best, worst = measure.extreme_tasks(tested)
    parts = []
    for kind, numbers in (("best", best), ("worst", worst)):
        for place, number in enumerate(numbers, 1):
            said = f"Task {number}, one of the {kind}: {100 * tested.accuracies[number]:.1f} %"
            draw = functools.partial(_draw_episode, tested, number)
            parts.append(page.paragraph(said) + page.wide(album.add(f"{kind}_{place}", said, draw)))
    return "".join(parts)


def _draw_episode(tested: Tested, number: int) -> Figure:
    support, query = (part[number] for part in tested.tasks)
    labels = np.repeat(np.arange(tested.protocol.way), tested.protocol.query)
    names = measure.class_names(tested, tested.split.labels[support[:, 0]])
    images = tested.split.images
    return plots.episode(images[support.ravel()], images[query.ravel()], labels, tested.answers[number, -1], names)


def _features(tested: Tested, album: Album) -> str:
    points, classes, share = measure.feature_map(tested)
    names = {int(c): tested.split.class_names[c] for c in np.unique(classes)}
    said = f"Up to {measure.MAP_IMAGES} images of {len(names)} classes, from the hardest to the easiest."
    return page.paragraph(said) + album.add(
        "features", "images by the first two principal components of their features",
        lambda: run_plots.feature_map(points, classes, names, share),
    )  # fmt: skip


def _mined(tested: Tested, album: Album) -> str:
    found = measure.mined_classes(tested.place.log)
    if not any(found.values()):
        return ""
    return album.add("mined", "failure classes that were mined, by step", lambda: run_plots.mined(found))


def _costs(tested: Tested) -> str:
    rows = []
    for phase, found in measure.costs(tested.place.timing).items():
        memory = "; ".join(f"{value:,.0f} MB ({name.removesuffix('_memory_mb').replace('_', ' ')})"
                           for name, value in found.items() if name != "seconds")  # fmt: skip
        seconds = found.get("seconds", 0)
        duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
        rows.append((plots.PHASES.get(phase, phase), duration, memory or "not recorded"))
    return page.table(("phase", "time", "peak memory"), rows) if rows else ""


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
    rows = [
        ("data set", f"{tested.dataset.name}, {tested.dataset.format}"), ("data fingerprint", f["fingerprint"]),
        ("trained on", trained),
        ("episodes (SHA-256)", f["episodes"]), ("Python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in PACKAGES),
    ]  # fmt: skip
    settings = config.to_json(tested.settings)
    parts = [
        page.table(("what", "value"), rows),
        page.code("\n".join([*ran, again])),
        page.folded("Versions at each start", page.code("\n".join(map(json.dumps, started)))) if started else "",
        page.folded("Config", page.table(("key", "value"), [(k, json.dumps(v)) for k, v in page.dotted(settings)])),
    ]
    return "".join(parts)

"""The comparison of several runs as a page."""

import functools
import itertools
import json
from collections.abc import Mapping

import numpy as np

from mtl_jax import config
from mtl_jax.metrics import describe_tasks, in_percent, mean_interval
from mtl_jax.report import comparison, run_plots
from mtl_jax.report import html as page
from mtl_jax.report.album import Album, Page
from mtl_jax.report.html import Section
from mtl_jax.report.measure import Tested


def comparison_page(found: Mapping[str, Tested]) -> Page:
    """The comparison of runs that were tested on the same tasks."""
    album = Album()
    accuracies = {name: tested.accuracies for name, tested in found.items()}
    first = next(iter(found.values()))
    step = 1 / (first.protocol.way * first.protocol.query)
    scatters = []
    for number, (a, b) in enumerate(itertools.combinations(accuracies, 2), 1):
        draw = functools.partial(run_plots.scatter, accuracies[a], accuracies[b], (a, b), step)
        scatters.append(album.add(f"scatter_{number}", f"accuracy of each task: {a} against {b}", draw))
    sections = [
        Section("Runs", _runs_table(found)),
        Section("Paired differences", _differences_table(accuracies, first.facts["distinct_tasks"])),
        Section("Task by task", "".join(scatters)),
        Section("Config keys that differ", _config_differences(found)),
    ]
    headline = " · ".join(f"{name}: {100 * values.mean():.2f} %" for name, values in accuracies.items())
    f = first.facts
    facts = (
        f"{describe_tasks(f['num_tasks'], f['distinct_tasks'])}, {f['way']}-way {f['shot']}-shot, "
        f"{f['query']} queries a class, {f['split']} split of {f['dataset']} "
        f"{f['fingerprint']}, batch norm: {f['batch_norm']}, episodes {f['episodes']}"
    )
    return Page(page.page("Comparison of runs", headline, facts, sections), album.pictures, headline, facts)


def _runs_table(found: Mapping[str, Tested]) -> str:
    rows = []
    for name, tested in found.items():
        f = tested.facts
        figure = in_percent(*mean_interval(tested.accuracies, f["distinct_tasks"]))
        loop = f"{f['inner_steps']} steps at {f['inner_lr']}, {f['head']} head"
        trained = ", ".join(one["fingerprint"][:12] for one in f["trained_on"] or ())
        rows.append((name, figure, loop, f["checkpoint_step"], trained))
    table = page.table(("run", "accuracy, %", "inner loop", "checkpoint", "trained on data"), rows)
    caveats = [f"{name}: caveat: {caveat}" for name, tested in found.items() for caveat in tested.facts["caveats"]]
    return table + "".join(map(page.paragraph, caveats))


def _differences_table(accuracies: Mapping[str, np.ndarray], distinct: int) -> str:
    rows = []
    for d in comparison.differences(accuracies, distinct):
        points = in_percent(*d.difference, "+")
        rows.append((f"{d.second} - {d.first}", points, d.wins, d.losses, d.ties))
    note = "Each difference is over the same tasks, so what a task's classes and images do to both cancels."
    header = ("difference", "points", "tasks ahead", "behind", "equal")
    return page.paragraph(note) + page.table(header, rows)


def _config_differences(found: Mapping[str, Tested]) -> str:
    configs = {name: dict(page.dotted(config.to_json(tested.settings))) for name, tested in found.items()}
    keys = sorted(set().union(*configs.values()))
    rows = []
    for key in keys:
        values = [json.dumps(settings.get(key)) for settings in configs.values()]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return page.table(("key", *found), rows) if rows else page.paragraph("none")

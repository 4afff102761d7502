"""Several runs on the same tasks: what they must have in common, their paired differences, and the page of both."""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtl_jax import config, frozen_episodes
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate.run import caveats, inner_loop, shared_protocol_line
from mtl_jax.metrics import Interval, describe_chance, in_percent, mean_interval, paired_difference
from mtl_jax.report import comparison_plots, history, html, measure, plots
from mtl_jax.report.html import Album, Page, Section
from mtl_jax.report.measure import Tested
from mtl_jax.words import counted

# What must agree before two results can be compared. The inner loop, the head and the checkpoint belong to the method.
SAME = ("split", "way", "shot", "query", "num_tasks", "flips", "crops", "crop_area", "batch_norm", "episodes")
ADVICE = {
    "split": "give --split", "way": "give --way", "shot": "give --shot", "num_tasks": "give --num_tasks",
    "query": "give --query", "flips": "set evaluate.flips alike",
    "crops": "set evaluate.crops alike", "crop_area": "set evaluate.crop_area alike",
    "batch_norm": "under 'batch' the queries of a task help each other; train both alike",
    "episodes": "give --episodes=FILE",
}  # fmt: skip


class Difference(NamedTuple):
    """How much better `second` is than `first`, in fractions, over the same tasks; in how many each is ahead."""

    first: str
    second: str
    difference: Interval
    wins: int
    losses: int
    ties: int


def compare(
    paths: Sequence[str], output: Path, changes: dict[str, Any], episodes: Path | None = None, data: str = ""
) -> str:
    """Writes the comparison of several runs on the same tasks; returns it as lines of text.

    Without a file of episodes the tasks are those of the first run's protocol, looked up in the others' data.

    Args:
      paths: the workdirs.
      output, changes, episodes, data: as `page.report` takes them.

    Raises:
      ConfigError: their protocols differ. MtlError: another problem that the user can fix.
    """
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError(f"{' '.join(paths)}: the same run twice; give different ones")
    frozen = frozen_episodes.read(episodes) if episodes else None
    settings = {path: measure.settings_of(path, changes, frozen, data) for path in paths}
    check_same({path: measure.planned_facts(settings[path]) for path in paths})
    html.make_folder(output)
    runs: dict[str, Tested] = {}
    for path in paths:
        runs[path] = measure.measure(settings[path], path, frozen, other_data=bool(data))
        frozen = frozen or measure.freeze(runs[path])
    facts = {path: tested.facts for path, tested in runs.items()}
    check_same(facts)
    html.write(comparison_page(runs), output)
    return describe({path: tested.accuracies for path, tested in runs.items()}, facts)


def check_same(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that runs were tested by one protocol on one list of tasks.

    Args:
      facts: what is reported beside each run's result, by run.

    Raises:
      ConfigError: names the first thing that differs, the runs, and their values.
    """
    (first, its), *others = facts.items()
    for key in SAME:
        for name, theirs in others:
            one, other = its.get(key), theirs.get(key)
            if one != other:
                raise ConfigError(
                    f"{first} and {name} cannot be compared: {key} is {one!r} and {other!r}; {ADVICE[key]}"
                )


def differences(accuracies: Mapping[str, np.ndarray], distinct: int | None = None) -> list[Difference]:
    """The paired differences of all pairs of runs, from the accuracies [T] of each on the same tasks.

    `distinct` of the tasks are distinct, where it is known.
    """
    pairs = []
    for (first, a), (second, b) in itertools.combinations(accuracies.items(), 2):
        # Accuracies are counts of right answers by the same number of queries: closer than that is equal.
        ahead, behind = b > a + 1e-9, b < a - 1e-9
        counts = int(ahead.sum()), int(behind.sum()), int((~ahead & ~behind).sum())
        pairs.append(Difference(first, second, paired_difference(b, a, distinct), *counts))
    return pairs


def describe(accuracies: Mapping[str, np.ndarray], facts: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as lines of text, no result without its protocol."""
    common = next(iter(facts.values()))
    lines = [shared_protocol_line(common)]
    for name, values in accuracies.items():
        own = facts[name]
        figure = in_percent(*mean_interval(values, common["distinct_tasks"]))
        lines.append(
            f"  {name}: {figure} % ({inner_loop(own)}, {own['head']} head, checkpoint {own['checkpoint_step']})"
            f"{caveats(own)}"
        )
    for d in differences(accuracies, common["distinct_tasks"]):
        lines.append(
            f"  {d.second} - {d.first}: {in_percent(*d.difference, '+')} points; "
            f"ahead in {counted(d.wins, 'task')}, behind in {d.losses}, equal in {d.ties}"
        )
    return "\n".join(lines)


def comparison_page(runs: Mapping[str, Tested]) -> Page:
    """The comparison of runs that were tested on the same tasks."""
    album = Album()
    accuracies = {name: tested.accuracies for name, tested in runs.items()}
    first = next(iter(runs.values()))
    step = 1 / (first.protocol.way * first.protocol.query)
    baselines = {name: _mean(tested.baseline_accuracies) for name, tested in runs.items()}
    intervals = [mean_interval(values, first.facts["distinct_tasks"]) for values in accuracies.values()]
    side_by_side = plots.both_themes(
        lambda: comparison_plots.runs(list(runs), intervals, list(baselines.values()), first.chance)
    )
    scatters = []
    for number, (a, b) in enumerate(itertools.combinations(accuracies, 2), 1):
        levels: dict[str, Any] = {"chance": first.chance, "baselines": (baselines[a], baselines[b])}
        draw = functools.partial(comparison_plots.scatter, accuracies[a], accuracies[b], (a, b), step, **levels)
        alt = f"accuracy of each task: {a} against {b}"
        scatters.append(album.add(f"scatter_{number}", alt, plots.both_themes(draw)))
    sections = [
        Section("Warnings", _warnings(runs)),
        Section("Runs", _runs_table(runs) + album.add("runs", "accuracy of each run", side_by_side)),
        Section("Paired differences", _differences_table(accuracies, first.facts["distinct_tasks"])),
        Section("Task by task", "".join(scatters)),
        Section("Config keys that differ", _config_differences(runs)),
    ]
    means = " · ".join(f"{name}: {100 * values.mean():.2f} %" for name, values in accuracies.items())
    headline = f"{means} ({describe_chance(first.chance)})"
    backbones = ", ".join(dict.fromkeys(tested.backbone for tested in runs.values()))
    title = f"Comparison of {len(runs)} runs: {backbones} on {first.facts['dataset']}"
    facts = shared_protocol_line(first.facts, digits=None)
    return Page(html.page(title, headline, [facts], sections), album.pictures, headline, facts)


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())


def _warnings(runs: Mapping[str, Tested]) -> str:
    return "".join(
        html.warning(f"{name}: {line}") for name, tested in runs.items() for line in history.warnings(tested.place)
    )


def _runs_table(runs: Mapping[str, Tested]) -> str:
    rows = []
    for name, tested in runs.items():
        f = tested.facts
        figure = in_percent(*mean_interval(tested.accuracies, f["distinct_tasks"]))
        loop = f"{inner_loop(f)}, {f['head']} head"
        trained = ", ".join(one["fingerprint"][:12] for one in f["trained_on"] or ())
        before = tested.baseline_accuracies
        alone = "" if before is None else in_percent(*mean_interval(before, f["distinct_tasks"]))
        rows.append((name, figure, alone, tested.backbone, loop, f["checkpoint_step"], trained))
    header = ("run", "accuracy, %", "pre-training only, %", "backbone", "inner loop", "checkpoint", "trained on data")
    table = html.table(header, rows)
    notes = [f"{name}: caveat: {caveat}" for name, tested in runs.items() for caveat in tested.facts["caveats"]]
    return table + "".join(map(html.paragraph, notes))


def _differences_table(accuracies: Mapping[str, np.ndarray], distinct: int) -> str:
    rows = []
    for d in differences(accuracies, distinct):
        points = in_percent(*d.difference, "+")
        rows.append((f"{d.second} - {d.first}", points, d.wins, d.losses, d.ties))
    note = "Both runs of a pair were tested on the same tasks, so easy and hard tasks cancel."
    header = ("difference", "points", "tasks ahead", "behind", "equal")
    return html.paragraph(note) + html.table(header, rows)


def _config_differences(runs: Mapping[str, Tested]) -> str:
    configs = {name: dict(html.dotted(config.to_json(tested.settings))) for name, tested in runs.items()}
    keys = sorted(set().union(*configs.values()))
    rows = []
    for key in keys:
        values = [json.dumps(settings.get(key)) for settings in configs.values()]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return html.table(("key", *runs), rows) if rows else html.paragraph("none")

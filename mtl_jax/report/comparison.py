"""Comparing runs on the same tasks: what they must have in common, and the paired differences."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.errors import ConfigError
from mtl_jax.metrics import Interval, describe_tasks, in_percent, mean_interval, paired_difference

# What a figure is not comparable without. The inner loop, the head and the checkpoint belong to the method.
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


def check_same(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that runs were tested by one protocol on one list of tasks.

    Args:
      facts: what stands beside a figure, by run.

    Raises:
      ConfigError: names the first thing that differs, the runs, and their values.
    """
    (first, its), *others = facts.items()
    for key in SAME:
        for name, found in others:
            one, other = its.get(key), found.get(key)
            if one != other:
                raise ConfigError(
                    f"{first} and {name} cannot be compared: {key} is {one!r} and {other!r}; {ADVICE[key]}"
                )


def differences(accuracies: Mapping[str, np.ndarray], distinct: int | None = None) -> list[Difference]:
    """The paired differences of all pairs of runs, from the accuracies [T] of each on the same tasks.

    `distinct` of the tasks are distinct, where it is known.
    """
    found = []
    for (first, a), (second, b) in itertools.combinations(accuracies.items(), 2):
        # Accuracies are counts of right answers by the same number of queries: closer than that is equal.
        ahead, behind = b > a + 1e-9, b < a - 1e-9
        counts = int(ahead.sum()), int(behind.sum()), int((~ahead & ~behind).sum())
        found.append(Difference(first, second, paired_difference(b, a, distinct), *counts))
    return found


def describe(accuracies: Mapping[str, np.ndarray], facts: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as lines of text, a figure never without its protocol."""
    common = next(iter(facts.values()))
    distinct = common["distinct_tasks"]
    lines = [
        f"{describe_tasks(common['num_tasks'], distinct)}, {common['way']}-way {common['shot']}-shot, "
        f"{common['query']} queries a class, {common['split']} split of {common['dataset']} "
        f"{common['fingerprint'][:12]}, batch norm: {common['batch_norm']}, episodes {common['episodes'][:12]}"
    ]
    for name, values in accuracies.items():
        own = facts[name]
        figure = in_percent(*mean_interval(values, distinct))
        lines.append(
            f"  {name}: {figure} % ({own['inner_steps']} inner steps at {own['inner_lr']}, "
            f"{own['head']} head, checkpoint {own['checkpoint_step']})"
            + "".join(f"; caveat: {caveat}" for caveat in own.get("caveats", ()))
        )
    for d in differences(accuracies, distinct):
        lines.append(
            f"  {d.second} - {d.first}: {in_percent(*d.difference, '+')} points; "
            f"ahead in {d.wins} tasks, behind in {d.losses}, equal in {d.ties}"
        )
    return "\n".join(lines)

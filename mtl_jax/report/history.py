"""What a run has written while it trained: its scalars, its warnings, its costs, its commands."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.config import build
from mtl_jax.errors import MtlError
from mtl_jax.metrics import in_percent
from mtl_jax.workdir import Workdir, health
from mtl_jax.workdir.checkpoint import Checkpoints
from mtl_jax.workdir.writers import read_jsonl

PHASES = {"pretrain": "pre-training", "meta": "meta-training"}
RULE = (
    "The rule: the last validation is below the best one by more than both 95 % intervals, and training accuracy since "
    "the validation before is higher than it was then."
)
RULE_IN_TRAINING = (
    f"The rule: of means over {health.CHECKS} validations in a row, one is below the best by more than "
    f"{100 * health.POINTS:.0f} % of the best's lead over chance, and training accuracy is higher."
)

Curve = tuple[np.ndarray, np.ndarray]


def read(metrics_path: str | Path) -> dict[str, Curve]:
    """Every scalar of a run by name: (steps [n], values [n]).

    Raises:
      MtlError: the file cannot be read, or is not what a run writes.
    """
    found: dict[str, dict[int, float]] = {}
    for record in read_jsonl(metrics_path):
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, {})[record["step"]] = value
    return {name: (np.array(list(by)), np.array(list(by.values()), float)) for name, by in found.items()}


def overfitting(scalars: Mapping[str, Curve], phase: str) -> str:
    """A sentence where a phase overfitted, by `RULE`; else ''. `scalars` are from `read`."""
    needed = [scalars.get(f"{phase}/{scalar}") for scalar in ("val_accuracy", "val_ci95", "accuracy")]
    curves = [curve for curve in needed if curve is not None]
    if len(curves) < len(needed) or len(curves[0][0]) != len(curves[1][0]):
        return ""
    (steps, scores), (_, intervals), (trained, accuracies) = curves
    best, before = int(scores.argmax()), np.concatenate([[0], steps])
    then, now = (
        accuracies[(trained > before[i]) & (trained <= steps[i])] for i in (best, len(steps) - 1)
    )  # fmt: skip
    fell = scores[-1] + intervals[-1] < scores[best] - intervals[best]
    if not fell or not len(then) or not len(now) or now.mean() <= then.mean():
        return ""
    fall = [f"{in_percent(scores[i], intervals[i])} % at step {steps[i]}" for i in (best, -1)]
    rise = [f"{in_percent(values.mean(), None)} %" for values in (then, now)]
    return (
        f"{PHASES[phase]} overfitted: validation fell from {' to '.join(fall)}, while training accuracy rose from "
        f"{' to '.join(rise)}. Try fewer config.{phase}.steps or a larger config.{phase}.weight_decay. {RULE}"
    )


def validation_before(settings: ConfigDict, scalars: Mapping[str, Curve]) -> float | None:
    """The validation accuracy of the network that meta-training starts from, if it was measured on the same tasks."""
    sizes = [
        {name: getattr(build.validation(settings, group), name) for name in ("way", "shot", "query")}
        for group in (settings.pretrain, settings.meta)
    ]
    if sizes[0] != sizes[1] or "pretrain/val_accuracy" not in scalars:
        return None
    scores = scalars["pretrain/val_accuracy"][1]
    return float(scores.max() if settings.pretrain.select == "best" else scores[-1])


def warnings(place: Workdir) -> list[str]:
    """The warnings of a run's training, each once, and where a phase overfitted."""
    lines = []
    try:
        scalars = read(place.metrics)
    except MtlError:  # the section of the learning curves says so
        scalars = {}
    for phase in PHASES:
        told = Checkpoints(place.checkpoints(phase)).newest_metadata().get("health", {}).get("told", {})
        lines += [f"{line}. {RULE_IN_TRAINING}" if kind == "falling" else line for kind, line in told.items()]
        if "falling" not in told and (line := overfitting(scalars, phase)):
            lines.append(line)
    return lines


def costs(timing: Path) -> dict[str, dict[str, float]]:
    """By phase: `seconds` over all starts of a run, and its peaks of memory in megabytes where they were recorded."""
    by_phase: dict[str, dict[str, float]] = defaultdict(dict)
    before: dict[str, float] = defaultdict(float)
    if not timing.exists():
        return {}
    for record in read_jsonl(timing):
        for name, value in record.items():
            phase, _, what = name.partition("/")
            if what == "seconds":  # counted from a process's start: less than before means another start
                total = by_phase[phase].get(what, 0.0)
                by_phase[phase][what] = total + value - (before[phase] if value >= before[phase] else 0)
                before[phase] = value
            elif what.endswith("memory_mb"):
                by_phase[phase][what] = max(value, by_phase[phase].get(what, 0))
    return dict(by_phase)


def commands(place: Workdir) -> list[dict[str, Any]]:
    """The commands that were run in a workdir, with their times and versions."""
    return list(read_jsonl(place.commands)) if place.commands.exists() else []

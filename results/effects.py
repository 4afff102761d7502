"""`python -m results effects`: what options of evaluation change, on the same tasks with the same kept network."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax import config, metrics, workdir
from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.errors import ConfigError
from mtl_jax.reference_weights.kept_networks import Kept
from results import measure
from results.records import EFFECTS, measured_rows

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as in the presets": {},
    "features of length 1": {"inner.features": "l2"},
    "features centred, of length 1": {"inner.features": "centered_l2"},
    "mirror images in the support set": {"evaluate.flips": True},
    "mirror images, features of length 1": {"evaluate.flips": True, "inner.features": "l2"},
    "5 crops in the support set": {"evaluate.crops": 5},
    "mirror images, 5 crops, centred, of length 1": {
        "evaluate.flips": True, "evaluate.crops": 5, "inner.features": "centered_l2",
    },
}  # fmt: skip
# Features of length 1 are a tenth as long as they were, or less: the inner loop wants a rate a hundred times as large.
FACTORS, STEPS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0), 50


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--data", required=True, help="a folder with a folder a data set: fc100, omniglot")
    parser.add_argument("rows", nargs="+", help="names of measured rows, as results/NAME.json has them")


def main(flags: argparse.Namespace) -> int:
    """Tests every variant on every row's network and writes a JSON file a row."""
    known = measured_rows()
    if unknown := set(flags.rows) - set(known):
        raise ConfigError(f"row {min(unknown)!r} was not measured, expected one of {', '.join(known)}")
    for name in flags.rows:
        kept, dataset = measure.reopen(known[name], Path(flags.data))
        record = {"row": name, "data": dataset.name, "fingerprint": dataset.fingerprint}
        record["variants"] = measure_all(kept, dataset)
        EFFECTS.mkdir(exist_ok=True)
        workdir.write_json_atomic(EFFECTS / f"{name}.json", record)
    return 0


def measure_all(kept: Kept, dataset: Dataset) -> list[dict[str, Any]]:
    """A record a variant: its options, the inner loop that validation chose, accuracy, difference to the first."""
    entries, first = [], None
    for label, options in VARIANTS.items():
        accuracies, inner = _test(kept, dataset, options)
        first = accuracies if first is None else first
        entry = measure.compared(accuracies, first)
        entries.append({
            "label": label, "options": dict(options), "inner_lr": float(f"{inner.lr:.6g}"), "inner_steps": inner.steps,
            "num_tasks": len(accuracies), **entry,
        })  # fmt: skip
        print(f"{label}: {metrics.in_percent(entry['accuracy'], entry['ci95'])} %", flush=True)
    return entries


def _test(kept: Kept, dataset: Dataset, options: Mapping[str, Any]) -> tuple[np.ndarray, Any]:
    """Accuracies on the test tasks by the inner loop that is best on validation tasks, and that inner loop."""
    settings = measure.changed(config.complete(kept.settings), options)
    base = build.protocol(settings)._replace(inner=build.inner(settings.inner)._replace(steps=STEPS))
    protocol = measure.choose_inner(kept.model, dataset, base, FACTORS)
    return measure.on_bank(kept.model, dataset.splits["test"], protocol)(protocol), protocol.inner

"""`python -m results check`: every kept network again on the same tasks, against the figures in its JSON file."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax import metrics
from mtl_jax.data import Dataset
from mtl_jax.reference_weights import kept_networks
from results import measure
from results.records import FOLDER, measured_rows

TOLERANCE = 0.002  # 0.2 points: what another machine or version may differ by


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--data", required=True, help="a folder with a folder a data set: fc100, omniglot")
    parser.add_argument("--only", default="", help="rows whose name contains this")


def main(flags: argparse.Namespace) -> int:
    """Prints a line a row; 1 where a row is not what its file says, or none could be tested."""
    wrong = tested = 0
    for name, record in measured_rows().items():
        if flags.only not in name:
            continue
        path = Path(flags.data) / record["data"]
        if not path.exists():
            print(f"{name}: skipped, no {path}")
            continue
        if not (FOLDER / record["weights"]).exists():
            print(f"{name}: skipped, its network of {record['weights_bytes'] / 1e6:.0f} MB is not kept")
            continue
        kept, dataset = measure.reopen(record, Path(flags.data))
        problems, line = compare(kept, record, dataset)
        print(f"{name}: {line}; {'; '.join(problems) or 'as recorded'}", flush=True)
        tested, wrong = tested + 1, wrong + bool(problems)
    print(f"{tested} rows tested, {wrong} not as recorded")
    return int(wrong > 0 or tested == 0)


def compare(kept: kept_networks.Kept, record: Mapping[str, Any], dataset: Dataset) -> tuple[list[str], str]:
    """What of a record does not hold, and the figures as found now."""
    problems, line = [], []
    if kept_networks.digest(FOLDER / record["weights"]) != record["weights_sha256"]:
        problems.append("the weight file has another fingerprint")
    if dataset.fingerprint != record["fingerprint"]:
        problems.append(f"other images: fingerprint {dataset.fingerprint[:12]}, not {record['fingerprint'][:12]}")
    measured = measure.test(kept, dataset)
    for figure, digest in zip(record["figures"], measured.hashes, strict=True):
        mean, ci95 = metrics.mean_interval(measured.accuracies[: figure["num_tasks"]])
        line.append(f"{metrics.in_percent(mean, ci95)} % over {figure['num_tasks']}")
        if digest != figure["episodes"]:
            problems.append(f"other tasks: hash {digest[:12]}, not {figure['episodes'][:12]}")
        if abs(mean - figure["accuracy"]) > TOLERANCE:
            problems.append(f"{100 * figure['accuracy']:.2f} % is recorded over {figure['num_tasks']}")
    return problems, ", ".join(line)

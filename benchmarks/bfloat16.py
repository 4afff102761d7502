"""What computing the backbone in bfloat16 does to accuracy: kept networks, tested in both on the same tasks.

python -m benchmarks.bfloat16 --data=DATA [--only=fc100]     DATA holds a folder a data set: fc100, omniglot
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax import metrics
from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.reference_weights.kept_networks import Kept
from results import measure
from results.records import measured_rows


def in_bfloat16(kept: Kept) -> Kept:
    """The same network, its backbone computed in bfloat16; parameters, averages and head stay float32."""
    settings = copy.deepcopy(dict(kept.settings))
    settings["runtime"]["dtype"] = "bfloat16"
    return kept._replace(settings=settings, model=kept.model._replace(embed=build.embedding(settings)))


def lines(name: str, kept: Kept, dataset: Dataset) -> list[str]:
    """The table's lines of a network: both means and the paired difference, over 600 and over 10,000 tasks."""
    found, seconds = [], []
    for network in (kept, in_bfloat16(kept)):
        start = time.monotonic()
        found.append(measure.test(network, dataset))
        seconds.append(time.monotonic() - start)
    assert found[0].hashes == found[1].hashes
    print(f"{name}: {seconds[0]:.0f} s in float32, {seconds[1]:.0f} s in bfloat16", file=sys.stderr)
    return [_line(name, *(one.accuracies[:count] for one in found)) for count in measure.TASKS]


def _line(name: str, wide: np.ndarray, narrow: np.ndarray) -> str:
    means = (f"{metrics.in_percent(*one)} %" for one in map(metrics.mean_interval, (wide, narrow)))
    difference = metrics.paired_difference(narrow, wide)
    paired = metrics.in_percent(*difference, "+", 3)
    return f"| {' | '.join([name, f'{len(wide):,}', *means, paired])} |"


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    flags = parser.parse_args(argv)
    titles = ("network", "tasks", "float32", "bfloat16", "bfloat16 - float32, points, paired")
    print(f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", sep="\n")
    for name, record in measured_rows().items():
        if flags.only in name and (flags.data / record["data"]).exists():
            print(*lines(name.removesuffix("-seed0"), *measure.reopen(record, flags.data)), sep="\n", flush=True)


if __name__ == "__main__":
    main()

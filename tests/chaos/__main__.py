"""Kills, stops, starves and doubles small training runs, and compares how they end with a run left alone.

python -m tests.chaos [--short] [--seed=0]
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mtl_jax.errors import CheckpointError
from tests.chaos import disk, doubles, kills
from tests.chaos.runs import Run, Setting, end, make_data

Counts = dict[str, tuple[int, int]]


def reference(setting: Setting) -> dict:
    """How a run that nothing happens to ends."""
    workdir = setting.folder / "untouched"
    run = Run(setting, workdir)
    if run.wait():
        raise AssertionError(f"the run that is left alone failed:\n{run.said()}")
    return end(workdir)


class Series(NamedTuple):
    """What is done to runs, one after another: a name for what fails as a whole, how often, and what does it."""

    name: str
    planned: int
    run: Callable[[], Counts]


def series(one: Setting, expected: dict, short: bool, seed: int) -> list[Series]:
    """All of them, on one device."""
    each, signals, others = (1, 1, 1) if short else (5, 10, 5)
    return [
        Series("SIGKILL", 4 * each, lambda: kills.sigkill(one, expected, dict.fromkeys(kills.KINDS, each), seed)),
        Series("signals", 2 * signals, lambda: kills.stop(one, expected, signals, seed)),
        Series("disk full", others, lambda: disk.fill(one.folder, others, seed)),
        Series("locks", 2 * others, lambda: doubles.lock(one, expected, others)),
    ]


def on_four(four: Setting, seed: int) -> Counts:
    """Each kind once on four virtual devices."""
    make_data(four.folder / "data")
    expected = reference(four)
    found = kills.sigkill(four, expected, dict.fromkeys(kills.KINDS, 1), seed) | kills.stop(four, expected, 1, seed)
    return {f"{kind}, four devices": count for kind, count in found.items()}


def attempt(one: Series) -> Counts:
    """(tried, survived) of every kind in a series; where the harness itself fails, nothing of it was survived."""
    started = time.monotonic()
    try:
        counts = one.run()
    except (AssertionError, CheckpointError, OSError) as error:
        print(f"{one.name}: failed as a whole: {error}", flush=True)
        counts = {one.name: (one.planned, 0)}
    print(f"{one.name}: {time.monotonic() - started:.0f} s", flush=True)
    return counts


def chaos(folder: Path, short: bool, seed: int) -> Counts:
    """(tried, survived) of every kind. The short form has two series going at a time."""
    one, four = Setting(folder / "one"), Setting(folder / "four", devices=4)
    make_data(one.folder / "data")
    started = time.monotonic()
    planned = series(one, reference(one), short, seed)
    print(f"left alone: {time.monotonic() - started:.0f} s", flush=True)
    if not short:
        planned.append(Series("four devices", 6, lambda: on_four(four, seed)))
    with ThreadPoolExecutor(2 if short else 1) as pool:
        found = list(pool.map(attempt, planned))
    return {kind: count for counts in found for kind, count in counts.items()}


def main() -> None:
    """Prints the table and the line that counts; status 1 where anything was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="once of each kind, on one device")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends as well
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            counts = chaos(Path(folder), options.short, options.seed)
        finally:
            Run.end_all()
    width = max(map(len, counts))
    print(f"\n{'what happened':{width}}  tried  survived")
    for kind, (tried, survived) in counts.items():
        print(f"{kind:{width}}  {tried:5}  {survived:8}")
    tried, survived = (sum(column) for column in zip(*counts.values(), strict=True))
    listed = "; ".join(f"{kind} {survived}/{tried}" for kind, (tried, survived) in counts.items())
    print(f"chaos: survived {survived} of {tried} in {time.monotonic() - started:.0f} s: {listed}")
    raise SystemExit(survived != tried)


if __name__ == "__main__":
    main()

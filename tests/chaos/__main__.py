"""Kills, stops, starves and doubles small training runs, and compares how they end with a run left alone.

python -m tests.chaos [--short] [--seed=0]
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.chaos import disk, doubles, kills
from tests.chaos.runs import Run, Setting, end, make_data

Counts = dict[str, tuple[int, int]]


def reference(setting: Setting) -> dict:
    """How a run that nothing happens to ends."""
    workdir = setting.folder / "untouched"
    run = Run(setting, workdir)
    if run.wait():
        raise SystemExit(f"the run that is left alone failed:\n{run.said()}")
    return end(workdir)


def chaos(folder: Path, short: bool, seed: int) -> Counts:
    """(tried, survived) of every kind."""
    one, four = Setting(folder / "one"), Setting(folder / "four", devices=4)
    make_data(one.folder / "data")
    expected = reference(one)
    each, signals = (1, 1) if short else (5, 10)
    counts = kills.sigkill(one, expected, dict.fromkeys(kills.KINDS, each), seed)
    counts |= kills.stop(one, expected, signals, seed)
    counts |= disk.fill(one.folder, 1 if short else 5, seed)
    counts |= doubles.lock(one, expected, 1 if short else 5)
    if not short:
        make_data(four.folder / "data")
        found = kills.sigkill(four, reference(four), dict.fromkeys(kills.KINDS, 1), seed)
        counts |= {f"{kind}, four devices": count for kind, count in found.items()}
    return counts


def main() -> None:
    """Prints the table and the line that counts; status 1 where anything was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="once of each kind, on one device")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        counts = chaos(Path(folder), options.short, options.seed)
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

"""python -m benchmarks.profile --row=c --dtype=bfloat16 --times=8

Where a step of row a, b or c, or a call of row d, spends its time on a GPU: kernels by kind, and the longest ones.
"""

import argparse
import collections
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import accelerator, worker
from benchmarks.rows import groups

ROWS = ("a", "b", "c", "d")
REPEATS = 3
LONGEST = 15


class Kernel(NamedTuple):
    """One launch: the operation of the compiled step, or of the group of them that it was launched with; seconds."""

    operation: str
    name: str
    seconds: float


def kind(kernel: Kernel) -> str:
    """What a kernel does, by its names."""
    for start, found in (
        ("cudnn-conv-bw-filter", "convolutions, gradient by the kernel"),
        ("cudnn-conv-bw-input", "convolutions, gradient by the images"),
        ("cudnn-conv", "convolutions"),
    ):
        if kernel.operation.startswith(start):
            return found
    return "matrix products" if "gemm" in kernel.name or "dot" in kernel.name else "passes over maps and the rest"


def kernels(planes: Iterable[Any]) -> list[Kernel]:
    """All launches in a trace's planes, which are named after devices, with a line a stream."""
    events = [
        event
        for plane in planes
        if "GPU" in plane.name
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    return [Kernel(str(dict(e.stats).get("hlo_op", "")), e.name, e.duration_ns / 1e9) for e in events]


def report(found: Iterable[Kernel], steps: float) -> str:
    """Two tables, in milliseconds a step."""
    by_kind, by_name = (collections.defaultdict(list) for _ in range(2))
    for kernel in found:
        by_kind[kind(kernel)].append(kernel.seconds)
        by_name[f"{kernel.operation} {kernel.name[:60]}"].append(kernel.seconds)
    parts = [_table("kind", by_kind, steps, None), _table("kernel", by_name, steps, LONGEST)]
    return "\n\n".join(parts)


def _table(title: str, spent: Mapping[str, list[float]], steps: float, limit: int | None) -> str:
    ordered = sorted(spent.items(), key=lambda item: -sum(item[1]))[:limit]
    lines = [f"| {title} | launches a step | ms a step |", "| --- | --- | --- |"]
    return "\n".join(
        [*lines, *(f"| {name} | {len(s) / steps:g} | {1e3 * sum(s) / steps:.3f} |" for name, s in ordered)]
    )


def main(argv: list[str]) -> int:
    """Times a row, then traces one repeat of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", required=True, choices=ROWS)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    accelerator.add_flags(parser)
    flags = parser.parse_args(argv)
    accelerator.choose(flags)
    with tempfile.TemporaryDirectory() as folder:
        work = worker.prepare(groups(flags.quick)[flags.row].ours, flags.row, Path(folder), flags.quick)
        run = work.cases[""]
        run()  # compiles
        seconds = statistics.median(m.seconds / m.amount for m in (run() for _ in range(REPEATS)))
        flops = work.facts["flops"]
        rate = (flops[""] if isinstance(flops, Mapping) else flops) / seconds / 1e12
        memory = (accelerator.peak_memory() or worker.peak_memory()) / 1e9
        device = jax.devices()[0].device_kind
        print(f"{1e3 * seconds:.3g} ms a step, {rate:.3g} TFLOP/s, {memory:.3g} GB, {device}\n")
        with jax.profiler.trace(folder):
            steps = run().amount
        (trace,) = Path(folder).rglob("*.xplane.pb")
        found = kernels(jax.profiler.ProfileData.from_file(str(trace)).planes)
    if not found:
        print("no kernels in the trace: this needs a GPU", file=sys.stderr)
        return 1
    print(report(found, steps))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

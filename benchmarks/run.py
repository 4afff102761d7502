"""Measures rows: both sides of each in processes of their own, checked against each other, then timed alternately."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.rows import MATMUL, Case, Group, groups
from benchmarks.worker import Worker, WorkerError

# Largest relative difference (of norms) between the two sides that passes: of losses and logits, of gradients.
LIMITS = {"loss": 1e-4, "logits": 1e-4}
GRADIENT_LIMIT = 1e-2
ACCURACY_LIMIT = 0.01  # points of a hundred: a query whose two largest logits are equal up to rounding may differ
# Batch norm cancels what is added before it: these gradients are noise by construction.
CANCELLED = ("/shift", "conv/bias", "conv1/bias", "conv2/bias", "conv3/bias")

Say = Callable[[str], None]


class DisagreementError(RuntimeError):
    """The two sides do not compute the same."""


def differences(ours: Mapping[str, np.ndarray], rival: Mapping[str, np.ndarray]) -> dict[str, float]:
    """|ours - rival| / |rival| by the first part of the names; accuracies by the largest plain difference.

    Raises:
      DisagreementError: names that only one side has, or a difference over its limit.
    """
    if set(ours) != set(rival):
        raise DisagreementError(f"only one side has {', '.join(sorted(set(ours) ^ set(rival)))}")
    found: dict[str, float] = {}
    for group in sorted({name.split("/")[0] for name in ours}):
        names = [name for name in ours if name.split("/")[0] == group and not name.endswith(CANCELLED)]
        a, b = (np.concatenate([np.ravel(side[name]).astype(np.float64) for name in names]) for side in (ours, rival))
        accuracy = group.startswith("accuracy")
        found[group] = float(np.abs(a - b).mean() if accuracy else np.linalg.norm(a - b) / np.linalg.norm(b))
        limit = ACCURACY_LIMIT if accuracy else LIMITS.get(group, GRADIENT_LIMIT)
        if not found[group] <= limit:
            raise DisagreementError(f"{group}: the two sides differ by {found[group]:.2g}, more than {limit}")
    return found


def measure(row: str, group: Group, *, quick: bool, say: Say) -> list[dict[str, Any]]:
    """The results of a group's cases."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{row}-") as name:
        folder, workers = Path(name), []
        try:
            for side in (group.ours, group.rival):
                workers.append(Worker(side, row, folder, quick))
            agreement = _check(group, workers, folder)
            say(f"{row}: both sides agree: {agreement}" if agreement else f"{row}: warming up")
            first = [worker.ask(do="warm")["seconds"] for worker in reversed(workers)][::-1]
            times = _repeats(row, group, workers, quick, say)
            facts = [worker.ask(do="facts") for worker in workers]
        finally:
            for worker in workers:
                worker.close()
    common = {"row": row, "agreement": agreement, "warm_seconds": first}
    return [{**common, **_result(case, *times[i], *facts)} for i, case in enumerate(group.cases)]


def _check(group: Group, workers: list[Worker], folder: Path) -> dict[str, float]:
    sides = []
    for side, worker in zip((group.ours, group.rival), workers, strict=True):
        worker.ask(do="numbers")
        with np.load(folder / f"{side.replace(':', '-')}-numbers.npz") as file:
            sides.append(dict(file))
    return differences(*sides) if any(sides) else {}


def _repeats(row: str, group: Group, workers: list[Worker], quick: bool, say: Say) -> list[tuple[list, list]]:
    """For each case (ours, rival): a list of seconds for `case.per` units, and of units measured."""
    found: list[tuple[list, list]] = [([], []) for _ in group.cases]
    most = 1 if quick else max(case.repeats for case in group.cases)
    for number in range(most):
        for case, kept in zip(group.cases, found, strict=True):
            if number >= case.repeats:
                continue
            for name, worker, values in zip((case.rival, case.ours), workers[::-1], kept[::-1], strict=True):
                if name is not None:
                    run = worker.ask(do="run", case=name)
                    values.append((run["seconds"] * case.per / run["amount"], run["amount"]))
            say(f"{row}: {case.what}: " + " against ".join(f"{v[-1][0]:.4g} s" for v in kept if v))
    return found


def _result(case: Case, ours: list, rival: list, facts: Mapping, rival_facts: Mapping) -> dict[str, Any]:
    seconds = statistics.median(s for s, _ in ours)
    flops = facts.get("flops")
    flops = flops.get(case.ours) if isinstance(flops, Mapping) else flops
    result = {
        "what": case.what, "seconds": seconds, "repeats": [s for s, _ in ours], "peak_bytes": facts["peak_bytes"],
        "flops": flops,
    }  # fmt: skip
    if not rival:
        return result
    against = statistics.median(s for s, _ in rival)
    amount = round(statistics.median(n for _, n in rival))
    return {
        **result, "against": case.against.format(rival_amount=amount), "rival_seconds": against,
        "rival_repeats": [s for s, _ in rival], "ratio": against / seconds,
        "rival_peak_bytes": rival_facts["peak_bytes"], "rival_setting": rival_facts.get("setting", ""),
    }  # fmt: skip


def run(rows: Iterable[str], *, quick: bool = False, say: Say = lambda line: None) -> dict[str, Any]:
    """Measures rows by their letters: what the result's file holds.

    The machine's limit is the faster of JAX's and PyTorch's matrix products, measured before all rows and after them.
    """
    start, chosen = time.monotonic(), groups(quick)
    products = [measure("matmul", MATMUL, quick=quick, say=say)[0]]
    results = []
    for row in rows:
        try:
            results += measure(row, chosen[row], quick=quick, say=say)
        except (DisagreementError, WorkerError) as error:  # one row's failure is not to cost the others their figures
            say(f"{row}: {error}")
            results.append({"row": row, "what": chosen[row].cases[0].what, "error": str(error)})
    products.append(measure("matmul", MATMUL, quick=quick, say=say)[0])
    rate = max(p["flops"] / min(p["seconds"], p["rival_seconds"]) for p in products)
    for result in results:
        if result.get("flops"):
            result["fraction"] = result["flops"] / result["seconds"] / rate
    return {
        "machine": machine.facts(), "quick": quick, "matmul_flops_per_second": rate,
        "products": products, "rows": results, "total_seconds": time.monotonic() - start,
    }  # fmt: skip


def write(results: Mapping[str, Any], path: Path) -> None:
    """Writes the result's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def say_to_stderr(line: str) -> None:
    """Progress, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

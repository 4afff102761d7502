"""A config under several seeds: a run for each, tested by the config's protocol, and the spread of the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config, evaluate, workdir
from mtl_jax.errors import ConfigError
from mtl_jax.launch import environment, hosts
from mtl_jax.metrics import in_percent
from mtl_jax.train.run import train
from mtl_jax.workdir.writers import Writer

SHARED: tuple[str, ...] = ("dataset", "fingerprint", "split", "num_tasks", "distinct_tasks", "way", "shot", "query")
SHARED += ("inner_steps", "inner_lr", "batch_norm", "head", "episodes", "device", "device_kind", "num_devices")


class Spread(NamedTuple):
    """Of the accuracies of seeds: mean, sample standard deviation (n - 1), the least and the greatest."""

    mean: float
    std: float | None
    least: float
    greatest: float


def run(
    settings: ConfigDict, path: str | Path, num_seeds: int, hooks: Sequence[Writer] = (), argv: Sequence[str] = ()
) -> dict[int, dict[str, Any]]:
    """Trains and tests a config under the seeds `settings.seed`, `settings.seed + 1`, ...: `path`/seed-0, seed-1, ...

    Each is an ordinary workdir: a finished run is not repeated, a stopped one resumes. All are tested on the same
    tasks, which depend on `evaluate.seed` and not on `seed`. They share a pre-training only where `pretrain.init` names
    one.

    Args:
      settings: the config; its `seed` is the first.
      path: the folder of the runs.
      num_seeds: how many.
      hooks: further writers, as for `run.train`.
      argv: the command, for the workdirs' records.

    Returns:
      What `evaluate.evaluate` returns, by seed.

    Raises:
      MtlError: a problem that the user can fix. loop.Stopped: a signal came; the same call resumes.
    """
    if num_seeds < 1:
        raise ConfigError(f"--num_seeds={num_seeds}, expected 1 or more")
    if workdir.Workdir(path).config.exists():
        raise ConfigError(f"{path} holds one run; --num_seeds makes a folder of runs: give it another --workdir")
    config.validate(settings)  # before any folder is made
    results = {}
    for number in range(num_seeds):
        own = settings.copy_and_resolve_references()
        own.seed = settings.seed + number
        own_path = seed_path(path, number)
        if argv and hosts.is_first():
            workdir.record_command(own_path, argv, environment.device_facts())
        train(own, str(own_path), hooks, label=f"seed {own.seed} ({number + 1} of {num_seeds})")
        results[own.seed] = evaluate.evaluate(own, str(own_path))
    return results


def seed_path(path: str | Path, number: int) -> Path:
    """The workdir of the seed of a number, counted from 0."""
    return Path(path) / f"seed-{number}"


def spread(accuracies: Sequence[float]) -> Spread:
    """How far the accuracies [n] of n seeds are apart. One seed has no deviation: nothing is known of it."""
    values = np.asarray(accuracies, np.float64)
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(float(values.mean()), std, float(values.min()), float(values.max()))


def table(results: Mapping[int, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The table as Markdown, and as a record; an interval is over tasks, the deviation over seeds.

    Args:
      results: what `run` returns.
    """
    whole = spread([result["accuracy"] for result in results.values()])
    first = next(iter(results.values()))
    lines = [f"| seed | {evaluate.shared_protocol_line(first)} |", "| --- | --- |"]
    lines += [f"| {seed} | {in_percent(r['accuracy'], r['ci95'])} % |" for seed, r in results.items()]
    if whole.std is not None:
        lines.append(
            f"| mean of {len(results)} | {100 * whole.mean:.2f} %, standard deviation {100 * whole.std:.2f}, "
            f"{100 * whole.least:.2f} to {100 * whole.greatest:.2f} |"
        )
    each = [{"seed": seed, **{name: r[name] for name in ("accuracy", "ci95", "checkpoint_step")}}
            for seed, r in results.items()]  # fmt: skip
    return "\n".join(lines), {**{name: first[name] for name in SHARED}, **whole._asdict(), "seeds": each}


def main(settings: ConfigDict, path: str, num_seeds: int, argv: Sequence[str]) -> None:
    """What `train.py --num_seeds=n` does: runs the seeds, prints the table, writes it to table.md and seeds.json.

    Of several processes the first prints and writes.
    """
    text, record = table(run(settings, path, num_seeds, argv=argv))
    if not hosts.is_first():
        return
    workdir.write_json_atomic(Path(path) / "seeds.json", record)
    workdir.write_bytes_atomic(Path(path) / "table.md", f"{text}\n".encode())
    print(text)

"""Meta-test of a trained workdir: mean accuracy ± CI95 over many tasks of a split.

python evaluate.py --workdir=runs/glyphs --num_tasks=600 --shot=5
"""

import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from mtl_jax import build, checkpoint, cli, config, metrics, phases, workdir
from mtl_jax.data import Dataset
from mtl_jax.episodes import check_table
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluation import evaluate_tasks

SHORT_FLAGS = ("split", "num_tasks", "way", "shot")


def evaluate(settings: ConfigDict, path: str, dataset: Dataset | None = None) -> dict[str, Any]:
    """Evaluates a workdir's best checkpoint by the protocol of `settings.evaluate`, and writes its files.

    Args:
      settings: the workdir's config, with another `evaluate` group if wished.
      path: the workdir.
      dataset: the data, where the caller has it already.

    Returns:
      What `evaluation/SPLIT-{way}way-{shot}shot.json` holds.

    Raises:
      MtlError: what the user can mend.
    """
    place, protocol = workdir.Workdir(path), build.protocol(settings)
    split = _split(dataset or build.dataset(settings.data), settings.evaluate.split)
    step, model = phases.trained(settings, place, split.images.shape[1:])
    check_table(
        split.table(), split.class_names,
        way=protocol.way, shot=protocol.shot, query=protocol.query, split=split.name,
    )  # fmt: skip
    started, every = time.monotonic(), settings.evaluate.every_step
    accuracies = evaluate_tasks(
        model, split.images, split.table(), protocol,
        every_step=every, embed_batch=settings.runtime.embed_batch, chunk=settings.runtime.task_chunk,
    )  # fmt: skip
    seconds = time.monotonic() - started
    trajectory = accuracies if every else accuracies[:, None]
    result = {**_protocol_facts(settings, protocol, step), **_interval(trajectory[:, -1]), "seconds": round(seconds, 2)}
    if every:
        result["accuracy_by_step"] = [_interval(column) for column in trajectory.T]
    _write(
        place, split.name, protocol, result, trajectory, is_own=protocol == build.protocol(config.read(place.config))
    )
    return result


def _split(dataset: Dataset, name: str) -> Any:
    if name not in dataset.splits:
        there = ", ".join(dataset.splits)
        raise DataError(f"the data set has no {name} split, it has {there}; give --split")
    return dataset.splits[name]


def _interval(accuracies: np.ndarray) -> dict[str, float]:
    mean, ci95 = metrics.mean_interval(accuracies)
    return {"accuracy": mean, "ci95": ci95}


def _protocol_facts(settings: ConfigDict, protocol: Any, step: int) -> dict[str, Any]:
    """What a figure must not be printed without."""
    transductive = settings.meta.batch_norm == "batch"
    return {
        "split": settings.evaluate.split, "num_tasks": protocol.num_tasks,
        "way": protocol.way, "shot": protocol.shot, "query": protocol.query,
        "inner_steps": protocol.inner.steps, "inner_lr": protocol.inner.lr,
        "batch_norm": "batch" if transductive else "running", "head": "zero" if protocol.zero_head else "learned",
        "flips": protocol.flips, "checkpoint_step": step, "seed": protocol.seed,
    }  # fmt: skip


def _write(
    place: workdir.Workdir, split: str, protocol: Any, result: Any, trajectory: np.ndarray, is_own: bool
) -> None:
    sizes = {"way": protocol.way, "shot": protocol.shot}
    path = place.evaluation(split, "json", **sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json_atomic(path, result)
    if is_own:
        workdir.write_json_atomic(place.evaluation(split, "json"), result)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    last = range(trajectory.shape[1])[-1]
    names = [f"accuracy{step}" for step in range(last)] if last else []
    rows.writerow(["task", *names, "accuracy"])
    rows.writerows([task, *map(float, row)] for task, row in enumerate(trajectory))
    workdir.write_bytes_atomic(place.evaluation(split, "csv", **sizes), text.getvalue().encode())


def describe(result: Mapping[str, Any]) -> str:
    """The line that is printed: no figure without its protocol."""
    return (
        f"{result['split']} {result['way']}-way {result['shot']}-shot: "
        f"{100 * result['accuracy']:.2f} ± {100 * result['ci95']:.2f} % over {result['num_tasks']} tasks "
        f"({result['query']} queries a class, {result['inner_steps']} inner steps at {result['inner_lr']}, "
        f"batch norm: {result['batch_norm']}, {result['head']} head, checkpoint {result['checkpoint_step']}, "
        f"seed {result['seed']})"
    )


def main(argv: Sequence[str]) -> int | None:
    """The program."""
    values = flags.FlagValues()
    cli.define_config(values, required=False)
    flags.DEFINE_string("split", None, "train, val or test", flag_values=values)
    for name in SHORT_FLAGS[1:]:
        flags.DEFINE_integer(name, None, f"the same as --config.evaluate.{name}", flag_values=values)
    argv, overrides = split_overrides(argv)
    cli.parse(values, argv)
    settings = _settings(values, overrides)
    for name in SHORT_FLAGS:
        if values[name].value is not None:
            settings.evaluate[name] = values[name].value
    config.validate(settings)
    print(describe(evaluate(settings, values.workdir)))
    return 0


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the other words, the --config.a.b=v words): without --config they apply to the workdir's own config."""
    if any(word.startswith(("--config=", "-config=")) or word in ("--config", "-config") for word in argv):
        return list(argv), []
    overrides = [word for word in argv if word.startswith("--config.")]
    return [word for word in argv if word not in overrides], overrides


def _settings(values: flags.FlagValues, overrides: Sequence[str]) -> ConfigDict:
    place = workdir.Workdir(values.workdir)
    saved = config.read(place.config)
    settings = values.config if values.config is not None else config.override(saved, overrides)
    lines = checkpoint.describe_difference(config.to_json(saved), config.to_json(settings), config.MAY_DIFFER)
    if lines:
        raise ConfigError(f"{place.path} was trained with another config: {'; '.join(lines)}; leave these as they were")
    return settings


if __name__ == "__main__":
    sys.exit(cli.run(main))

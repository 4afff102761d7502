"""Tests a run's network: mean accuracy with its CI95 over many tasks of a split, and the protocol that was used."""

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config, frozen_episodes, metrics, workdir
from mtl_jax.config import build, run_data
from mtl_jax.data import Dataset, Split
from mtl_jax.episodes import count_distinct
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import maps, network
from mtl_jax.evaluation import Model, Protocol, evaluate_tasks
from mtl_jax.frozen_episodes import Frozen
from mtl_jax.launch import environment, hosts
from mtl_jax.learners import with_way
from mtl_jax.words import counted

BY_STEP = "do not choose the number of steps on these tasks: use --split=val"


def evaluate(
    settings: ConfigDict, path: str, dataset: Dataset | None = None, episodes: Frozen | None = None, weights: str = "",
    other_data: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Tests the network of a workdir by the protocol of `settings.evaluate`, and writes the results into the workdir.

    Args:
      settings: the workdir's config; its `evaluate` group may differ from the run's.
      path: the workdir.
      dataset: the data, where the caller has already opened it.
      episodes: a file of episodes to replay; its sizes must be those of `settings` (see `with_episodes`).
      weights: a reference's weight file to test instead of a checkpoint; the workdir then only takes the results.
      other_data: whether the data of `settings` is not the run's (see `run_data.with_other`); results then have files
        of their own.

    Returns:
      What `evaluation/SPLIT-{way}way-{shot}shot.json` holds; `episodes` in it is the hash of the tasks. With several
      processes each gets it, and the first writes the files.

    Raises:
      MtlError: a problem that the user can fix.
    """
    run, protocol = workdir.Workdir(path), build.protocol(settings)
    with hosts.first_goes_first():
        dataset = dataset or build.dataset(settings.data)
    trained = [] if weights else run_data.check(dataset, run, settings.evaluate.split, other=other_data)
    split = dataset.split(settings.evaluate.split)
    if weights:
        step, model = 0, network.model(settings, weights)
    else:
        step, model = network.trained(settings, run, split.images.shape[1:])
    tasks = frozen_episodes.choose_tasks(dataset, split, protocol, episodes)
    content = frozen_episodes.content_hash(split, tasks)
    hosts.check_same("checkpoint or set of tasks", [step, content])
    started, every = time.monotonic(), settings.evaluate.every_step
    devices = hosts.devices(settings.runtime.devices)
    values = accuracies(settings, model, split, protocol, tasks=tasks, every_step=every, devices=devices)
    seconds = time.monotonic() - started
    trajectory = values if every else values[:, None]
    distinct = count_distinct(*tasks)
    result = {
        **protocol_facts(settings, protocol, step), **run_data.facts(dataset, trained),
        "episodes": content, "distinct_tasks": distinct, **_interval(trajectory[:, -1], distinct),
        "seconds": round(seconds, 2), **environment.device_facts(devices),
    }  # fmt: skip
    own = None if weights else build.protocol(config.read(run.config))
    if own is None:
        result["checkpoint_by"] = f"weight file {Path(weights).name}"
    elif with_way(protocol.inner, 0) != with_way(own.inner, 0):
        result["inner_by"] = "command line"  # nobody knows on which tasks it was chosen
    if episodes:
        result["seed"] = episodes.facts["seed"]
    if every:
        result["accuracy_by_step"] = [_interval(column, distinct) for column in trajectory.T]
        result["accuracy_by_step_note"] = _step_warning(result["split"])
    if not hosts.is_first():
        return result
    is_own = episodes is None and protocol == own and not other_data
    named = {name: result[name] for name in ("dataset", "fingerprint")} if other_data else {}
    sizes = {"way": result["way"], "shot": result["shot"], "episodes": content if episodes else "", **named}
    _write(run, split.name, result, trajectory, is_own, sizes)
    return result


def accuracies(
    settings: Mapping[str, Any], model: Model, split: Split, protocol: Protocol, **options: Any
) -> np.ndarray:
    """`evaluation.evaluate_tasks` on a split, with the batch sizes of the config's `runtime` group.

    Args:
      settings: the run's config.
      model: the network.
      split: where the tasks come from.
      protocol: tasks and inner loop.
      **options: further arguments of `evaluate_tasks`: `tasks`, `every_step`, `outcome`, `devices`; a `chunk` replaces
        the config's.

    Returns:
      float32 [num_tasks], or as `options` have it.
    """
    if not (protocol.flips or protocol.crops):  # views of images, not of maps
        model, split = maps.in_place_of_images(settings, model, split)
    runtime = settings["runtime"]
    sizes = {"embed_batch": runtime["embed_batch"], "chunk": runtime["task_chunk"]}
    return evaluate_tasks(model, split.images, split.table(), protocol, **{**sizes, **options})


def _interval(values: np.ndarray, distinct: int) -> dict[str, float | None]:
    mean, ci95 = metrics.mean_interval(values, distinct)
    return {"accuracy": mean, "ci95": ci95}


def protocol_facts(settings: ConfigDict, protocol: Any, step: int) -> dict[str, Any]:
    """What is reported beside a result: the tasks, the inner loop, the network."""
    transductive = settings.meta.batch_norm == "batch"
    return {
        "split": settings.evaluate.split, "num_tasks": protocol.num_tasks,
        "way": protocol.way, "shot": protocol.shot, "query": protocol.query,
        **inner_facts(settings, protocol), "batch_norm": "batch" if transductive else "running",
        "flips": protocol.flips, "crops": protocol.crops, "crop_area": protocol.crop_area if protocol.crops else None,
        "checkpoint_step": step, "checkpoint_by": _chosen_by(settings), "seed": protocol.seed,
    }  # fmt: skip


def inner_facts(settings: ConfigDict, protocol: Any) -> dict[str, Any]:
    """What must be known of the base-learner. One without inner steps has None for them and for their rate."""
    inner = protocol.inner
    head = "zero" if protocol.zero_head else getattr(inner, "start", "learned")
    return {
        "base_learner": settings.inner.base_learner, "head": head, "inner_by": "config",
        "inner_steps": getattr(inner, "steps", None), "inner_lr": getattr(inner, "lr", None),
    }  # fmt: skip


def _chosen_by(settings: ConfigDict) -> str:
    """What chose the checkpoint. The test split cannot have: training never opens it."""
    phase = settings.pretrain if settings.meta.learn == "none" else settings.meta
    by_tasks = phase.select == "best" and phase.val_every and phase.val_tasks
    return "validation" if by_tasks else "last step"


def _step_warning(split: str) -> str:
    """The note beside accuracies by inner step. Validation tasks need none: they are there to choose a step."""
    return "" if split == "val" else BY_STEP


def _write(run: workdir.Workdir, split: str, result: Any, trajectory: np.ndarray, is_own: bool, sizes: Any) -> None:
    path = run.evaluation(split, "json", **sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json_atomic(path, result)
    if is_own:
        workdir.write_json_atomic(run.evaluation(split, "json"), result)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    last = range(trajectory.shape[1])[-1]
    names = [f"accuracy{step}" for step in range(last)] if last else []
    rows.writerow(["task", *names, "accuracy"])
    rows.writerows([task, *map(float, row)] for task, row in enumerate(trajectory))
    workdir.write_bytes_atomic(run.evaluation(split, "csv", **sizes), text.getvalue().encode())


def describe(result: Mapping[str, Any]) -> str:
    """The printed line: a result with its protocol."""
    figure = metrics.in_percent(result["accuracy"], result["ci95"])
    return protocol_line(result, f"{figure} % ({metrics.describe_chance(1 / result['way'])})")


def protocol_line(facts: Mapping[str, Any], figure: str = "") -> str:
    """The protocol of a result in one line; no result is printed without it.

    Args:
      facts: `protocol_facts`, the facts of the data, `episodes` and `distinct_tasks`, as an evaluation's JSON has them.
      figure: where it is given, it stands within the line.
    """
    return (
        f"{_tasks(facts, run_data.describe(facts), figure)} ({counted(facts['query'], 'query')} a class, "
        f"{inner_loop(facts)}, batch norm: {facts['batch_norm']}, {facts['head']} head, checkpoint "
        f"{facts['checkpoint_step']} by {facts['checkpoint_by']}, seed {facts['seed']}, "
        f"episodes {facts['episodes'][:12]}){caveats(facts)}"
    )


def shared_protocol_line(facts: Mapping[str, Any], digits: int | None = 12) -> str:
    """The part of a protocol that compared runs have in common; `digits` of each hash, None for all."""
    data = f"{facts['dataset']} {facts['fingerprint'][:digits]}"
    return (
        f"{_tasks(facts, data)} ({metrics.describe_chance(1 / facts['way'])}, "
        f"{counted(facts['query'], 'query')} a class, batch norm: {facts['batch_norm']}, "
        f"episodes {facts['episodes'][:digits]})"
    )


def inner_loop(facts: Mapping[str, Any]) -> str:
    """The inner loop of a result as text, and who chose it if not the config."""
    by = "" if facts["inner_by"] == "config" else f" by {facts['inner_by']}"
    name = facts.get("base_learner", "linear")  # files from before there were others
    steps = "" if facts["inner_steps"] is None else f"{facts['inner_steps']} inner steps at {facts['inner_lr']}{by}"
    return ", ".join(part for part in (steps, "" if name == "linear" else name) if part)


def caveats(facts: Mapping[str, Any]) -> str:
    """The end of a line about a result: the caveats of its data."""
    return "".join(f"; caveat: {caveat}" for caveat in facts["caveats"])


def _tasks(facts: Mapping[str, Any], data: str, figure: str = "") -> str:
    over = f": {figure} over " if figure else ", "
    tasks = metrics.describe_tasks(facts["num_tasks"], facts["distinct_tasks"])
    return f"{facts['split']} {facts['way']}-way {facts['shot']}-shot{over}{tasks} of {data}"


def with_episodes(settings: ConfigDict, episodes: Frozen, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """A copy of a config whose `evaluate` group has the sizes of a file of episodes.

    Raises:
      ConfigError: `changes`, the sizes on the command line, has another value than the file.
    """
    settings = ConfigDict(settings.to_dict())
    facts = {name: episodes.facts[name] for name in ("split", "num_tasks", "way", "shot", "query")}
    for name, value in (changes or {}).items():
        if facts[name] != value:
            raise ConfigError(f"--{name}={value}, but the file of episodes has {facts[name]}; leave the flag out")
    settings.evaluate.update(facts)
    return settings

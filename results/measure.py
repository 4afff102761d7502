"""A row of the tables: a trained network, tested on frozen tasks."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import ablation, config, evaluation, frozen_episodes, metrics, workdir
from mtl_jax.config import build, rules
from mtl_jax.data import Dataset, Split
from mtl_jax.episodes import count_distinct
from mtl_jax.evaluate import choose, network
from mtl_jax.evaluation import Model, Protocol, Tasks, evaluate_tasks, sample_all
from mtl_jax.reference_weights import kept_networks
from mtl_jax.reference_weights.kept_networks import Kept
from results.records import FOLDER

TASKS = (600, 10_000)  # the first of the same list of tasks
VALIDATION_TASKS = 2000
CHUNK = 200  # tasks adapted at once


class Measured(NamedTuple):
    """Accuracies [10,000] on the test tasks, the protocol, and the data set's fingerprint.

    hashes, distinct: the hash and the number of distinct ones, of the first 600 tasks and of all.
    """

    accuracies: np.ndarray
    protocol: Protocol
    hashes: tuple[str, ...]
    distinct: tuple[int, ...]
    fingerprint: str


def load(row: str, path: str, dataset: Dataset, *, way: int, shot: int) -> Kept:
    """The network of a run as a row of the ablation has it; a row that learns nothing is the run's pre-training.

    Its config gets the row's inner loop: rate and steps from one grid for all rows, chosen on validation tasks.
    """
    place = workdir.Workdir(path)
    settings = config.read(place.config).copy_and_resolve_references()
    settings.unlock()
    if ablation.ROWS[row].learn == "none":
        settings.meta.learn = "none"
    settings.evaluate.update({"way": way, "shot": shot, "num_tasks": TASKS[-1]})
    settings.runtime.task_chunk = CHUNK
    images = dataset.splits["val"].images
    step, model = network.trained(settings, place, images.shape[1:])
    chosen = choose_inner(model, dataset, build.protocol(settings)).inner
    settings.evaluate.update({"inner_lr": float(f"{chosen.lr:.6g}"), "inner_steps": chosen.steps})
    return Kept(config.to_json(settings), step, images.shape[1:], model)


def reopen(record: Mapping[str, Any], data: Path) -> tuple[Kept, Dataset]:
    """The kept network of a measured row, and its data set from `data`, a folder with a folder a data set."""
    kept = kept_networks.read(FOLDER / record["weights"])
    return kept, _dataset(json.dumps({**kept.settings["data"], "path": str(data / record["data"])}))


@functools.lru_cache
def _dataset(settings: str) -> Dataset:
    return build.dataset(json.loads(settings))


def choose_inner(model: Model, dataset: Dataset, protocol: Protocol, factors: Sequence[float] = ()) -> Protocol:
    """The protocol with the inner loop that 2,000 validation tasks choose; see `evaluate.choose`."""
    return choose_by(protocol, on_bank(model, dataset.splits["val"], protocol), factors)


def choose_by(protocol: Protocol, score: Callable[..., np.ndarray], factors: Sequence[float] = ()) -> Protocol:
    """The same by `score`: (protocol, every_step=True) -> accuracies on validation tasks after every step."""
    tried = protocol._replace(num_tasks=VALIDATION_TASKS)
    rates = [factor * protocol.inner.lr for factor in factors or ablation.FACTORS]
    chosen = choose.choose_inner(tried, functools.partial(score, every_step=True), rates)
    return protocol._replace(inner=chosen.inner)


def on_bank(model: Model, split: Split, protocol: Protocol) -> Callable[..., np.ndarray]:
    """(protocol, ...) -> accuracies on a split's tasks, its images embedded once for all inner loops."""
    head = evaluation.initial_head(model.learned["head"], protocol)
    bank, further = evaluation.banks(model, split.images, protocol)
    return lambda tried, **options: evaluation.adapt_on_bank(
        head, bank, further, split.table(), tried, chunk=CHUNK, **options
    )


def test(kept: Kept, dataset: Dataset) -> Measured:
    """The network on the test tasks of its config's seed."""
    split, protocol = dataset.splits["test"], build.protocol(kept.settings)
    tasks = sample_all(split.table(), protocol)
    parts = [Tasks(*(part[:count] for part in tasks)) for count in TASKS]
    hashes = tuple(frozen_episodes.content_hash(split, part) for part in parts)
    accuracies = evaluate_tasks(kept.model, split.images, split.table(), protocol, tasks=tasks)
    distinct = tuple(count_distinct(*part) for part in parts)
    return Measured(accuracies, protocol, hashes, distinct, dataset.fingerprint)


def figures(measured: Measured, first: Measured | None) -> list[dict[str, Any]]:
    """Accuracy, interval and hash over 600 and over 10,000 tasks, and the paired difference to the `first` row."""
    found = []
    for count, digest, distinct in zip(TASKS, measured.hashes, measured.distinct, strict=True):
        rows = measured.accuracies[:count], None if first is None else first.accuracies[:count]
        found.append({"num_tasks": count, "distinct_tasks": distinct, "episodes": digest, **compared(*rows)})
    return found


def compared(accuracies: np.ndarray, first: np.ndarray | None) -> dict[str, float | None]:
    """Accuracy and interval of a row, and the paired difference to the first, if there is one."""
    mean, ci95 = metrics.mean_interval(accuracies)
    entry = {"accuracy": mean, "ci95": ci95}
    if first is not None:
        difference = metrics.paired_difference(accuracies, first)
        entry |= {"difference": difference.mean, "difference_ci95": difference.ci95}
    return entry


def changed(settings: ConfigDict, options: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with other values by dotted key."""
    settings = settings.copy_and_resolve_references()
    for key, value in options.items():
        group, name = key.rsplit(".", 1)
        rules.lookup(settings, group)[name] = value
    return settings


def facts(kept: Kept, measured: Measured) -> Mapping[str, Any]:
    """What a figure must not stand without."""
    settings, protocol = kept.settings, measured.protocol
    return {
        "data": settings["data"]["name"], "fingerprint": measured.fingerprint, "backbone": settings["backbone"]["name"],
        "width": settings["backbone"]["width"], "seed": settings["seed"], "image_shape": list(kept.image_shape),
        "way": protocol.way, "shot": protocol.shot, "query": protocol.query, "evaluate_seed": protocol.seed,
        "inner_lr": protocol.inner.lr, "inner_steps": protocol.inner.steps,
        "inner_chosen": f"by {VALIDATION_TASKS} validation tasks from {ablation.FACTORS} times the config's rate",
        "head": "zero" if protocol.zero_head else "learned", "batch_norm": "running (inductive)",
        "checkpoint_step": kept.step, "meta_training": settings["meta"]["learn"] != "none",
    }  # fmt: skip


def weights_path(name: str) -> str:
    """Where a row's network lies, relative to the folder of results."""
    return f"weights/{name}.safetensors"


def keep(kept: Kept, path: Any) -> str:
    """Writes the network and returns its fingerprint."""
    kept_networks.write(path, kept)
    return kept_networks.digest(path)

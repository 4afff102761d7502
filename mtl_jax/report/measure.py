"""The numbers of a report: every answer of a run on its test tasks, and the figures that follow from them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config, evaluate, frozen_episodes
from mtl_jax.config import build, run_data
from mtl_jax.data import Dataset, Split
from mtl_jax.episodes import count_distinct
from mtl_jax.evaluate import network
from mtl_jax.evaluate.run import protocol_facts, with_episodes
from mtl_jax.evaluation import Model, Protocol, Tasks
from mtl_jax.frozen_episodes import Frozen
from mtl_jax.learners import Inner
from mtl_jax.meta import backbone_params
from mtl_jax.types import Array
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints
from mtl_jax.workdir.writers import read_jsonl

MAP_CLASSES, MAP_IMAGES = 8, 40


class Tested(NamedTuple):
    """A run's answers on test tasks.

    place, settings: the workdir and its config. dataset, split, tasks, protocol: what it was tested on. model: the
    network. facts: what must stand beside a figure, as in an evaluation's JSON. answers: int [T, steps + 1, N Q], the
    answered class 0..N-1 after 0, 1, ... inner steps; one column without inner steps.
    """

    place: Workdir
    settings: ConfigDict
    dataset: Dataset
    split: Split
    tasks: Tasks
    protocol: Protocol
    model: Model
    facts: dict[str, Any]
    answers: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether each answer is right: bool [T, steps + 1, N Q]."""
        return self.answers == np.repeat(np.arange(self.protocol.way), self.protocol.query)

    @property
    def accuracies(self) -> np.ndarray:
        """The query accuracy of each task: [T]."""
        return self.correct[:, -1].mean(-1)


class Pair(NamedTuple):
    """Two classes, the fraction of queries answered with the other class, and how many queries of tasks with both."""

    first: int
    second: int
    rate: float
    queries: int


def settings_of(path: str | Path, changes: Mapping[str, Any], episodes: Frozen | None, data: str = "") -> ConfigDict:
    """A workdir's config with `changes` to its `evaluate` group, or with the sizes of a file of episodes.

    `data` is NAME:PATH of other data than the run's, or empty.

    Raises:
      ConfigError: no such run, a value that is not allowed, or a change that contradicts the file.
    """
    place = Workdir(path)
    settings = config.read(place.config)
    if data:
        settings = run_data.with_other(settings, place, data)
    settings.evaluate.update(changes)
    if episodes:
        settings = with_episodes(settings, episodes, changes)
    config.validate(settings)
    return settings


def planned_facts(settings: ConfigDict) -> dict[str, Any]:
    """The protocol that a run will be tested by, known before anything is computed."""
    return protocol_facts(settings, build.protocol(settings), 0)


def measure(settings: ConfigDict, path: str | Path, episodes: Frozen | None = None, other_data: bool = False) -> Tested:
    """Tests the network of a workdir and keeps every answer.

    Raises:
      MtlError: as `evaluate.evaluate`.
    """
    place, protocol = Workdir(path), build.protocol(settings)
    dataset, trained = run_data.opened(settings, place, settings.evaluate.split, other=other_data)
    split = dataset.split(settings.evaluate.split)
    step, model = network.trained(settings, place, split.images.shape[1:])
    tasks = frozen_episodes.choose_tasks(dataset, split, protocol, episodes)
    is_stepped = isinstance(protocol.inner, Inner)
    answers = evaluate.accuracies(
        settings, model, split, protocol, tasks=tasks, every_step=is_stepped, outcome=_short_answers,
        chunk=min(200, settings.runtime.task_chunk),
    )  # fmt: skip
    answers = answers if is_stepped else answers[:, None]
    facts = {
        **protocol_facts(settings, protocol, step),
        "episodes": frozen_episodes.content_hash(split, tasks), "distinct_tasks": count_distinct(*tasks),
        **run_data.facts(dataset, trained),
    }  # fmt: skip
    return Tested(place, settings, dataset, split, tasks, protocol, model, facts, answers)


def freeze(tested: Tested) -> Frozen:
    """The tasks that a run was tested on, to test another run on them."""
    facts = {"dataset": tested.dataset.name, "fingerprint": tested.dataset.fingerprint, "seed": tested.facts["seed"]}
    return frozen_episodes.freeze(tested.split, tested.tasks, **facts)


def _short_answers(logits: Array, labels: Array) -> Array:
    return logits.argmax(-1).astype(jnp.int16)


def class_counts(tested: Tested) -> np.ndarray:
    """How often queries of class i were answered with class j: int [C, C]."""
    classes = tested.split.labels[tested.tasks.query[:, :, 0]]  # [T, N]
    truth = np.repeat(classes, tested.protocol.query, axis=1)
    answered = np.take_along_axis(classes, tested.answers[:, -1].astype(np.int64), axis=1)
    counts = np.zeros((len(tested.split.class_names),) * 2, np.int64)
    np.add.at(counts, (truth, answered), 1)
    return counts


def met_counts(tested: Tested) -> np.ndarray:
    """How many queries of class i were in a task that had class j: int [C, C]; the diagonal has all of a class."""
    classes = tested.split.labels[tested.tasks.query[:, :, 0]]
    met = np.zeros((len(tested.split.class_names),) * 2, np.int64)
    np.add.at(met, (classes[:, :, None], classes[:, None, :]), tested.protocol.query)
    return met


def confusion(tested: Tested) -> np.ndarray:
    """Of the queries of class i in tasks that had class j, the fraction answered j: [C, C]; NaN for none."""
    counts, met = class_counts(tested), met_counts(tested)
    return np.divide(counts, met, out=np.full(counts.shape, np.nan), where=met > 0)


def hardest_pairs(tested: Tested, count: int = 6) -> list[Pair]:
    """The classes that are most often taken for each other, among those that were together in two tasks at least."""
    counts, met = class_counts(tested), met_counts(tested)
    both, wrong = np.triu(met + met.T, 1), np.triu(counts + counts.T, 1)
    enough = both >= 2 * 2 * tested.protocol.query
    rate = np.where(enough & (wrong > 0), wrong / np.maximum(both, 1), 0)
    order = np.argsort(-rate, axis=None, kind="stable")[:count]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, rate.shape), strict=True)]
    return [Pair(i, j, float(rate[i, j]), int(both[i, j])) for i, j in pairs if rate[i, j] > 0]


def ranked_classes(tested: Tested) -> list[tuple[int, float, int]]:
    """(class, accuracy, queries) of every class that was tested, the hardest first."""
    counts = class_counts(tested)
    queries = counts.sum(1)
    seen = np.flatnonzero(queries)
    accuracy = np.diag(counts)[seen] / queries[seen]
    return [(int(seen[i]), float(accuracy[i]), int(queries[seen[i]])) for i in np.argsort(accuracy, kind="stable")]


def feature_map(tested: Tested) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first two principal components of the features of some classes' images; the classes range from hard to easy.

    Returns:
      (points [M, 2], classes [M], fraction of the variance on each axis [2]).
    """
    ranked = [c for c, _, _ in ranked_classes(tested)]
    chosen = [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, MAP_CLASSES).astype(int))]
    table = tested.split.table()
    rows = np.concatenate([table.indices[c, : table.counts[c]][:MAP_IMAGES] for c in chosen])
    features = _embed(tested.model, tested.split.images[rows])
    centred = features - features.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    share = np.square(s[:2]) / max(np.square(s).sum(), 1e-30)
    return u[:, :2] * s[:2], tested.split.labels[rows], share


def _embed(model: Model, images: np.ndarray) -> np.ndarray:
    mode = "batch" if model.embed.batch_statistics == "batch" else "running"
    embed, stats = model.embed._replace(batch_statistics=mode), model.frozen.batch_stats
    return np.asarray(embed(backbone_params(model.learned, model.frozen), stats, images)[0], np.float64)


def extreme_tasks(tested: Tested, count: int = 2) -> tuple[list[int], list[int]]:
    """The numbers of the (best, worst) tasks."""
    order = np.argsort(tested.accuracies, kind="stable")
    return order[::-1][:count].tolist(), order[:count].tolist()


def costs(timing: Path) -> dict[str, dict[str, float]]:
    """By phase: `seconds` over all starts of a run, and its peaks of memory in megabytes where they were recorded."""
    by_phase: dict[str, dict[str, float]] = defaultdict(dict)
    before: dict[str, float] = defaultdict(float)
    if not timing.exists():
        return {}
    for record in read_jsonl(timing):
        for name, value in record.items():
            phase, _, what = name.partition("/")
            if what == "seconds":  # counted from a process's start: less than before means another start
                total = by_phase[phase].get(what, 0.0)
                by_phase[phase][what] = total + value - (before[phase] if value >= before[phase] else 0)
                before[phase] = value
            elif what.endswith("memory_mb"):
                by_phase[phase][what] = max(value, by_phase[phase].get(what, 0))
    return dict(by_phase)


def warnings(place: Workdir) -> list[str]:
    """What was told of a run's training while it ran, each line once."""
    newest = (Checkpoints(place.checkpoints(phase)).newest_metadata() for phase in ("pretrain", "meta"))
    return [line for metadata in newest for line in metadata.get("health", {}).get("told", {}).values()]


def commands(place: Workdir) -> list[dict[str, Any]]:
    """The commands that were run in a workdir, with their times and versions."""
    return list(read_jsonl(place.commands)) if place.commands.exists() else []


def class_names(tested: Tested, classes: Sequence[int]) -> list[str]:
    """The names of classes of the split."""
    return [tested.split.class_names[c] for c in classes]

"""The numbers of a report: every answer of a run on its test tasks, and what follows from them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config, evaluate, frozen_episodes
from mtl_jax.config import build, run_data
from mtl_jax.data import Dataset, Split
from mtl_jax.embed import feature_width
from mtl_jax.episodes import count_distinct
from mtl_jax.errors import MtlError
from mtl_jax.evaluate import network
from mtl_jax.evaluate.run import protocol_facts, with_episodes
from mtl_jax.evaluation import Model, Protocol, Tasks
from mtl_jax.frozen_episodes import Frozen
from mtl_jax.learners import Inner, has_learned_classes
from mtl_jax.meta import Frozen as Pretrained
from mtl_jax.meta import backbone_params
from mtl_jax.types import Array
from mtl_jax.workdir import Workdir

MAP_CLASSES, MAP_IMAGES = 8, 40
_logger = logging.getLogger(__name__)


class Tested(NamedTuple):
    """A run's answers on test tasks.

    place, settings: the workdir and its config. dataset, split, tasks, protocol: what it was tested on. model: the
    network. facts: what is reported beside a result, as in an evaluation's JSON. answers: int [T, steps + 1, N Q], the
    answered class 0..N-1 after 0, 1, ... inner steps; one column without inner steps. baseline: likewise, of the
    pre-trained network with a fresh head and the same inner loop; None where nothing was meta-trained, or where the
    pre-trained network is gone.
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
    baseline: np.ndarray | None = None

    @property
    def backbone(self) -> str:
        """The backbone in a word or two."""
        name, width = self.settings.backbone.name, self.settings.backbone.width
        return name if width == 1 else f"{name} (width {width:g})"

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.protocol.way

    @property
    def correct(self) -> np.ndarray:
        """Whether each answer is right: bool [T, steps + 1, N Q]."""
        return self._is_right(self.answers)

    @property
    def accuracies(self) -> np.ndarray:
        """The query accuracy of each task: [T]."""
        return self.correct[:, -1].mean(-1)

    @property
    def baseline_correct(self) -> np.ndarray | None:
        """As `correct`, of the baseline."""
        return None if self.baseline is None else self._is_right(self.baseline)

    @property
    def baseline_accuracies(self) -> np.ndarray | None:
        """As `accuracies`, of the baseline."""
        return None if self.baseline is None else self._is_right(self.baseline[:, -1]).mean(-1)

    def _is_right(self, answers: np.ndarray) -> np.ndarray:
        return answers == np.repeat(np.arange(self.protocol.way), self.protocol.query)


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
    answers = _answers(settings, model, split, protocol, tasks)
    facts = {
        **protocol_facts(settings, protocol, step),
        "episodes": frozen_episodes.content_hash(split, tasks), "distinct_tasks": count_distinct(*tasks),
        **run_data.facts(dataset, trained),
    }  # fmt: skip
    baseline = _baseline(settings, place, model, split, protocol, tasks)
    return Tested(place, settings, dataset, split, tasks, protocol, model, facts, answers, baseline)


def _answers(settings: ConfigDict, model: Model, split: Split, protocol: Protocol, tasks: Tasks) -> np.ndarray:
    """The answers [T, steps + 1, N Q] of a network; see `Tested`."""
    is_stepped = isinstance(protocol.inner, Inner)
    answers = evaluate.accuracies(
        settings, model, split, protocol, tasks=tasks, every_step=is_stepped, outcome=_short_answers,
        chunk=min(200, settings.runtime.task_chunk),
    )  # fmt: skip
    return answers if is_stepped else answers[:, None]


def _baseline(
    settings: ConfigDict, place: Workdir, model: Model, split: Split, protocol: Protocol, tasks: Tasks
) -> np.ndarray | None:
    if settings.meta.learn == "none":
        return None
    try:
        pretrained = Pretrained(*network.pretrained(settings, place))
    except MtlError as error:
        _logger.warning("no baseline of pre-training alone: %s", error)
        return None
    head = build.fresh_head(settings, feature_width(model.embed, *pretrained, split.images.shape[1:]))
    # A random head favours some classes; cosines cannot start from zeros.
    can_be_zero = has_learned_classes(protocol.inner) and getattr(protocol.inner, "head", "") == "linear"
    fair = protocol._replace(zero_head=True) if can_be_zero else protocol
    return _answers(settings, Model(model.embed, {"head": head}, pretrained), split, fair, tasks)


def freeze(tested: Tested) -> Frozen:
    """The tasks that a run was tested on, to test another run on them."""
    facts = {"dataset": tested.dataset.name, "fingerprint": tested.dataset.fingerprint, "seed": tested.facts["seed"]}
    return frozen_episodes.freeze(tested.split, tested.tasks, **facts)


def _short_answers(logits: Array, labels: Array) -> Array:
    return logits.argmax(-1).astype(jnp.int16)


def class_counts(tested: Tested, answers: np.ndarray | None = None) -> np.ndarray:
    """How often queries of class i were answered with class j: int [C, C]; `answers` are the network's own if None."""
    answers = tested.answers if answers is None else answers
    classes = tested.split.labels[tested.tasks.query[:, :, 0]]  # [T, N]
    truth = np.repeat(classes, tested.protocol.query, axis=1)
    answered = np.take_along_axis(classes, answers[:, -1].astype(np.int64), axis=1)
    counts = np.zeros((len(tested.split.class_names),) * 2, np.int64)
    np.add.at(counts, (truth, answered), 1)
    return counts


def met_counts(tested: Tested) -> np.ndarray:
    """How many queries of class i were in a task that had class j: int [C, C]; the diagonal has all of a class."""
    classes = tested.split.labels[tested.tasks.query[:, :, 0]]
    met = np.zeros((len(tested.split.class_names),) * 2, np.int64)
    np.add.at(met, (classes[:, :, None], classes[:, None, :]), tested.protocol.query)
    return met


def hardest_pairs(tested: Tested, count: int = 6) -> list[Pair]:
    """The classes that are most often taken for each other, among those that were together in two tasks at least."""
    counts, met = class_counts(tested), met_counts(tested)
    both, wrong = np.triu(met + met.T, 1), np.triu(counts + counts.T, 1)
    enough = both >= 2 * 2 * tested.protocol.query
    rate = np.where(enough & (wrong > 0), wrong / np.maximum(both, 1), 0)
    order = np.argsort(-rate, axis=None, kind="stable")[:count]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, rate.shape), strict=True)]
    return [Pair(i, j, float(rate[i, j]), int(both[i, j])) for i, j in pairs if rate[i, j] > 0]


def ranked_classes(tested: Tested, answers: np.ndarray | None = None) -> list[tuple[int, float, int]]:
    """(class, accuracy, queries) of every class that was tested, the hardest first; `answers` as in `class_counts`."""
    counts = class_counts(tested, answers)
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


def class_names(tested: Tested, classes: Sequence[int]) -> list[str]:
    """The names of classes of the split."""
    return [tested.split.class_names[c] for c in classes]

"""Meta-test: accuracy over many few-shot tasks. If an image's features do not depend on its task, tasks share them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import base_learner, episodes, parallel, support_views
from mtl_jax.backbone_adaptation import Adaptation, adapted_outcomes
from mtl_jax.embed import Embedder, for_evaluation, statistics_of
from mtl_jax.errors import ConfigError
from mtl_jax.learners import BaseLearner, Inner, check_inner, loss_weights, moved_part, with_way
from mtl_jax.meta import Frozen, backbone_params
from mtl_jax.metrics import accuracy
from mtl_jax.parallel import Devices, on_cpu
from mtl_jax.support_views import PLAIN, View
from mtl_jax.types import Array, ClassTable, Episode, Params

OWN_FEATURES = 2  # tasks embedded at once if each has its own features: their images must fit into memory
FRESH = 2**30  # number of the first task that validation in training never draws


class Protocol(NamedTuple):
    """What a test result depends on besides the model: the tasks and the inner loop.

    way, shot, query: N, K and Q per class. num_tasks, seed: task t has the key fold_in(key(seed), t).
    inner: the base-learner at test, then for `way` classes. flips: mirror images added to the support set, the loss
    scaled as without them.
    zero_head: start from a zero head; needed for another way than the trained one. crops: random crops of each support
    image added to the support set. crop_area: a crop's smallest area, as a fraction of the image's.
    """

    way: int
    shot: int
    query: int
    num_tasks: int
    seed: int
    inner: BaseLearner
    flips: bool = False
    zero_head: bool = False
    crops: int = 0
    crop_area: float = 0.5


class Model(NamedTuple):
    """A trained network: how its backbone runs, its learned groups, and the frozen rest."""

    embed: Embedder
    learned: Params
    frozen: Frozen


class Tasks(NamedTuple):
    """Tasks as positions of images in a split: support int [T, N, K], query int [T, N, Q]."""

    support: np.ndarray
    query: np.ndarray


Outcome = Callable[[Array, Array], Array]  # (logits [..., N Q, N], labels [N Q]) -> what is returned of a task


class _Static(NamedTuple):
    """What compiled functions depend on besides arrays; the arguments of `evaluate_tasks`.

    one_device: tasks are not spread over several devices, so they may be taken some at a time.
    """

    protocol: Protocol
    every_step: bool
    outcome: Outcome
    one_device: bool = True


def embed_all(
    model: Model, images: np.ndarray, *, batch: int = 256, view: View = PLAIN, devices: Devices = None
) -> Array:
    """The features of all images in a view: uint8 [M, H, W, C] -> float32 [M, F], embedded `batch` at a time.

    For BN by running averages only: then an image's features do not depend on its batch. `devices` as in
    `evaluate_tasks`.
    """
    weights = backbone_params(model.learned, model.frozen), model.frozen.batch_stats
    weights = parallel.replicate(weights, devices)

    def run(start, count):
        part = np.asarray(images[start : start + count])
        part = np.concatenate([part, np.zeros((count - len(part), *part.shape[1:]), part.dtype)])
        return _embed(model.embed, *weights, parallel.spread(support_views.see(view, part, start), devices))

    return jnp.asarray(parallel.in_chunks(run, len(images), batch, devices))


def banks(model: Model, images: np.ndarray, protocol: Protocol, **options: Any) -> tuple[Array, Array | None]:
    """Features of all images, [M, F], and of the protocol's further views of them, [V, M, F] or None.

    `options` as in `embed_all`.
    """
    views = support_views.further(protocol.flips, protocol.crops, protocol.crop_area)
    further = [embed_all(model, images, view=view, **options) for view in views]
    return embed_all(model, images, **options), jnp.stack(further) if further else None


@functools.partial(jax.jit, static_argnums=0)
def _embed(embed: Embedder, params: Params, batch_stats: Params, images: Array) -> Array:
    return embed(params, batch_stats, images)[0]


def evaluate_tasks(
    model: Model, images: np.ndarray, table: ClassTable, protocol: Protocol, *,
    tasks: Tasks | None = None, every_step: bool = False, outcome: Outcome = accuracy, embed_batch: int = 256,
    chunk: int = 1000, devices: Devices = None,
) -> np.ndarray:  # fmt: skip
    """Query accuracy of every task of a protocol.

    With running averages each image is embedded once, and all tasks share its features. Under batch statistics, or if
    the inner loop moves the backbone, each task has its own features (`adapt_per_task`).

    Args:
      model: the network; 'train' mode is evaluated by running averages, as in the PyTorch code.
      images: uint8 [M, H, W, C], the split's.
      table: the split's classes.
      protocol: tasks and inner loop.
      tasks: use these tasks instead of drawing them by the protocol's seed.
      every_step: return the accuracy after each of 0, 1, ..., steps updates.
      outcome: what to return of a task instead of its accuracy, e.g. `answers`.
      embed_batch: images embedded at once.
      chunk: tasks of a compiled call; at most `OWN_FEATURES` if each has its own features.
      devices: spreads images and tasks over these devices. With several processes all of them must call this with the
        same arguments, and each gets all results. None: JAX's default device.

    Returns:
      float32 [num_tasks], or [num_tasks, steps + 1] with `every_step`; further axes if `outcome` has some.

    Raises:
      ConfigError: crops, but tasks have their own features; an inner loop that contradicts itself; a learned head of
        another way than the protocol's; `tasks` of other sizes or another number than the protocol's.
      DataError: a table that is too small for the tasks, or positions outside the images.
    """
    check_inner(protocol.inner)
    head, moved = initial_head(model.learned.get("head", {}), protocol), moved_part(protocol.inner)
    if every_step and not isinstance(protocol.inner, Inner):
        raise ConfigError(f"every_step: {type(protocol.inner).__name__} has no inner steps")
    support_views.check_crops(protocol.crops, moved, statistics_of(model.embed))
    options: dict[str, Any] = {"tasks": tasks, "every_step": every_step, "outcome": outcome, "devices": devices}
    model = model._replace(embed=for_evaluation(model.embed))
    if moved != "head" or statistics_of(model.embed) == "batch":
        return adapt_per_task(model, head, images, table, protocol, chunk=min(chunk, OWN_FEATURES), **options)
    bank, further = banks(model, images, protocol, batch=embed_batch, devices=devices)
    return adapt_on_bank(head, bank, further, table, protocol, chunk=chunk, **options)


def answers(logits: Array, labels: Array) -> Array:
    """The predicted class 0..N-1 of every query image; for `outcome`."""
    return logits.argmax(-1)


def initial_head(head: Params, protocol: Protocol) -> Params:
    """What the base-learner learned, or that with a zero head in it if the protocol says so.

    Raises:
      ConfigError: the learned head has another way than the protocol, or its rates are for another number of steps.
    """
    inner = protocol.inner
    if not isinstance(inner, Inner):
        return head
    for name in ("lr", "ensemble"):
        if name in head and len(head[name]) != inner.steps:
            raise ConfigError(
                f"the learned {name} is of {len(head[name])} inner steps, but the inner loop has {inner.steps}"
            )
    if inner.start != "learned":
        return head
    features, way = head["kernel"].shape
    if not protocol.zero_head and way != protocol.way:
        raise ConfigError(f"the learned head has {way} classes, but tasks are {protocol.way}-way: set zero_head")
    if not protocol.zero_head:
        return head
    if inner.head == "cosine":
        raise ConfigError(
            f"the learned cosine head has {way} classes, but tasks are {protocol.way}-way, and cosines cannot start "
            "from zeros: train with inner.start 'prototypes'"
        )
    return {**head, "kernel": jnp.zeros((features, protocol.way)), "bias": jnp.zeros(protocol.way)}


def sample(table: ClassTable, protocol: Protocol, start: int | Array, count: int) -> tuple[Array, Array]:
    """Tasks `start` .. `start + count - 1` of a protocol: positions (support [T, N, K], query [T, N, Q])."""
    keys = episodes.numbered_keys(jax.random.key(protocol.seed), start + jnp.arange(count))
    return episodes.sample_tasks(keys, table, way=protocol.way, shot=protocol.shot, query=protocol.query)


def sample_all(table: ClassTable, protocol: Protocol, *, chunk: int = 1000, first: int = 0) -> Tasks:
    """All tasks of a protocol, from number `first` on, as NumPy arrays."""
    draw = _drawer(table, protocol, None, None)
    drawn = [draw(first + start, min(chunk, protocol.num_tasks)) for start in range(0, protocol.num_tasks, chunk)]
    return Tasks(*(np.concatenate(part)[: protocol.num_tasks] for part in zip(*drawn, strict=True)))


def _drawer(
    table: ClassTable, protocol: Protocol, tasks: Tasks | None, images: int | None
) -> Callable[[int, int], Any]:
    """(start, count) -> (support [count, N, K], query [count, N, Q]); beyond the last task they are arbitrary.

    Raises ConfigError and DataError if the tasks cannot be right; `images` is the number of images, if known.
    """
    if images is not None:
        episodes.check_positions(images, *(tasks or [np.max(table.indices, initial=0)]))
    if tasks is not None:
        _check_tasks(tasks, protocol)

        def drawn(start: int, count: int) -> Any:
            return tuple(np.take(part, np.arange(start, start + count), axis=0, mode="wrap") for part in tasks)

        return drawn
    episodes.check_sizes(table, way=protocol.way, shot=protocol.shot, query=protocol.query)
    table, static = ClassTable(*map(jnp.asarray, table)), _without_numbers(protocol)
    return lambda start, count: _sample(static, count, table, protocol.seed, start)


def _check_tasks(tasks: Tasks, protocol: Protocol) -> None:
    """Raises ConfigError unless tasks have the protocol's number and sizes: too few would be repeated."""
    expected = [(protocol.num_tasks, protocol.way, each) for each in (protocol.shot, protocol.query)]
    if [np.shape(part) for part in tasks] != expected:
        shapes = " and ".join(str(np.shape(part)) for part in tasks)
        raise ConfigError(
            f"tasks have shapes {shapes}, expected {expected[0]} and {expected[1]}: the protocol's number of tasks, "
            "way, and shot or query"
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(protocol: Protocol, count: int, table: ClassTable, seed: Any, start: Array) -> tuple[Array, Array]:
    return sample(table, protocol._replace(seed=seed), start, count)


def adapt_on_bank(
    head: Params, bank: Array, further: Array | None, table: ClassTable, protocol: Protocol, *,
    tasks: Tasks | None = None, every_step: bool = False, outcome: Outcome = accuracy, chunk: int = 1000,
    devices: Devices = None,
) -> np.ndarray:  # fmt: skip
    """Accuracy of every task from features that all tasks share.

    Args:
      head: the initial θ.
      bank: [M, F] features of the split's images.
      further: [V, M, F] features of their further views, if any, which are added to the support set.
      table: the split's classes.
      protocol: tasks and inner loop.
      tasks, every_step, outcome, chunk, devices: see `evaluate_tasks`.

    Returns:
      As `evaluate_tasks`.
    """
    draw, lr = _drawer(table, protocol, tasks, len(bank)), _rates(protocol)
    static = _Static(_without_numbers(protocol), every_step, outcome, len(devices or ()) < 2)
    shared = parallel.replicate((head, bank, further), devices)

    def run(start, count):
        return _adapt_chunk(static, *shared, parallel.spread(draw(start, count), devices), lr)

    return parallel.in_chunks(run, protocol.num_tasks, chunk, devices)


def _without_numbers(protocol: Protocol) -> Protocol:
    """The protocol for compiled functions: another rate, seed or number of tasks compiles nothing new."""
    inner = with_way(protocol.inner, protocol.way)
    if isinstance(inner, Inner):
        inner = inner._replace(lr=0.0, first_order=True)  # nothing is differentiated here
    return protocol._replace(num_tasks=0, seed=0, inner=inner)


def _rates(protocol: Protocol) -> Array | None:
    if not isinstance(protocol.inner, Inner):
        return None
    return jnp.asarray(base_learner.step_rates(protocol.inner.lr, protocol.inner.steps), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _adapt_chunk(
    static: _Static, head: Params, bank: Array, further: Array | None, tasks: tuple[Array, Array], lr: Array | None
) -> Array:
    def run(positions):
        support, query = positions
        task = episodes.gather(bank, support, query)
        features = [task.support, *([] if further is None else further[:, support.reshape(-1)])]
        return _adapt_task(static, head, jnp.concatenate(features), task, lr)

    inner = static.protocol.inner
    is_linear = isinstance(inner, Inner) and inner.head == "linear"  # its loop is as fast, and uses all cores
    return parallel.map_tasks(run, tasks) if static.one_device and not is_linear else jax.vmap(run)(tasks)


def _adapt_task(static: _Static, head: Params, support: Array, task: Episode, lr: Any) -> Array:
    """The outcome of one task from features; `support` may have those of further views after the images' own."""
    protocol, inner, options = static.protocol, static.protocol.inner, {}
    labels = jnp.tile(task.support_labels, len(support) // len(task.support_labels))
    if isinstance(inner, Inner):
        inner, options = inner._replace(lr=lr), {"shot": protocol.shot, "trajectory": static.every_step}
    return static.outcome(inner(head, support, labels, task.query, **options), task.query_labels)


def adapt_per_task(
    model: Model, head: Params, images: np.ndarray, table: ClassTable, protocol: Protocol, *,
    tasks: Tasks | None = None, every_step: bool = False, outcome: Outcome = accuracy, chunk: int = OWN_FEATURES,
    devices: Devices = None,
) -> np.ndarray:  # fmt: skip
    """Accuracy of every task, each with its own features.

    This is for batch statistics, where support and query set are a batch each, and for inner loops that move the
    backbone. Arguments and result are as in `evaluate_tasks` and `adapt_on_bank`; `chunk` tasks are embedded at once.
    On a CPU, tasks that move the backbone run one by one, on one device of each process.
    """
    inner, draw, lr = protocol.inner, _drawer(table, protocol, tasks, len(images)), _rates(protocol)
    static = _Static(_without_numbers(protocol), every_step, outcome)
    moved = moved_part(inner)
    if moved != "head" and on_cpu():
        chunk, devices = 1, parallel.one_of_each(devices)
    adaptation = Adaptation(model.embed, moved, outcome, every_step)
    weights = backbone_params(model.learned, model.frozen), model.frozen.batch_stats, head
    weights = parallel.replicate(weights, devices)

    def run(start, count):
        support, query = (np.asarray(part) for part in draw(start, count))
        episode = episodes.gather(np.asarray(images), support, query)
        episode = support_views.with_flips(episode) if protocol.flips else episode
        if moved == "head":
            return _embed_and_adapt(static, model.embed, *weights, parallel.spread(episode, devices), lr)
        rows = loss_weights(episode.support_labels[0], protocol.way, inner.loss_scale, protocol.shot)
        episode = parallel.spread(episode, devices)
        rates = np.broadcast_to(base_learner.step_rates(inner.rates(head), inner.steps), inner.steps)
        return adapted_outcomes(adaptation, *weights, episode, rates=rates, weights=rows)

    return parallel.in_chunks(run, protocol.num_tasks, chunk, devices)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed_and_adapt(
    static: _Static, embed: Embedder, params: Params, batch_stats: Params, head: Params, tasks: Episode, lr: Array
) -> Array:
    def run(task):
        support, _ = embed(params, batch_stats, task.support)
        query, _ = embed(params, batch_stats, task.query)
        return _adapt_task(static, head, support, task._replace(query=query), lr)

    return jax.vmap(run)(tasks)

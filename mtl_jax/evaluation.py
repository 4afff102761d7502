"""Meta-test: accuracy over many few-shot tasks, from shared features where an image's do not depend on its task."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import base_learner, episodes, feature_transform, parallel, support_views
from mtl_jax.backbone_adaptation import adapted_outcome
from mtl_jax.errors import ConfigError
from mtl_jax.meta import Embed, Frozen, Inner, backbone_params, check_inner, loss_weights
from mtl_jax.metrics import accuracy
from mtl_jax.parallel import Devices
from mtl_jax.support_views import PLAIN, View
from mtl_jax.types import Array, ClassTable, Episode, Params

OWN_FEATURES = 2  # tasks embedded at once where each has features of its own: their images have to fit the memory
FRESH = 2**30  # the number of the first task of a split that training's validation draws none of


class Protocol(NamedTuple):
    """What a test figure depends on besides the model: the tasks and the inner loop.

    way, shot, query: N, K, Q per class. num_tasks and seed make the tasks: task t has the key fold_in(key(seed), t).
    inner: the inner loop at test. flips: the support set doubled by its mirror images, the loss scaled as before.
    zero_head: start from a zero head, as any other way than the trained one must. crops: so many random parts of every
    support image, each of at least `crop_area` of it, are in the support set as well.
    """

    way: int
    shot: int
    query: int
    num_tasks: int
    seed: int
    inner: Inner
    flips: bool = False
    zero_head: bool = False
    crops: int = 0
    crop_area: float = 0.5


class Model(NamedTuple):
    """A trained network: the learned groups, the frozen rest, and how the backbone runs."""

    embed: Embed
    learned: Params
    frozen: Frozen


class Tasks(NamedTuple):
    """Tasks by the positions of their images in a split: support int [T, N, K], query int [T, N, Q]."""

    support: np.ndarray
    query: np.ndarray


Outcome = Callable[[Array, Array], Array]  # (logits [..., N Q, N], labels [N Q]) -> what is kept of a task


def embed_all(
    model: Model, images: np.ndarray, *, batch: int = 256, view: View = PLAIN, devices: Devices = None
) -> Array:
    """The features of all images in a view: uint8 [M, H, W, C] -> float32 [M, F], embedded `batch` at a time.

    Only for BN by running averages, with which an image's features do not depend on its neighbours. `devices` as in
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
    """Features [M, F] of all images and, where a protocol has further views of the support set, [V, M, F] of those.

    `options` as in `embed_all`.
    """
    views = support_views.further(protocol.flips, protocol.crops, protocol.crop_area)
    further = [embed_all(model, images, view=view, **options) for view in views]
    return embed_all(model, images, **options), jnp.stack(further) if further else None


@functools.partial(jax.jit, static_argnums=0)
def _embed(embed: Embed, params: Params, batch_stats: Params, images: Array) -> Array:
    return embed(params, batch_stats, images)[0]


def evaluate_tasks(
    model: Model,
    images: np.ndarray,
    table: ClassTable,
    protocol: Protocol,
    *,
    tasks: Tasks | None = None,
    every_step: bool = False,
    outcome: Outcome = accuracy,
    embed_batch: int = 256,
    chunk: int = 1000,
    devices: Devices = None,
) -> np.ndarray:
    """Query accuracy of every task of a protocol.

    With running averages every image is embedded once and all tasks share its features. Under batch statistics an
    image's features depend on its task, so they are computed per task. Where the inner loop moves the backbone, tasks
    are adapted one by one.

    Args:
      model: the network; 'train' mode evaluates by running averages, as the PyTorch code does.
      images: uint8 [M, H, W, C], the split's.
      table: the split's classes.
      protocol: tasks and inner loop.
      tasks: these tasks instead of those that the protocol's seed makes.
      every_step: return the accuracy after 0, 1, ..., steps updates.
      outcome: what is kept of a task instead of its accuracy, e.g. `answers`.
      embed_batch: images embedded at once.
      chunk: tasks adapted at once from shared features; under batch statistics at most `OWN_FEATURES` of them are
        embedded at once.
      devices: images and tasks are spread over them; those of several processes must call this alike, and each gets all
        results. None: JAX's default device.

    Returns:
      float32 [num_tasks], or [num_tasks, steps + 1] with `every_step`; more axes as `outcome` has them.

    Raises:
      ConfigError: crops where features are computed per task; an inner loop that contradicts itself; a learned head of
        another way than the protocol's; `tasks` of other sizes or another number.
      DataError: a table that cannot give the tasks, or positions that are none of an image.
    """
    head = initial_head(model.learned["head"], protocol)
    check_inner(protocol.inner)
    support_views.check_crops(protocol.crops, protocol.inner.adapt, model.embed.batch_statistics)
    kept = {"tasks": tasks, "every_step": every_step, "outcome": outcome, "devices": devices}
    if model.embed.batch_statistics == "train":
        model = model._replace(embed=model.embed._replace(batch_statistics="running"))
    if protocol.inner.adapt != "head":
        return adapt_backbone(model, head, images, table, protocol, **kept)
    if model.embed.batch_statistics == "batch":
        return adapt_per_task(model, head, images, table, protocol, chunk=min(chunk, OWN_FEATURES), **kept)
    bank, further = banks(model, images, protocol, batch=embed_batch, devices=devices)
    return adapt_on_bank(head, bank, further, table, protocol, chunk=chunk, **kept)


def answers(logits: Array, labels: Array) -> Array:
    """The class 0..N-1 that is answered for every query image: an `outcome`."""
    return logits.argmax(-1)


def initial_head(head: Params, protocol: Protocol) -> Params:
    """The learned head, or zeros [F, way] where the protocol asks for them: at any way but the trained one it must.

    Raises:
      ConfigError: it does not.
    """
    features, way = head["kernel"].shape
    if not protocol.zero_head and way != protocol.way:
        raise ConfigError(f"the learned head has {way} classes, but tasks are {protocol.way}-way: set zero_head")
    if not protocol.zero_head:
        return head
    return {"kernel": jnp.zeros((features, protocol.way)), "bias": jnp.zeros(protocol.way)}


def sample(table: ClassTable, protocol: Protocol, start: int | Array, count: int) -> tuple[Array, Array]:
    """The images of tasks `start` .. `start + count - 1` of a protocol: (support [T, N, K], query [T, N, Q])."""
    keys = episodes.numbered_keys(jax.random.key(protocol.seed), start + jnp.arange(count))
    return episodes.sample_tasks(keys, table, way=protocol.way, shot=protocol.shot, query=protocol.query)


def sample_all(table: ClassTable, protocol: Protocol, *, chunk: int = 1000, first: int = 0) -> Tasks:
    """All tasks of a protocol, numbered from `first` on, as NumPy arrays."""
    draw = _drawer(table, protocol, None, None)
    drawn = [draw(first + start, min(chunk, protocol.num_tasks)) for start in range(0, protocol.num_tasks, chunk)]
    return Tasks(*(np.concatenate(part)[: protocol.num_tasks] for part in zip(*drawn, strict=True)))


def _drawer(
    table: ClassTable, protocol: Protocol, tasks: Tasks | None, images: int | None
) -> Callable[[int, int], tuple[Array, Array]]:
    """(start, count) -> (support [count, N, K], query [count, N, Q]); beyond the last task anything will do.

    Raises ConfigError and DataError for what a figure must not be made of; `images` is how many there are, if known.
    """
    if images is not None:
        episodes.check_positions(images, *(tasks or [np.max(table.indices, initial=0)]))
    if tasks is not None:
        _check_tasks(tasks, protocol)
        return lambda start, count: tuple(
            np.take(part, np.arange(start, start + count), axis=0, mode="wrap") for part in tasks
        )
    episodes.check_sizes(table, way=protocol.way, shot=protocol.shot, query=protocol.query)
    table, static = ClassTable(*map(jnp.asarray, table)), _without_numbers(protocol)
    return lambda start, count: _sample(table, protocol.seed, start, static, count)


def _check_tasks(tasks: Tasks, protocol: Protocol) -> None:
    """Whether given tasks are those that a protocol names: fewer would be repeated. Raises ConfigError."""
    wanted = [(protocol.num_tasks, protocol.way, each) for each in (protocol.shot, protocol.query)]
    if [np.shape(part) for part in tasks] != wanted:
        found = " and ".join(str(np.shape(part)) for part in tasks)
        raise ConfigError(f"tasks have shapes {found}, expected {wanted[0]} and {wanted[1]}: the protocol's number of "
                          "tasks, way, and shot or query")  # fmt: skip


@functools.partial(jax.jit, static_argnames=("protocol", "count"))
def _sample(table, seed, start, protocol, count):
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
      further: [V, M, F] features of their `support_views.further`, if any, which join the support set.
      table: the split's classes.
      protocol: tasks and inner loop.
      tasks, every_step, outcome, chunk, devices: see `evaluate_tasks`.

    Returns:
      As `evaluate_tasks`.
    """
    draw, static, lr = _drawer(table, protocol, tasks, len(bank)), _without_numbers(protocol), _rates(protocol)
    shared = parallel.replicate((head, bank, further), devices)

    def run(start, count):
        drawn = parallel.spread(draw(start, count), devices)
        return _adapt_chunk(*shared, *drawn, lr, static, every_step, outcome)

    return parallel.in_chunks(run, protocol.num_tasks, chunk, devices)


def _without_numbers(protocol: Protocol) -> Protocol:
    """What of a protocol a compiled function depends on: another rate, seed or number of tasks compiles nothing new."""
    return protocol._replace(num_tasks=0, seed=0, inner=protocol.inner._replace(lr=0.0))


def _rates(protocol: Protocol) -> Array:
    return jnp.asarray(base_learner.step_rates(protocol.inner.lr, protocol.inner.steps), jnp.float32)


@functools.partial(jax.jit, static_argnames=("protocol", "every_step", "outcome"))
def _adapt_chunk(head, bank, further, support, query, lr, protocol, every_step, outcome):
    def run(support, query):
        task = episodes.gather(bank, support, query)
        features = [task.support, *([] if further is None else further[:, support.reshape(-1)])]
        return _adapt_task(head, jnp.concatenate(features), task, lr, protocol, every_step, outcome)

    return jax.vmap(run)(support, query)


def _adapt_task(head, support, task, lr, protocol, every_step, outcome):
    """The outcome of one task from its features; `support` may hold those of further views after the images' own."""
    labels = jnp.tile(task.support_labels, len(support) // len(task.support_labels))
    support, query = feature_transform.transform(protocol.inner.features, support, task.query)
    logits = base_learner.adapted_logits(
        head, support, labels, query, steps=protocol.inner.steps, lr=lr, trajectory=every_step,
        weights=loss_weights(labels, protocol.way, protocol.inner.loss_scale, protocol.shot),
    )  # fmt: skip
    return outcome(logits, task.query_labels)


def adapt_per_task(
    model: Model,
    head: Params,
    images: np.ndarray,
    table: ClassTable,
    protocol: Protocol,
    *,
    tasks: Tasks | None = None,
    every_step: bool = False,
    outcome: Outcome = accuracy,
    chunk: int = OWN_FEATURES,
    devices: Devices = None,
) -> np.ndarray:
    """Accuracy of every task with features computed per task, support and query set each as a batch of its own.

    Arguments and result as `evaluate_tasks` and `adapt_on_bank`; `chunk` tasks are embedded at once.
    """
    static, lr, draw = _without_numbers(protocol), _rates(protocol), _drawer(table, protocol, tasks, len(images))
    weights = backbone_params(model.learned, model.frozen), model.frozen.batch_stats, head
    weights = parallel.replicate(weights, devices)

    def run(start, count):
        support, query = draw(start, count)
        task = episodes.gather(np.asarray(images), np.asarray(support), np.asarray(query))
        task = parallel.spread(task, devices)
        return _embed_and_adapt(model.embed, *weights, task, lr, static, every_step, outcome)

    return parallel.in_chunks(run, protocol.num_tasks, chunk, devices)


@functools.partial(jax.jit, static_argnames=("embed", "protocol", "every_step", "outcome"))
def _embed_and_adapt(embed, params, batch_stats, head, tasks, lr, protocol, every_step, outcome):
    def run(task):
        support = [task.support, *([task.support[:, :, ::-1]] if protocol.flips else [])]
        features, _ = embed(params, batch_stats, jnp.concatenate(support))
        query, _ = embed(params, batch_stats, task.query)
        return _adapt_task(head, features, task._replace(query=query), lr, protocol, every_step, outcome)

    return jax.vmap(run)(tasks)


def adapt_backbone(
    model: Model, head: Params, images: np.ndarray, table: ClassTable, protocol: Protocol, *,
    tasks: Tasks | None = None, every_step: bool = False, outcome: Outcome = accuracy, devices: Devices = None,
) -> np.ndarray:  # fmt: skip
    """Accuracy of every task with an inner loop that moves the backbone's weights as well; see `evaluate_tasks`.

    It runs task by task, so on one device of each process.
    """
    draw, inner = _drawer(table, protocol, tasks, len(images)), protocol.inner
    params = backbone_params(model.learned, model.frozen)

    def run(start, count):
        support, query = (np.asarray(part[0]) for part in draw(start, count))
        task = _with_flips(episodes.gather(np.asarray(images), support, query), protocol.flips)
        weights = loss_weights(task.support_labels, protocol.way, inner.loss_scale, protocol.shot)
        return adapted_outcome(
            params, head, model.frozen.batch_stats, task,
            embed=model.embed, inner=inner, weights=weights, outcome=outcome, every_step=every_step,
        )[None]  # fmt: skip

    return parallel.in_chunks(run, protocol.num_tasks, 1, parallel.one_of_each(devices))


def _with_flips(task: Episode, flips: bool) -> Episode:
    if not flips:
        return task
    support = np.concatenate([task.support, task.support[:, :, ::-1]])
    return task._replace(support=support, support_labels=jnp.tile(task.support_labels, 2))


def predict_task(
    model: Model, images: np.ndarray, support: np.ndarray, query: np.ndarray, protocol: Protocol
) -> np.ndarray:
    """The predicted class 0..N-1 of every query image of one task.

    Args:
      model: the network.
      images: uint8 [M, H, W, C].
      support, query: int [N, K] and [N, Q], positions in `images`.
      protocol: way and the inner loop.

    Returns:
      int32 [N Q], in class-major order.
    """
    rows = np.concatenate([support, query], axis=1)
    places = np.arange(rows.size).reshape(rows.shape)
    task = Tasks(*np.split(places[None], [support.shape[1]], axis=2))
    own = np.asarray(images)[rows.ravel()]
    empty = ClassTable(np.zeros((0, 0), np.int32), np.zeros(0, np.int32))
    own_sizes = protocol._replace(num_tasks=1, shot=support.shape[1], query=query.shape[1])
    found = evaluate_tasks(model, own, empty, own_sizes, tasks=task, outcome=answers)
    return found[0].astype(np.int32)

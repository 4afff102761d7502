"""Meta-test: accuracy over many few-shot tasks, from shared features where an image's do not depend on its task."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import base_learner, episodes
from mtl_jax.meta import Embed, Frozen, Inner, backbone_params, episode_logits, loss_weights
from mtl_jax.metrics import accuracy
from mtl_jax.types import Array, ClassTable, Params


class Protocol(NamedTuple):
    """What a test figure depends on besides the model: the tasks and the inner loop.

    way, shot, query: N, K, Q per class. num_tasks and seed make the tasks: task t has the key fold_in(key(seed), t).
    inner: the inner loop at test. flips: the support set doubled by its mirror images, the loss scaled as before.
    zero_head: start from a zero head, as any other way than the trained one must.
    """

    way: int
    shot: int
    query: int
    num_tasks: int
    seed: int
    inner: Inner
    flips: bool = False
    zero_head: bool = False


class Model(NamedTuple):
    """A trained network: the learned groups, the frozen rest, and how the backbone runs."""

    embed: Embed
    learned: Params
    frozen: Frozen


def embed_all(model: Model, images: np.ndarray, *, batch: int = 256, flip: bool = False) -> Array:
    """The features of all images: uint8 [M, H, W, C] -> float32 [M, F], embedded `batch` at a time.

    Only for BN by running averages, with which an image's features do not depend on its neighbours.
    """
    params = backbone_params(model.learned, model.frozen)
    parts = []
    for start in range(0, len(images), batch):
        part = np.asarray(images[start : start + batch])
        short = batch - len(part)
        if short and start:  # pad, so that one shape is compiled
            part = np.concatenate([part, np.zeros((short, *part.shape[1:]), part.dtype)])
        features = _embed(model.embed, params, model.frozen.batch_stats, part[:, :, ::-1] if flip else part)
        parts.append(np.asarray(features)[: batch - short if start else None])
    return jnp.asarray(np.concatenate(parts))


@functools.partial(jax.jit, static_argnums=0)
def _embed(embed: Embed, params: Params, batch_stats: Params, images: Array) -> Array:
    return embed(params, batch_stats, images)[0]


def evaluate_tasks(
    model: Model,
    images: np.ndarray,
    table: ClassTable,
    protocol: Protocol,
    *,
    every_step: bool = False,
    embed_batch: int = 256,
    chunk: int = 1000,
) -> np.ndarray:
    """Query accuracy of every task of a protocol.

    With running averages every image is embedded once and all tasks share its features. Under batch statistics an
    image's features depend on its task, so they are computed per task.

    Args:
      model: the network; 'train' mode evaluates by running averages, as the PyTorch code does.
      images: uint8 [M, H, W, C], the split's.
      table: the split's classes.
      protocol: tasks and inner loop.
      every_step: return the accuracy after 0, 1, ..., steps updates.
      embed_batch: images embedded at once.
      chunk: tasks adapted at once from shared features.

    Returns:
      float32 [num_tasks], or [num_tasks, steps + 1] with `every_step`.
    """
    head = initial_head(model.learned["head"], protocol)
    if model.embed.batch_statistics == "batch":
        accuracies = adapt_per_task(model, head, images, table, protocol, every_step=every_step)
    else:
        model = model._replace(embed=model.embed._replace(batch_statistics="running"))
        bank = embed_all(model, images, batch=embed_batch)
        flipped = embed_all(model, images, batch=embed_batch, flip=True) if protocol.flips else None
        accuracies = adapt_on_bank(head, bank, flipped, table, protocol, every_step=every_step, chunk=chunk)
    return accuracies


def initial_head(head: Params, protocol: Protocol) -> Params:
    """The learned head, or zeros [F, way] where the protocol asks for them: at any way but the trained one it must."""
    if not protocol.zero_head:
        return head
    features = head["kernel"].shape[0]
    return {"kernel": jnp.zeros((features, protocol.way)), "bias": jnp.zeros(protocol.way)}


def sample(table: ClassTable, protocol: Protocol, start: int | Array, count: int) -> tuple[Array, Array]:
    """The images of tasks `start` .. `start + count - 1` of a protocol: (support [T, N, K], query [T, N, Q])."""
    numbers = start + jnp.arange(count)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(protocol.seed), numbers)
    return episodes.sample_tasks(keys, table, way=protocol.way, shot=protocol.shot, query=protocol.query)


def adapt_on_bank(
    head: Params, bank: Array, flipped: Array | None, table: ClassTable, protocol: Protocol, *,
    every_step: bool = False, chunk: int = 1000,
) -> np.ndarray:  # fmt: skip
    """Accuracy of every task from features that all tasks share.

    Args:
      head: the initial θ.
      bank: [M, F] features of the split's images.
      flipped: [M, F] features of their mirror images, where `protocol.flips` is set.
      table: the split's classes.
      protocol: tasks and inner loop.
      every_step, chunk: see `evaluate_tasks`.

    Returns:
      As `evaluate_tasks`.
    """
    table = ClassTable(*map(jnp.asarray, table))
    static, lr = _without_numbers(protocol), jnp.float32(protocol.inner.lr)

    def run(start, count):
        return _adapt_chunk(head, bank, flipped, table, lr, protocol.seed, start, static, count, every_step)

    return _in_chunks(run, protocol.num_tasks, chunk)


def _without_numbers(protocol: Protocol) -> Protocol:
    """What of a protocol a compiled function depends on: another rate, seed or number of tasks compiles nothing new."""
    return protocol._replace(num_tasks=0, seed=0, inner=protocol.inner._replace(lr=0.0))


@functools.partial(jax.jit, static_argnames=("protocol", "count", "every_step"))
def _adapt_chunk(head, bank, flipped, table, lr, seed, start, protocol, count, every_step):
    def run(support, query):
        task = episodes.gather(bank, support, query)
        features = [task.support, *([flipped[support.reshape(-1)]] if protocol.flips else [])]
        return _adapt_task(head, jnp.concatenate(features), task, lr, protocol, every_step)

    return jax.vmap(run)(*sample(table, protocol._replace(seed=seed), start, count))


def _adapt_task(head, support, task, lr, protocol, every_step):
    """Accuracy of one task from its features; `support` may hold the mirror images' after the images' own."""
    labels = jnp.tile(task.support_labels, len(support) // len(task.support_labels))
    logits = base_learner.adapted_logits(
        head, support, labels, task.query, steps=protocol.inner.steps, lr=lr, trajectory=every_step,
        weights=loss_weights(labels, protocol.way, protocol.inner.loss_scale, protocol.shot),
    )  # fmt: skip
    return accuracy(logits, task.query_labels)


def adapt_per_task(
    model: Model,
    head: Params,
    images: np.ndarray,
    table: ClassTable,
    protocol: Protocol,
    *,
    every_step: bool = False,
    chunk: int = 2,
) -> np.ndarray:
    """Accuracy of every task with features computed per task, support and query set each as a batch of its own.

    Arguments and result as `evaluate_tasks` and `adapt_on_bank`; `chunk` tasks are embedded at once.
    """
    table = ClassTable(*map(jnp.asarray, table))
    params, static = backbone_params(model.learned, model.frozen), _without_numbers(protocol)
    lr = jnp.float32(protocol.inner.lr)

    def run(start, count):
        support, query = sample(table, protocol, start, count)
        task = episodes.gather(np.asarray(images), np.asarray(support), np.asarray(query))
        stats = model.frozen.batch_stats
        return _embed_and_adapt(model.embed, params, stats, head, task, lr, static, every_step)

    return _in_chunks(run, protocol.num_tasks, chunk)


@functools.partial(jax.jit, static_argnames=("embed", "protocol", "every_step"))
def _embed_and_adapt(embed, params, batch_stats, head, tasks, lr, protocol, every_step):
    def run(task):
        support = [task.support, *([task.support[:, :, ::-1]] if protocol.flips else [])]
        features, _ = embed(params, batch_stats, jnp.concatenate(support))
        query, _ = embed(params, batch_stats, task.query)
        return _adapt_task(head, features, task._replace(query=query), lr, protocol, every_step)

    return jax.vmap(run)(tasks)


def _in_chunks(run: Callable[[int, int], Array], total: int, chunk: int) -> np.ndarray:
    """Results of tasks 0..total-1, a whole chunk at a time so that one shape is compiled."""
    chunk = min(chunk, total)
    return np.concatenate([np.asarray(run(start, chunk)) for start in range(0, total, chunk)])[:total]


def predict_task(
    model: Model, images: np.ndarray, support: np.ndarray, query: np.ndarray, protocol: Protocol
) -> np.ndarray:
    """The predicted class 0..N-1 of every query image of one task.

    Args:
      model: the network.
      images: uint8 [M, H, W, C].
      support, query: int [N, K] and [N, Q], positions in `images`.
      protocol: the inner loop.

    Returns:
      int32 [N Q], in class-major order.
    """
    task = episodes.gather(np.asarray(images), support, query)
    learned = {**model.learned, "head": initial_head(model.learned["head"], protocol)}
    logits, _ = jax.jit(functools.partial(episode_logits, embed=model.embed, inner=protocol.inner))(
        learned, model.frozen, task
    )
    return np.asarray(logits.argmax(-1), np.int32)

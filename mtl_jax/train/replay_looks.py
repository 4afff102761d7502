"""How `replay` looks at an optimiser step: its inputs again, their gradients and predictions, how they are drawn."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import episodes, meta, parallel, pretrain
from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.evaluate import network
from mtl_jax.train import phases, pretrain_dispatch, replay_pictures
from mtl_jax.train.replay_pictures import Drawn
from mtl_jax.train.task_sources import Sizes, positions
from mtl_jax.types import ClassTable
from mtl_jax.workdir import Workdir


class Seen(NamedTuple):
    """Of one batch or task: loss, accuracy, gradient by group, predictions [B]."""

    loss: Any
    accuracy: Any
    grads: Any
    predictions: Any


class Look(NamedTuple):
    """What a phase's steps are looked at by.

    gradients: one of `inputs` -> Seen, compiled. inputs: (state, hard, batch) -> [(arguments, positions)], an item a
    task or batch. draw: (positions, predictions, number, loss, whether it is finite) -> Drawn.
    """

    gradients: Callable[..., Seen]
    inputs: Callable[[Any, bool, int], list[tuple[Any, Any]]]
    draw: Callable[..., Drawn]


def meta_training(settings: ConfigDict, place: Workdir, dataset: Dataset, devices: int) -> Look:
    """How a step of meta-training is looked at, task by task; `devices` is not needed, as tasks have their numbers."""
    split, group = dataset.splits["train"], settings.meta
    params, _ = network.pretrained(settings, place)
    options = {"embed": build.embedding(settings), "inner": build.inner(settings.inner)}
    keys = [build.stream(settings, number) for number in (build.TASKS, build.HARD_TASKS)]
    sizes = Sizes(group.way, group.shot, group.query, group.tasks_per_step, group.tasks_per_step)
    table, numbers = ClassTable(*split.table()), np.arange(group.tasks_per_step)
    draw = jax.jit(lambda state, hard, batch: positions(sizes, hard, state, keys[hard], table, batch, numbers),
                   static_argnums=1)  # fmt: skip

    @jax.jit
    def gradients(learned, frozen, episode):
        take = jax.value_and_grad(functools.partial(meta.episode_loss, **options), has_aux=True)
        (loss, result), grads = take(learned, frozen, episode)
        logits, _ = meta.episode_logits(learned, frozen, episode, **options)
        return Seen(loss, result.accuracy, grads, logits.argmax(-1))

    def inputs(state, hard, batch):
        frozen, found = meta.Frozen(params, state.batch_stats), []
        for sets in zip(*map(np.asarray, draw(state, hard, batch)), strict=True):
            found.append(((state.learned, frozen, episodes.gather(split.images, *sets)), sets))
        return found

    return Look(gradients, inputs, functools.partial(replay_pictures.task, split))


def pretraining(settings: ConfigDict, place: Workdir, dataset: Dataset, devices: int) -> Look:
    """How a step of pre-training is looked at: the whole batch, spread over as many virtual devices as the run had."""
    split = dataset.splits["train"]
    parts = phases.pretrain_parts(settings, split, parallel.AXIS)  # the mapped axis is a virtual one, on one device
    options = {name: value for name, value in parts.take.keywords.items() if name not in ("optimizer", "average")}
    ramp = options.pop("dropblock_ramp")
    options["axis_name"] = parallel.AXIS
    network = {name: options[name] for name in ("backbone", "batch_statistics")}
    order_key, key = (build.stream(settings, number) for number in (build.ORDER, build.AUGMENT))
    batches = pretrain_dispatch.epochs(settings, split, devices, order_key)
    look = pretrain_dispatch.viewer(settings, split, batches.batch)

    def of_device(state, number, images, labels):
        params, stats, share = state.params, state.batch_stats, pretrain.ramped(state.step, ramp)
        views, labels, dropout_key = look(key, state.step, number, images, labels)
        take = jax.value_and_grad(pretrain.classification_loss, has_aux=True)
        (loss, (accuracy, _)), grads = take(
            params, stats, views, labels, dropout_key, teacher=state.teacher, **options, **share
        )  # fmt: skip
        features, _ = pretrain.training_features(params["backbone"], stats, views, dropout_key, **network, **share)
        logits = options["classifier"].apply({"params": params["classifier"]}, features)
        return *jax.lax.pmean((loss, accuracy, grads), parallel.AXIS), logits.argmax(-1)

    @jax.jit
    def gradients(state, images, labels):
        apart = [array.reshape(devices, -1, *array.shape[1:]) for array in (images, labels)]
        mapped = jax.vmap(of_device, (None, 0, 0, 0), (None, None, None, 0), axis_name=parallel.AXIS)
        loss, accuracy, grads, predictions = mapped(state, np.arange(devices), *apart)
        return Seen(loss, accuracy, grads, predictions.reshape(-1))

    def inputs(state, hard, batch):
        rows = batches.rows(int(state.step))
        return [((state, split.images[rows], split.labels[rows]), rows)]

    return Look(gradients, inputs, functools.partial(replay_pictures.batch, split))

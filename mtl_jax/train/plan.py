"""What a run will need, before anything is compiled: memory and operations of its steps, and how tasks are chunked."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import meta, pretrain
from mtl_jax.config import build, rules
from mtl_jax.config.recipe import Limits, MetaRecipe, PretrainRecipe, image_shape
from mtl_jax.data import Dataset, Split
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import maps
from mtl_jax.launch import environment
from mtl_jax.learners import moved_part
from mtl_jax.train import cost, meta_training, pretraining
from mtl_jax.trunk import Rest
from mtl_jax.types import Episode
from mtl_jax.words import counted
from mtl_jax.workdir.console import duration

Config = Mapping[str, Any]
_GB = 1e9


class PhasePlan(NamedTuple):
    """One phase: its steps, what a step works on, its operations on one device, the most memory it takes, in bytes."""

    name: str
    steps: int
    unit: str
    flops: float
    bytes: float


class Plan(NamedTuple):
    """chunk: tasks of a device whose activations are in memory at once. phases: those that are to be run."""

    chunk: int
    phases: tuple[PhasePlan, ...]


def make(config: Config, dataset: Dataset, devices: int) -> Plan:
    """The plan of a whole config.

    `runtime.chunk` is kept where it is set; else it is the largest divisor of a device's tasks that fits
    `runtime.memory_gb`. It depends on the config and the number of devices alone, not on what memory is free.

    Raises:
      ConfigError: a step does not fit; with the numbers and what can be lowered.
    """
    recipe, split, planned = build.recipe(config), dataset.splits["train"], []
    memory_gb = config["runtime"]["memory_gb"]
    if recipe.pretraining:
        planned.append(_pretraining(recipe.pretraining, split, devices, memory_gb))
    chunk = each = config["meta"]["tasks_per_step"] // devices
    if recipe.meta_training:
        chunk, phase = _meta_training(*maps.planned(config, recipe.meta_training, split), each, memory_gb)
        planned.append(phase)
    return Plan(chunk, tuple(planned))


def pretrain_step(recipe: PretrainRecipe, split: Split, size: int, axis: str | None = None) -> tuple[Callable, tuple]:
    """Pre-training's step on a device's `size` images, and the shapes of its arguments: to be traced, not run."""
    parts = pretraining.make_parts(recipe, split, axis)

    def step(state, images, labels, key):
        view = pretraining.viewer(recipe, key)
        return parts.step(state, *view(state.step, 0, images, labels), axis_name=axis)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return step, (jax.eval_shape(parts.init, key), _images(split, size), _integers(size), key)


def _pretraining(recipe: PretrainRecipe, split: Split, devices: int, memory_gb: float) -> PhasePlan:
    size = recipe.batches.size
    step, arguments = pretrain_step(recipe, split, size // devices)
    traced = cost.estimate(step, *arguments)
    needed = cost.MARGIN * traced.bytes + _resident(recipe.limits, split)
    if needed > _GB * memory_gb:
        raise ConfigError(
            f"config.pretrain.batch_size is {size}, whose step needs about {needed / _GB:.2f} GB a "
            f"device, more than config.runtime.memory_gb, {memory_gb:g}; lower "
            "pretrain.batch_size, data.image_size or backbone.width, or raise runtime.memory_gb if the device has more"
        )
    return PhasePlan("pretrain", recipe.intervals.steps, counted(size, "image"), traced.flops, needed)


def _meta_training(recipe: MetaRecipe, split: Split, each: int, memory_gb: float) -> tuple[int, PhasePlan]:
    per_dispatch = recipe.intervals.per_dispatch
    if recipe.chunk:
        rules.check_chunk(recipe.chunk, each, per_dispatch)
    candidates = [recipe.chunk] if recipe.chunk else [n for n in range(each, 0, -1) if each % n == 0]
    for chunk in candidates:
        traced = _meta_cost(recipe, split, chunk)
        needed = cost.MARGIN * traced.bytes + _resident(recipe.limits, split)
        if needed <= _GB * memory_gb:
            break
    else:
        raise ConfigError(
            f"config.runtime.memory_gb is {memory_gb:g}, but a meta-training step needs about "
            f"{needed / _GB:.2f} GB a device with {chunk} of its tasks at a time; lower meta.query, inner.steps, "
            "data.image_size or backbone.width, or raise runtime.memory_gb if the device has more"
        )
    rules.check_chunk(chunk, each, per_dispatch)
    unit = counted(recipe.tasks_per_step, "task")
    return chunk, PhasePlan("meta", recipe.intervals.steps, unit, traced.flops * each / chunk, needed)


def meta_step(recipe: MetaRecipe, split: Split, tasks: int, axis: str | None = None) -> tuple[Callable, tuple]:
    """Meta-training's step on some tasks of a device, and the shapes of its arguments: to be traced, not run."""
    embed, stored = recipe.embed, split.images.shape[1:]
    whole, seen = (embed.embed, embed.image_shape) if isinstance(embed, Rest) else (embed, None)
    seen = seen or image_shape(embed.prepare, stored)

    def start(key):
        variables = pretrain.init_backbone(key, whole.module, seen)
        params = variables["params"]
        return meta_training.start(recipe, params, variables["batch_stats"], stored), params

    way, shot, query = recipe.tasks
    state, params = jax.eval_shape(start, jax.eval_shape(lambda: jax.random.key(0)))
    episode = Episode(
        _images(split, tasks, way * shot), _integers(tasks, way * shot),
        _images(split, tasks, way * query), _integers(tasks, way * query),
    )  # fmt: skip

    def step(state, params, episode):
        return meta.train_step(
            state, params, episode, embed=embed, inner=recipe.inner, optimizer=recipe.optimizer, axis_name=axis
        )  # fmt: skip

    return step, (state, params, episode)


def _meta_cost(recipe: MetaRecipe, split: Split, tasks: int) -> cost.Cost:
    """The cost of a step on some tasks of a device."""
    # Where the inner loop moves the backbone tasks are a Python loop: one is traced, and each costs the same.
    count = tasks if moved_part(recipe.inner) == "head" else 1
    step, arguments = meta_step(recipe, split, count)
    traced = cost.estimate(step, *arguments)
    return cost.Cost(traced.flops * tasks / count, traced.bytes * tasks // count)


def _images(split: Split, *lead: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*lead, *split.images.shape[1:]), split.images.dtype)


def _integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _resident(limits: Limits, split: Split) -> int:
    """The bytes of the train split where it lives on the device."""
    return split.images.nbytes if limits.on_device(split) else 0


def describe(config: Config, dataset: Dataset, plan: Plan, devices: int) -> str:
    """The plan as `--dry_run` prints it, with the time that the operations take at the machine's own rate."""
    lines, rate = [], matrix_rate(config["runtime"]["dtype"])
    lines.append(f"device: {environment.describe_devices(environment.device_facts(jax.devices()[:devices]))}")
    for split in dataset.splits.values():
        shape = "x".join(map(str, split.images.shape[1:]))
        images = counted(len(split.labels), "image", ",")
        lines.append(f"{split.name}: {counted(len(split.class_names), 'class')}, {images} of {shape}")
    images = dataset.splits["train"]
    lines.append(_place(config, "train images", images))
    if recipe := build.recipe(config).meta_training:
        recipe, train = maps.planned(config, recipe, images)
        if train is not images:
            maps_shape = "x".join(map(str, train.images.shape[1:]))
            lines.append(f"{_place(config, f'maps of {maps_shape} in their place', train)}, kept in the cache")
    for phase in plan.phases:
        seconds = phase.flops / rate
        lines.append(
            f"{phase.name}: {counted(phase.steps, 'step', ',')} of {phase.unit}; a step on each of "
            f"{counted(devices, 'device')}: {phase.flops / 1e9:.1f} GFLOP, about {phase.bytes / _GB:.2f} GB at "
            f"most, at least {seconds:.3g} s; all steps: at least {duration(seconds * phase.steps)}"
        )
    if recipe:
        _, (state, params, _) = meta_step(recipe, train, 1)
        lines.append(meta_training.describe_learned(state.learned, params))
    lines.append(f"tasks at a time on a device: {plan.chunk} (runtime.chunk)")
    lines.append(f"least times assume this machine's matrix-product rate, {rate / 1e9:,.0f} GFLOP/s, throughout")
    return "\n".join(lines)


def least_times(plan: Plan, dtype: str) -> str:
    """The steps of each phase, and the least time they take, by this machine's matrix-product rate."""
    rate = matrix_rate(dtype)
    phases = (f"{p.name} at least {duration(p.flops * p.steps / rate)} ({counted(p.steps, 'step', ',')})"
              for p in plan.phases)  # fmt: skip
    return f"time on this machine: {', '.join(phases)}; the progress lines below say what is left"


def _place(config: Config, what: str, split: Split) -> str:
    """How large the images or the maps of a split are, and where they live."""
    where = "on the device" if build.limits(config).on_device(split) else "on the host"
    return f"{what}: {split.images.nbytes / 1e6:.1f} MB, {where} (data.device_budget_gb)"


def matrix_rate(dtype: str = "float32", size: int = 1024) -> float:
    """Floating-point operations a second of a matrix product here: the best of some."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = np.inf
    for _ in range(5):
        started = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best

"""What a run will need, before anything is compiled: memory and operations of its steps, and how tasks are chunked."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import meta
from mtl_jax.config import build, rules
from mtl_jax.data import Dataset, Split
from mtl_jax.errors import ConfigError
from mtl_jax.train import cost, phases, pretrain_dispatch
from mtl_jax.types import Episode

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
    split, planned = dataset.splits["train"], []
    if not config["pretrain"]["init"]:
        planned.append(_pretraining(config, split, devices))
    each = config["meta"]["tasks_per_step"] // devices
    chunk = each
    if config["meta"]["learn"] != "none":
        chunk, phase = _meta_training(config, split, each)
        planned.append(phase)
    return Plan(chunk, tuple(planned))


def pretrain_step(config: Config, split: Split, size: int, axis: str | None = None) -> tuple[Callable, tuple]:
    """Pre-training's step on a device's `size` images, and the shapes of its arguments: to be traced, not run."""
    parts = phases.pretrain_parts(config, split, axis)
    look = pretrain_dispatch.viewer(config, split, size)

    def step(state, images, labels, key):
        return parts.take(state, *look(key, state.step, 0, images, labels), axis_name=axis)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return step, (jax.eval_shape(parts.init, key), _images(split, size), _integers(size), key)


def _pretraining(config: Config, split: Split, devices: int) -> PhasePlan:
    group = config["pretrain"]
    step, arguments = pretrain_step(config, split, group["batch_size"] // devices)
    found = cost.estimate(step, *arguments)
    needed = cost.MARGIN * found.bytes + _resident(config, split)
    if needed > _GB * config["runtime"]["memory_gb"]:
        raise ConfigError(
            f"config.pretrain.batch_size is {group['batch_size']}, whose step needs about {needed / _GB:.2f} GB a "
            f"device, more than config.runtime.memory_gb, {config['runtime']['memory_gb']:g}; lower "
            "pretrain.batch_size, data.image_size or backbone.width, or raise runtime.memory_gb if the device has more"
        )
    return PhasePlan("pretrain", group["steps"], f"{group['batch_size']} images", found.flops, needed)


def _meta_training(config: Config, split: Split, each: int) -> tuple[int, PhasePlan]:
    group, runtime = config["meta"], config["runtime"]
    wanted = runtime["chunk"]
    if wanted:
        rules.check_chunk(config, wanted, each)
    candidates = [wanted] if wanted else [n for n in range(each, 0, -1) if each % n == 0]
    for chunk in candidates:
        found = _meta_cost(config, split, chunk)
        needed = cost.MARGIN * found.bytes + _resident(config, split)
        if needed <= _GB * runtime["memory_gb"]:
            break
    else:
        raise ConfigError(
            f"config.runtime.memory_gb is {runtime['memory_gb']:g}, but a meta-training step needs about "
            f"{needed / _GB:.2f} GB a device with {chunk} of its tasks at a time; lower meta.query, inner.steps, "
            "data.image_size or backbone.width, or raise runtime.memory_gb if the device has more"
        )
    rules.check_chunk(config, chunk, each)
    unit = f"{group['tasks_per_step']} tasks"
    return chunk, PhasePlan("meta", group["steps"], unit, found.flops * each / chunk, needed)


def meta_step(config: Config, split: Split, tasks: int, axis: str | None = None) -> tuple[Callable, tuple]:
    """Meta-training's step on some tasks of a device, and the shapes of its arguments: to be traced, not run."""
    group, shape = config["meta"], split.images.shape[1:]
    embed, optimizer, inner = build.embedding(config), build.meta_optimizer(group), build.inner(config["inner"])

    def start(key, image):
        variables = phases.pretrain.init_backbone(key, embed.module, build.image_shape(config["data"], image))
        params, stats = variables["params"], variables["batch_stats"]
        return phases.meta_state(config, embed, optimizer, params, stats, shape), params

    rows = {name: group["way"] * group[name] for name in ("shot", "query")}
    state, params = jax.eval_shape(start, jax.eval_shape(lambda: jax.random.key(0)), _images(split, 1))
    episode = Episode(
        _images(split, tasks, rows["shot"]), _integers(tasks, rows["shot"]),
        _images(split, tasks, rows["query"]), _integers(tasks, rows["query"]),
    )  # fmt: skip

    def step(state, params, episode):
        return meta.train_step(
            state, params, episode, embed=embed, inner=inner, optimizer=optimizer, axis_name=axis
        )  # fmt: skip

    return step, (state, params, episode)


def _meta_cost(config: Config, split: Split, tasks: int) -> cost.Cost:
    """The cost of a step on some tasks of a device."""
    # Where the inner loop moves the backbone tasks are a Python loop: one is traced, and each costs the same.
    traced = tasks if config["inner"]["adapt"] == "head" else 1
    step, arguments = meta_step(config, split, traced)
    found = cost.estimate(step, *arguments)
    return cost.Cost(found.flops * tasks / traced, found.bytes * tasks // traced)


def _images(split: Split, *lead: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*lead, *split.images.shape[1:]), jnp.uint8)


def _integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _resident(config: Config, split: Split) -> int:
    """The bytes of the train split where it lives on the device."""
    return split.images.nbytes if build.is_on_device(config, split) else 0


def describe(config: Config, dataset: Dataset, plan: Plan, devices: int) -> str:
    """The plan as `--dry_run` prints it, with the time that the operations take at the machine's own rate."""
    lines, rate = [], matrix_rate(config["runtime"]["dtype"])
    for split in dataset.splits.values():
        shape = "x".join(map(str, split.images.shape[1:]))
        lines.append(f"{split.name}: {len(split.class_names)} classes, {len(split.labels):,} images of {shape}")
    train = dataset.splits["train"]
    place = "on the device" if build.is_on_device(config, train) else "on the host"
    lines.append(f"train images: {train.images.nbytes / 1e6:.1f} MB, {place} (data.device_budget_gb)")
    for phase in plan.phases:
        seconds = phase.flops / rate
        lines.append(
            f"{phase.name}: {phase.steps:,} steps of {phase.unit}; a step on one of {devices} "
            f"device{'s' if devices > 1 else ''}: {phase.flops / 1e9:.1f} GFLOP, about {phase.bytes / _GB:.2f} GB at "
            f"most, at least {seconds:.3g} s; all steps: at least {_duration(seconds * phase.steps)}"
        )
    lines.append(f"tasks at a time on a device: {plan.chunk} (runtime.chunk)")
    lines.append(f"times are operations over this machine's matrix-product rate, {rate / 1e9:,.0f} GFLOP/s")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


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

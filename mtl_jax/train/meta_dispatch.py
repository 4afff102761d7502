"""What the loop calls in meta-training: steps on tasks drawn on device, and after each round steps on hard tasks."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import hard_tasks, meta, parallel
from mtl_jax.config import rules
from mtl_jax.data import Split
from mtl_jax.meta import MetaState
from mtl_jax.train.task_sources import Sizes, Source, source
from mtl_jax.types import Array, Params

_logger = logging.getLogger(__name__)
_LISTED = 10  # mined classes named in a log line


Watch = Callable[[MetaState, bool, int], None]
"""(state, hard, batch) before an optimiser step: on hard tasks or not, and which meta-batch of the round."""


class Dispatcher(NamedTuple):
    """What the loop calls, (state, first step) -> (state, metrics of the dispatch's steps), and what ends it."""

    run: Callable[[MetaState, int], tuple[MetaState, dict[str, Array]]]
    close: Callable[[], None]


def dispatcher(
    config: Mapping[str, Any], split: Split, devices: Sequence[jax.Device], theta: Params, *,
    keys: tuple[Array, Array], watch: Watch | None = None, **options: Any,
) -> Dispatcher:  # fmt: skip
    """The loop's dispatch of meta-training.

    Args:
      config: a whole config.
      split: the train split.
      devices: those of the run.
      theta: Θ, placed on them.
      keys: of the normal tasks' stream and of the hard tasks'.
      watch: called before every call of the device.
      **options: of `meta.train_step`: embed, inner, optimizer.

    Raises:
      ConfigError: tasks cannot be taken `runtime.chunk` at a time.
    """
    group, repeat = config["meta"], config["runtime"]["steps_per_dispatch"]
    each = group["tasks_per_step"] // len(devices)
    chunk = config["runtime"]["chunk"] or each
    rules.check_chunk(config, chunk, each)
    sizes = Sizes(group["way"], group["shot"], group["query"], each, chunk)
    normal, hard = source(config, split, devices, sizes, keys)
    mines, classes = config["hard_tasks"]["enabled"], len(split.class_names)
    take = _stepper(normal, devices, sizes, theta, options, counts=classes if mines else 0, repeat=repeat)
    take = _watched(take, watch, False)

    if not mines:
        return Dispatcher(lambda state, at: take(state, at, 0), normal.close)
    take_hard = _watched(_stepper(hard, devices, sizes, theta, options, hard=True), watch, True)
    batches = config["hard_tasks"]["extra"] // group["tasks_per_step"]

    def with_hard_tasks(state: MetaState, at: int) -> tuple[MetaState, dict[str, Array]]:
        state, metrics = take(state, at, 0)
        if (at + repeat) % config["hard_tasks"]["round"]:
            return state, metrics
        _log_mined(at + repeat, np.asarray(parallel.local(state.pool)), split.class_names)
        extra = []
        for batch in range(batches):
            state, found = take_hard(state, at, batch)
            extra.append(found)
        empty = hard_tasks.empty_pool(classes)  # a new one, since a step consumes its state
        return state._replace(pool=parallel.replicate(empty, devices)), _with_hard_metrics(metrics, extra)

    return Dispatcher(with_hard_tasks, normal.close)


Stepper = Callable[[MetaState, int, int], tuple[MetaState, dict[str, Array]]]


def _stepper(
    source: Source, devices: Sequence[jax.Device], sizes: Sizes, theta: Params, options: Any, *,
    counts: int = 0, hard: bool = False, repeat: int = 1,
) -> Stepper:  # fmt: skip
    """(state, step, batch) -> (state, metrics): one compiled call, or one a chunk of the tasks and one to apply.

    counts: how many base classes there are, where failure classes are to be counted.
    """
    if sizes.chunk != sizes.tasks:
        return _chunked_stepper(source, devices, sizes, theta, options, counts, hard)
    step = functools.partial(_step, source, options, bool(counts), hard)
    compiled = parallel.compile_step(
        step, devices, arguments=1 + source.count, apart=source.apart, repeat=repeat, spread=_spread(repeat)
    )
    return lambda state, at, batch: compiled(state, theta, *source.arguments(state, at, batch))


def _watched(take: Stepper, watch: Watch | None, hard: bool) -> Stepper:
    def watched(state, at, batch):
        watch(state, hard, batch)
        return take(state, at, batch)

    return watched if watch else take


def _spread(repeat: int = 1) -> Any:
    """`spread` of `parallel.compile_step`: tasks lie along an axis that comes after that of a dispatch's steps."""
    return None, {"loss": None, "accuracy": None, "finite": None, "class_accuracy": int(repeat > 1)}


def _step(source, options, mines, hard, number, axis, state, theta, *arguments):
    tasks, classes = source.take(number, state, 0, *arguments)
    train_step = hard_tasks.train_step if hard else meta.train_step
    new, metrics = train_step(state, theta, tasks, **options, axis_name=axis)
    if mines:
        found = hard_tasks.collect(state.pool, classes, metrics["class_accuracy"], axis_name=axis)
        new = new._replace(pool=jnp.where(metrics["finite"], found, state.pool))
    return new, metrics


class _Sum(NamedTuple):
    """What the chunks of a meta-batch add up to."""

    grads: Params
    loss: Array
    accuracy: Array
    batch_stats: Params
    pool: Array


def _chunked_stepper(source, devices, sizes, theta, options, counts, hard):
    parts, optimizer = sizes.tasks // sizes.chunk, options["optimizer"]
    options = {name: value for name, value in options.items() if name != "optimizer"}

    def add(number, axis, total, state, theta, part, *arguments):
        tasks, classes = source.take(number, state, part, *arguments)
        frozen = meta.Frozen(theta, state.batch_stats)
        grads, (loss, result) = meta.gradients(state.learned, frozen, tasks, **options, axis_name=axis)
        pool = jnp.zeros_like(total.pool)
        if counts:
            pool = hard_tasks.collect(pool, classes, result.class_accuracy, axis_name=axis)
        found = _Sum(grads, loss, result.accuracy, result.batch_stats, pool)
        return jax.tree.map(lambda a, b: jnp.where(part == 0, b, a + b), total, found), {}

    def apply(number, axis, state, total):
        mean = jax.tree.map(lambda a: a / parts, total._replace(pool=()))
        batch_stats = mean.batch_stats if options["embed"].batch_statistics == "train" else state.batch_stats
        new, finite = meta.apply_gradients(state, mean.grads, mean.loss, batch_stats, optimizer)
        if hard:
            new = hard_tasks.uncounted(new, state)
        if counts:
            new = new._replace(pool=state.pool + jnp.where(finite, total.pool, 0))
        return new, {"loss": mean.loss, "accuracy": mean.accuracy, "finite": finite}

    compiled_add = parallel.compile_step(add, devices, arguments=3 + source.count, apart=source.apart)
    compiled_apply = parallel.compile_step(apply, devices, arguments=1)

    total = None

    def take(state, at, batch):
        nonlocal total
        if total is None:  # of the right shapes; what it holds is not read, since the first part overwrites it
            zero = jnp.zeros((), jnp.float32)
            like = _Sum(state.learned, zero, zero, state.batch_stats, hard_tasks.empty_pool(counts))
            total = parallel.replicate(jax.tree.map(jnp.zeros_like, parallel.local(like)), devices)
        arguments = source.arguments(state, at, batch)
        for part in range(parts):
            total, _ = compiled_add(total, state, theta, np.int32(part), *arguments)
        return compiled_apply(state, total)

    return take


def _with_hard_metrics(metrics: dict[str, Array], extra: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The metrics of a dispatch and the means over its hard tasks, whose finiteness counts for its last step."""
    finite = jnp.atleast_1d(metrics["finite"])
    for found in extra:
        finite = finite.at[-1].set(finite[-1] & found["finite"])
    means = {f"hard_{name}": jnp.stack([found[name] for found in extra]).mean() for name in ("loss", "accuracy")}
    return {**metrics, **means, "finite": finite}


def _log_mined(step: int, pool: np.ndarray, names: Sequence[str]) -> None:
    order = np.argsort(-pool, kind="stable")[: np.count_nonzero(pool)]
    listed = ", ".join(f"{names[i]} ({pool[i]})" for i in order[:_LISTED])
    more = f", and {len(order) - _LISTED} more" if len(order) > _LISTED else ""
    _logger.info("hard tasks after step %d: %d failure classes: %s%s", step, len(order), listed, more)

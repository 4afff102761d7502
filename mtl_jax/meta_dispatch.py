"""What the loop calls in meta-training: steps on tasks drawn on device, and after each round steps on hard tasks."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import episodes, hard_tasks, meta, parallel
from mtl_jax.data import Split
from mtl_jax.meta import MetaState
from mtl_jax.types import Array, ClassTable, Params

Dispatch = Callable[[MetaState, int], tuple[MetaState, dict[str, Array]]]

_logger = logging.getLogger(__name__)
_LISTED = 10  # mined classes named in a log line


def dispatcher(
    config: Mapping[str, Any], split: Split, devices: Sequence[jax.Device], theta: Params, *,
    keys: tuple[Array, Array], **options: Any,
) -> Dispatch:  # fmt: skip
    """The loop's dispatch of meta-training.

    Args:
      config: a whole config.
      split: the train split.
      devices: local devices.
      theta: Θ, placed on them.
      keys: of the normal tasks' stream and of the hard tasks'.
      **options: of `meta.train_step`: embed, inner, optimizer.

    Returns:
      (state, first step) -> (state, metrics of the dispatch's steps). With hard tasks the state has a pool.
    """
    placed = split.images, ClassTable(*split.table()), split.labels, *keys
    images, table, labels, key, hard_key = parallel.replicate(placed, devices)
    mines, repeat = config["hard_tasks"]["enabled"], config["runtime"]["steps_per_dispatch"]
    step = functools.partial(_step, config["meta"], len(devices), mines, options)
    compiled = parallel.compile_step(step, devices, arguments=5, repeat=repeat, spread=_spread(repeat))

    def normal(state: MetaState, _: int) -> tuple[MetaState, dict[str, Array]]:
        return compiled(state, theta, images, table, labels, key)

    if not mines:
        return normal
    hard = functools.partial(_hard_step, config["meta"], len(devices), options)
    compiled_hard = parallel.compile_step(hard, devices, arguments=5, spread=_spread())
    batches = config["hard_tasks"]["extra"] // config["meta"]["tasks_per_step"]

    def with_hard_tasks(state: MetaState, at: int) -> tuple[MetaState, dict[str, Array]]:
        state, metrics = normal(state, at)
        if (at + repeat) % config["hard_tasks"]["round"]:
            return state, metrics
        _log_mined(at + repeat, np.asarray(parallel.local(state.pool)), split.class_names)
        extra = []
        for batch in range(batches):
            state, found = compiled_hard(state, theta, images, table, hard_key, np.int32(batch))
            extra.append(found)
        empty = hard_tasks.empty_pool(len(split.class_names))  # a new one, since a step consumes its state
        return state._replace(pool=parallel.replicate(empty, devices)), _with_hard_metrics(metrics, extra)

    return with_hard_tasks


def _spread(repeat: int = 1) -> Any:
    """`spread` of `parallel.compile_step`: tasks lie along an axis that comes after that of a dispatch's steps."""
    return None, {"loss": None, "accuracy": None, "finite": None, "class_accuracy": int(repeat > 1)}


def _sizes(group: Mapping[str, Any]) -> dict[str, int]:
    return {"way": group["way"], "shot": group["shot"], "query": group["query"]}


def _step(group, devices, mines, options, number, axis, state, theta, images, table, labels, key):
    numbers = parallel.task_numbers(number, devices, group["tasks_per_step"])
    keys = episodes.task_keys(key, state.step, numbers)
    support, query = episodes.sample_tasks(keys, table, **_sizes(group))
    tasks = episodes.gather(images, support, query)
    new, metrics = meta.train_step(state, theta, tasks, **options, axis_name=axis)
    if mines:
        classes = labels[support[:, :, 0]]
        new = new._replace(pool=hard_tasks.collect(state.pool, classes, metrics["class_accuracy"], axis_name=axis))
    return new, metrics


def _hard_step(group, devices, options, number, axis, state, theta, images, table, key, batch):
    numbers = parallel.task_numbers(number, devices, group["tasks_per_step"])
    keys = episodes.task_keys(jax.random.fold_in(key, state.step), batch, numbers)
    tasks = episodes.gather(images, *hard_tasks.sample_tasks(keys, table, state.pool, **_sizes(group)))
    return hard_tasks.train_step(state, theta, tasks, **options, axis_name=axis)


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

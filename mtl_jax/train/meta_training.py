"""The second phase, meta-training: its start, its steps on tasks and hard tasks, its validation. Begin at `phase`."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import hard_tasks, meta, parallel
from mtl_jax.config import rules
from mtl_jax.config.recipe import MetaRecipe, check
from mtl_jax.data import Split
from mtl_jax.embed import feature_width, statistics_of
from mtl_jax.errors import CheckpointError
from mtl_jax.evaluation import Model
from mtl_jax.learners import with_way
from mtl_jax.meta import Frozen, MetaState
from mtl_jax.train.loop import Dispatcher, Phase, Watch, score, state_items, watched
from mtl_jax.train.task_sources import Sizes, Source, sources
from mtl_jax.types import Array, Params
from mtl_jax.workdir.console import mined_line
from mtl_jax.workdir.health import Chance

Devices = Sequence[jax.Device]
_ITEMS = ("learned", "batch_stats", "opt_state")  # of a checkpoint, besides Θ and the pool
_logger = logging.getLogger(__name__)


def phase(
    recipe: MetaRecipe, splits: Mapping[str, Split], devices: Devices, params: Params, batch_stats: Params,
    watch: Watch | None = None,
) -> Phase:  # fmt: skip
    """Meta-training as a phase of the loop.

    Args:
      recipe: the phase.
      splits: 'train', and 'val' where it is validated.
      devices: those of the run.
      params, batch_stats: the pre-trained backbone.
      watch: called before every call of the device.

    Raises:
      ConfigError: a device's tasks cannot be taken `recipe.chunk` at a time; or see `recipe.check`.
    """
    check(recipe, len(devices))
    train = splits["train"]
    state = start(recipe, params, batch_stats, train.images.shape[1:])
    if recipe.hard_tasks:
        state = state._replace(pool=hard_tasks.empty_pool(len(train.class_names)))
    _logger.info("%s", describe_learned(state.learned, params))
    own = jax.tree.map(jnp.copy, state)  # since a step overwrites the memory of its state, here the caller's averages
    theta = parallel.replicate(params, devices)
    dispatch = dispatcher(recipe, train, devices, theta, watch)

    def items(state: MetaState) -> dict[str, Any]:
        pool = {} if state.pool is None else {"hard_tasks": {"pool": parallel.local(state.pool)}}
        return {"params": parallel.local(theta), **state_items(state, _ITEMS), **pool}

    def restore(items: Mapping[str, Any], step: int) -> MetaState:
        _check_same(items["params"], params, done=step == recipe.intervals.steps)
        pool = items["hard_tasks"]["pool"] if "hard_tasks" in items else None
        return parallel.replicate(MetaState(jnp.int32(step), *(items[name] for name in _ITEMS), pool), devices)

    return Phase(
        "meta", state=parallel.replicate(own, devices), dispatch=dispatch.run, close=dispatch.close, items=items,
        restore=restore, validate=_validation(recipe, splits, devices, params), unit="tasks",
        per_step=recipe.tasks_per_step, head=lambda items: items["learned"]["head"],
        chance=Chance(1 / recipe.tasks.way, 1 / recipe.tasks.way), **recipe.intervals._asdict(),
    )  # fmt: skip


def describe_learned(learned: Params, params: Params) -> str:
    """How many numbers meta-training learns, by group, and how many the backbone has; of arrays or their shapes."""
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in learned.items()}
    named = {"ss": "of SS", "params": "of the backbone", "head": "of the head"}
    parts = [f"{sizes[name]:,} parameters {text}" for name, text in named.items() if sizes.get(name)]
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"meta-training learns {', '.join(parts) or 'nothing'}; the backbone has {total:,}"


def _check_same(saved: Params, params: Params, *, done: bool) -> None:
    """Checks that meta-training resumes from the backbone that it started from; only warns if it is `done`."""
    if jax.tree.all(jax.tree.map(np.array_equal, saved, params)):
        return
    text = (
        "meta-training started from another pre-trained backbone than config.pretrain.init gives now; "
        "give the same, or another --workdir"
    )
    if not done:
        raise CheckpointError(text)
    _logger.warning("%s", text)


def start(recipe: MetaRecipe, params: Params, batch_stats: Params, stored_shape: tuple[int, ...]) -> MetaState:
    """The state before the first step, without a pool; stored images are [H, W, C]."""
    features = feature_width(recipe.embed, params, batch_stats, stored_shape)
    learned = recipe.learned.start(with_way(recipe.inner, recipe.tasks.way), recipe.keys.head, params, features)
    return meta.init_state(learned, batch_stats, recipe.optimizer)


def dispatcher(
    recipe: MetaRecipe, train: Split, devices: Devices, theta: Params, watch: Watch | None = None
) -> Dispatcher:
    """The loop's dispatch: steps on tasks, and after each round of them steps on hard tasks.

    Args:
      recipe, devices, watch: as in `phase`.
      train: the train split.
      theta: Θ, placed on the devices.

    Raises:
      ConfigError: a device's tasks cannot be taken `recipe.chunk` at a time.
    """
    repeat, mining = recipe.intervals.per_dispatch, recipe.hard_tasks
    each = recipe.tasks_per_step // len(devices)
    sizes = Sizes(*recipe.tasks, each, recipe.chunk or each)
    rules.check_chunk(sizes.chunk, each, repeat)
    normal, hard = sources(recipe, train, devices, sizes)
    classes = len(train.class_names)
    kind = _Kind(normal, counts=classes if mining else 0, repeat=repeat)
    normal_step = _stepper(recipe, devices, sizes, theta, kind, watch)
    if not mining:
        return Dispatcher(lambda state, step: normal_step(state, step, 0), normal.close)
    hard_step = _stepper(recipe, devices, sizes, theta, _Kind(hard, hard=True), watch)

    def run(state: MetaState, step: int) -> tuple[MetaState, dict[str, Array]]:
        state, metrics = normal_step(state, step, 0)
        if (step + repeat) % mining.round:
            return state, metrics
        _logger.info("%s", mined_line(step + repeat, np.asarray(parallel.local(state.pool)), train.class_names))
        hard_metrics = []
        for batch in range(mining.extra // recipe.tasks_per_step):
            state, of_batch = hard_step(state, step, batch)
            hard_metrics.append(of_batch)
        empty = hard_tasks.empty_pool(classes)  # a new one, since a step consumes its state
        state = state._replace(pool=parallel.replicate(empty, devices))
        return state, _with_hard_metrics(metrics, hard_metrics)

    return Dispatcher(run, normal.close)


# Its step: one compiled call, or one for each chunk of the tasks and one to apply their gradient.


class _Kind(NamedTuple):
    """The settings of a normal step or of one on hard tasks.

    source: of its tasks. hard: whether these are hard tasks. counts: the number of base classes where failure classes
    are counted, else 0. repeat: steps in a call.
    """

    source: Source
    hard: bool = False
    counts: int = 0
    repeat: int = 1


Stepper = Callable[[MetaState, int, int], tuple[MetaState, dict[str, Array]]]
"""(state, step, batch of the round) -> (state, metrics)."""


def _stepper(
    recipe: MetaRecipe, devices: Devices, sizes: Sizes, theta: Params, kind: _Kind, watch: Watch | None
) -> Stepper:  # fmt: skip
    """The compiled step of a kind."""
    build = _whole_stepper if sizes.chunk == sizes.tasks else _chunked_stepper
    return watched(build(recipe, devices, sizes, theta, kind), watch, kind.hard)


def _whole_stepper(recipe: MetaRecipe, devices: Devices, sizes: Sizes, theta: Params, kind: _Kind) -> Stepper:
    """All tasks of a device at once."""
    # Tasks lie along an axis that comes after that of a dispatch's steps.
    metrics = {"loss": None, "accuracy": None, "finite": None, "class_accuracy": int(kind.repeat > 1)}
    source = kind.source
    compiled = parallel.compile_step(
        functools.partial(_step, recipe, kind), devices,
        arguments=1 + source.count, apart=source.split, repeat=kind.repeat, spread=(None, metrics),
    )  # fmt: skip
    return lambda state, step, batch: compiled(state, theta, *source.arguments(state, step, batch))


def _step(
    recipe: MetaRecipe, kind: _Kind, number: Array, axis: str | None, state: MetaState, theta: Params, *arguments: Any
) -> tuple[MetaState, dict[str, Array]]:
    tasks, classes = kind.source.draw(number, state, 0, *arguments)
    train_step = hard_tasks.train_step if kind.hard else meta.train_step
    new, metrics = train_step(
        state,
        theta,
        tasks,
        embed=recipe.embed,
        inner=recipe.inner,
        optimizer=recipe.optimizer,
        loss=recipe.loss,
        axis_name=axis,
    )
    if kind.counts:
        pool = hard_tasks.collect(state.pool, classes, metrics["class_accuracy"], axis_name=axis)
        new = new._replace(pool=jnp.where(metrics["finite"], pool, state.pool))
    return new, metrics


class _Sum(NamedTuple):
    """What the chunks of a meta-batch add up to."""

    grads: Params
    loss: Array
    accuracy: Array
    batch_stats: Params
    pool: Array


def _chunked_stepper(recipe: MetaRecipe, devices: Devices, sizes: Sizes, theta: Params, kind: _Kind) -> Stepper:
    """A device's tasks chunk by chunk, so that the activations of one chunk alone are in memory."""
    source, chunks, total = kind.source, sizes.tasks // sizes.chunk, None

    def add(
        number: Array, axis: str | None, total: _Sum, state: MetaState, theta: Params, chunk: Array, *arguments: Any
    ) -> tuple[_Sum, dict[str, Array]]:
        tasks, classes = source.draw(number, state, chunk, *arguments)
        grads, (loss, result) = meta.gradients(
            state.learned, Frozen(theta, state.batch_stats), tasks, embed=recipe.embed, inner=recipe.inner,
            loss=recipe.loss, axis_name=axis,
        )  # fmt: skip
        pool = jnp.zeros_like(total.pool)
        if kind.counts:
            pool = hard_tasks.collect(pool, classes, result.class_accuracy, axis_name=axis)
        own = _Sum(grads, loss, result.accuracy, result.batch_stats, pool)
        return jax.tree.map(lambda a, b: jnp.where(chunk == 0, b, a + b), total, own), {}

    def apply(number, axis, state, total):
        mean = jax.tree.map(lambda a: a / chunks, total._replace(pool=()))
        batch_stats = mean.batch_stats if statistics_of(recipe.embed) == "train" else state.batch_stats
        new, finite = meta.apply_gradients(state, mean.grads, mean.loss, batch_stats, recipe.optimizer)
        if kind.hard:
            new = hard_tasks.uncounted(new, state)
        if kind.counts:
            new = new._replace(pool=state.pool + jnp.where(finite, total.pool, 0))
        return new, {"loss": mean.loss, "accuracy": mean.accuracy, "finite": finite}

    compiled_add = parallel.compile_step(add, devices, arguments=3 + source.count, apart=source.split)
    compiled_apply = parallel.compile_step(apply, devices, arguments=1)

    def run(state: MetaState, step: int, batch: int) -> tuple[MetaState, dict[str, Array]]:
        nonlocal total
        if total is None:  # of the right shapes; what it holds is not read, since the first chunk overwrites it
            zero = jnp.zeros((), jnp.float32)
            like = _Sum(state.learned, zero, zero, state.batch_stats, hard_tasks.empty_pool(kind.counts))
            total = parallel.replicate(jax.tree.map(jnp.zeros_like, parallel.local(like)), devices)
        arguments = source.arguments(state, step, batch)
        for chunk in range(chunks):
            total, _ = compiled_add(total, state, theta, np.int32(chunk), *arguments)
        return compiled_apply(state, total)

    return run


# Metrics of hard tasks.


def _with_hard_metrics(metrics: dict[str, Array], hard: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The metrics of a dispatch and the means over its hard tasks, whose finiteness counts for its last step."""
    finite = jnp.atleast_1d(metrics["finite"])
    for of_batch in hard:
        finite = finite.at[-1].set(finite[-1] & of_batch["finite"])
    means = {f"hard_{name}": jnp.stack([of_batch[name] for of_batch in hard]).mean() for name in ("loss", "accuracy")}
    return {**metrics, **means, "finite": finite}


# Its validation: few-shot tasks of classes that it has not seen.


def _validation(
    recipe: MetaRecipe, splits: Mapping[str, Split], devices: Devices, params: Params
) -> Callable[[MetaState], tuple[float, dict[str, float]]] | None:
    if not recipe.validation or "val" not in splits:
        return None

    def validate(state: MetaState) -> tuple[float, dict[str, float]]:
        learned, batch_stats = parallel.local((state.learned, state.batch_stats))
        model = Model(recipe.embed, learned, Frozen(params, batch_stats))
        return score(model, splits["val"], recipe.validation, recipe.limits, devices)

    return validate

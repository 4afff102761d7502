"""A step of a run once more: its images and predictions as a picture, its gradients, and what of it is not finite.

Sampling is stateless, so a checkpoint before the step and the step's number are enough.
"""

import functools
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import episodes, meta, parallel, pretrain
from mtl_jax.config import build
from mtl_jax.config.recipe import MetaRecipe, PretrainRecipe
from mtl_jax.data import Dataset, Split
from mtl_jax.errors import CheckpointError, ConfigError, first_line
from mtl_jax.evaluate import maps, network
from mtl_jax.train import meta_training, pretraining, replay_pictures
from mtl_jax.train.loop import Phase
from mtl_jax.train.run import prepare, resolve
from mtl_jax.train.task_sources import Sizes, positions
from mtl_jax.types import ClassTable, Params
from mtl_jax.words import counted
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints

PHASES = ("pretrain", "meta")
_PACKAGE = Path(__file__).parents[1]
_WORDS = {True: "finite", False: "not finite"}


class Part(NamedTuple):
    """One optimiser step of what is replayed: the step itself, or a meta-batch of hard tasks after it.

    loss, accuracy: of the whole batch. norms: of the gradient, by group of parameters. finite: of loss and gradient.
    bad: numbers of the tasks that are not finite. cause: where `jax_debug_nans` met the first NaN, '' if nowhere.
    picture: the file.
    """

    name: str
    loss: float
    accuracy: float
    norms: Mapping[str, float]
    finite: bool
    bad: tuple[int, ...]
    cause: str
    picture: Path


class Replay(NamedTuple):
    """What `replay` returns: the phase, the step (from 1), the checkpoint it was run from, loss and accuracy."""

    phase: str
    step: int
    start: int
    loss: float
    accuracy: float
    finite: bool
    parts: tuple[Part, ...]


def wanted(text: str) -> tuple[str, int]:
    """(phase, step) of 'STEP', 'meta:STEP' or 'pretrain:STEP'. Raises ConfigError."""
    phase, _, step = text.rpartition(":")
    if (phase or "meta") not in PHASES or not re.fullmatch(r"[1-9]\d{0,17}", step):
        raise ConfigError(f"--replay={text}: expected a step as numbered in metrics.jsonl, such as 120 or pretrain:120")
    return phase or "meta", int(step)


def replay(settings: ConfigDict, path: str, step: tuple[str, int]) -> Replay:
    """Runs a step of a workdir's run again, from the newest whole checkpoint before it; the run is left as it is.

    Args:
      settings: the config of the run.
      path: its workdir; pictures go into `path`/replay.
      step: (phase, number from 1).

    Returns:
      Loss, accuracy and finiteness as the run had them, and what each optimiser step of it looked like.

    Raises:
      MtlError: no such run or step, or the run is of another config or other data.
    """
    settings, devices = resolve(settings)
    workdir, (name, number) = Workdir(path), step
    if not workdir.config.exists():
        raise ConfigError(f"{path}: no run to replay here; give the --workdir of a run")
    _check_step(settings, name, number)
    settings, dataset, _ = prepare(settings, len(devices), workdir)
    splits = dataset.splits
    before: list[tuple[Any, bool, int]] = []

    def watch(state, hard, batch):
        # The step itself, and then the hard tasks that follow it; those before it are not worth a copy each.
        if before or (not hard and int(parallel.local(state.step)) == number - 1):
            before.append((_copy(state), hard, batch))

    if name == "meta":
        recipe, frozen = build.meta_training(settings), meta.Frozen(*network.pretrained(settings, workdir))
        recipe, splits = maps.of_training(settings, recipe, splits, frozen)
        make = functools.partial(meta_training.phase, **frozen._asdict())
        inspection = _of_meta_training(recipe, splits["train"], frozen.params)
    else:
        recipe, make = build.pretraining(settings), pretraining.phase
        inspection = _of_pretraining(recipe, splits["train"], len(devices))
    several = recipe.intervals.per_dispatch > 1
    single = recipe._replace(intervals=recipe.intervals._replace(per_dispatch=1))
    alone = make(single, splits, devices, watch=watch)
    phase = make(recipe, splits, devices) if several else alone
    try:
        start, (first, state), metrics = _run_to(phase, workdir, dataset, number)
        for step in range(first, number) if several else ():
            state, _ = alone.dispatch(parallel.replicate(state, devices), step)
    finally:
        phase.close()
        alone.close()
    position = (number - 1 - start) % phase.per_dispatch
    loss, accuracy, finite = (np.atleast_1d(metrics[key])[position].item() for key in ("loss", "accuracy", "finite"))
    stem = workdir.path / "replay" / f"{name}-{number}"
    parts = tuple(_part(inspection, dataset.splits["train"], stem, *before_step) for before_step in before)
    return Replay(name, number, start, loss, accuracy, bool(finite), parts)


def describe(replayed: Replay) -> str:
    """What `train.py --replay` prints."""
    origin = f"checkpoint {replayed.start}" if replayed.start else "the start"
    lines = [
        f"{replayed.phase} step {replayed.step}, run again from {origin}: loss {replayed.loss!r}, "
        f"accuracy {replayed.accuracy!r}, {_WORDS[replayed.finite]}"
    ]
    for part in replayed.parts:
        norms = ", ".join(f"{group} {value:.4g}" for group, value in part.norms.items())
        lines.append(f"{part.name}: loss {part.loss:.6g}, accuracy {100 * part.accuracy:.1f} %, {_WORDS[part.finite]}")
        lines.append(f"  gradient norms: {norms}")
        if part.bad:
            lines.append(f"  tasks that are not finite: {', '.join(map(str, part.bad))}")
        if part.cause:
            lines.append(f"  jax_debug_nans: {part.cause}")
        lines.append(f"  picture: {part.picture}")
    return "\n".join(lines)


def _check_step(settings: ConfigDict, name: str, number: int) -> None:
    group = settings[name]
    skipped = settings.pretrain.init if name == "pretrain" else settings.meta.learn == "none"
    if skipped:
        key = "pretrain.init" if name == "pretrain" else "meta.learn"
        raise ConfigError(f"--replay={name}:{number}: this run has no such phase (config.{key} is {skipped!r})")
    if number > group.steps:
        raise ConfigError(f"--replay={name}:{number}: the phase has {counted(group.steps, 'step')}")


def _run_to(phase: Phase, workdir: Workdir, dataset: Dataset, number: int) -> tuple[int, tuple[int, Any], Any]:
    """Runs the dispatches from the newest checkpoint before a step to the one that has it in it.

    Returns:
      (the checkpoint's step, (first step of that dispatch, a copy of the state before it), its metrics).
    """
    state, start = _restore(phase, Checkpoints(workdir.checkpoints(phase.name)), dataset, number)
    first = start
    while first + phase.per_dispatch < number:
        state, _ = phase.dispatch(state, first)
        first += phase.per_dispatch
    before = _copy(state)
    _, metrics = phase.dispatch(state, first)
    return start, (first, before), jax.device_get(dict(metrics))


def _restore(phase: Phase, checkpoints: Checkpoints, dataset: Dataset, number: int) -> tuple[Any, int]:
    for step in reversed([step for step in checkpoints.steps() if step < number]):
        try:
            saved = checkpoints.restore(phase.items(phase.state), step)
        except CheckpointError:
            continue  # damaged, or deleted by a run in progress: an older one works too
        if saved.metadata["data"] != dataset.fingerprint:
            raise CheckpointError(f"{checkpoints.directory}: was trained on other images; give the same data")
        return phase.restore(saved.items, step), step
    return phase.state, 0


def _copy(state: Any) -> Any:
    # Copied, since a step may overwrite the state that it is given.
    return jax.tree.map(np.array, parallel.local(state))


class Seen(NamedTuple):
    """Of one task, or of a batch: loss, accuracy, gradient by group of parameters, predictions [B]."""

    loss: Any
    accuracy: Any
    grads: Any
    predictions: Any


class Inspection(NamedTuple):
    """How an optimiser step of a phase is looked at: task by task, or as one batch.

    inputs: (state, hard, batch) -> [(arguments, positions of images)]. gradients: the arguments -> Seen, compiled.
    """

    inputs: Callable[[Any, bool, int], list[tuple[Any, Any]]]
    gradients: Callable[..., Seen]


def _of_meta_training(recipe: MetaRecipe, train: Split, theta: Params) -> Inspection:
    """Task by task."""
    options = {"embed": recipe.embed, "inner": recipe.inner}
    keys, count = (recipe.keys.tasks, recipe.keys.hard_tasks), recipe.tasks_per_step
    sizes, table = Sizes(*recipe.tasks, count, count), ClassTable(*train.table())
    draw = jax.jit(lambda state, hard, batch: positions(sizes, hard, state, keys[hard], table, batch, np.arange(count)),
                   static_argnums=1)  # fmt: skip

    @jax.jit
    def gradients(learned, frozen, episode):
        loss_and_grad = jax.value_and_grad(functools.partial(meta.episode_loss, **options), has_aux=True)
        (loss, result), grads = loss_and_grad(learned, frozen, episode)
        logits, _ = meta.episode_logits(learned, frozen, episode, **options)
        return Seen(loss, result.accuracy, grads, logits.argmax(-1))

    def inputs(state, hard, batch):
        frozen, sets = meta.Frozen(theta, state.batch_stats), map(np.asarray, draw(state, hard, batch))
        tasks = list(zip(*sets, strict=True))
        return [((state.learned, frozen, episodes.gather(train.images, *task)), task) for task in tasks]

    return Inspection(inputs, gradients)


def _of_pretraining(recipe: PretrainRecipe, train: Split, devices: int) -> Inspection:
    """The whole batch, spread over as many virtual devices as the run had."""
    parts = pretraining.make_parts(recipe, train, parallel.AXIS)  # a virtual axis, on one device
    options = {name: value for name, value in parts.step.keywords.items() if name not in ("optimizer", "average")}
    ramp = options.pop("dropblock_ramp")
    options["axis_name"] = parallel.AXIS
    module = {name: options[name] for name in ("backbone", "batch_statistics")}
    epochs = pretraining.cut(recipe, len(train.labels), devices)
    view = pretraining.viewer(recipe, recipe.keys.augment)

    def of_device(state, number, images, labels):
        params, stats, share = state.params, state.batch_stats, pretrain.ramped(state.step, ramp)
        views, labels, dropout_key = view(state.step, number, images, labels)
        loss_and_grad = jax.value_and_grad(pretrain.classification_loss, has_aux=True)
        (loss, (accuracy, _)), grads = loss_and_grad(
            params, stats, views, labels, dropout_key, teacher=state.teacher, **options, **share
        )  # fmt: skip
        features, _ = pretrain.training_features(params["backbone"], stats, views, dropout_key, **module, **share)
        logits = options["classifier"].apply({"params": params["classifier"]}, features)
        return *jax.lax.pmean((loss, accuracy, grads), parallel.AXIS), logits.argmax(-1)

    @jax.jit
    def gradients(state, images, labels):
        shares = [array.reshape(devices, -1, *array.shape[1:]) for array in (images, labels)]
        mapped = jax.vmap(of_device, (None, 0, 0, 0), (None, None, None, 0), axis_name=parallel.AXIS)
        loss, accuracy, grads, predictions = mapped(state, np.arange(devices), *shares)
        return Seen(loss, accuracy, grads, predictions.reshape(-1))

    def inputs(state, hard, batch):
        rows = epochs.rows(int(state.step))
        return [((state, train.images[rows], train.labels[rows]), rows)]

    return Inspection(inputs, gradients)


def _part(inspection: Inspection, train: Split, stem: Path, state: Any, hard: bool, batch: int) -> Part:
    """Looks at one optimiser step from its `state`; the picture's file has a name that begins with `stem`."""
    picture = stem.with_name(f"{stem.name}-hard{batch}.png" if hard else f"{stem.name}.png")
    inputs = inspection.inputs(state, hard, batch)
    cause, seen = "", []
    for arguments, _ in inputs:
        cause = cause or _first_nan(inspection.gradients, arguments)
        seen.append(jax.device_get(inspection.gradients(*arguments)))
    grads = jax.tree.map(lambda *parts: np.mean(parts, 0), *[one.grads for one in seen])
    norms = {group: _norm(tree) for group, tree in grads.items()}
    fine = [bool(np.isfinite([one.loss, _norm(one.grads)]).all()) for one in seen]
    loss, accuracy = (float(np.mean([getattr(one, key) for one in seen])) for key in ("loss", "accuracy"))
    bad = tuple(number for number, good in enumerate(fine) if not good) if len(fine) > 1 else ()
    draw = replay_pictures.task if hasattr(state, "learned") else replay_pictures.batch
    drawn = [
        draw(train, images, one.predictions, number, one.loss, good)
        for number, ((_, images), one, good) in enumerate(zip(inputs, seen, fine, strict=True))
    ]
    replay_pictures.save(picture, drawn)
    return Part(picture.stem, loss, accuracy, norms, all(fine), bad, cause, picture)


def _norm(tree: Any) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(tree))))


def _first_nan(compiled: Callable[..., Any], arguments: Any) -> str:
    """Where `jax_debug_nans` finds the first NaN, '' if nowhere. It reruns a function that returned one, op by op."""
    with jax.debug_nans(True):
        try:
            jax.block_until_ready(compiled(*arguments))
        except FloatingPointError as error:
            own = [f for f in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(f.filename).parents]
            inner = [f for f in own if f.filename != __file__]
            where = f" at mtl_jax/{Path(inner[-1].filename).relative_to(_PACKAGE)}:{inner[-1].lineno}" if inner else ""
            return first_line(error).rstrip(".") + where
    return ""

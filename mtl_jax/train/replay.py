"""A step of a run once more: its images and predictions as a picture, its gradients, and what of it is not finite.

Sampling is stateless, so a checkpoint before the step and the step's number are enough.
"""

import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import parallel
from mtl_jax.data import Dataset
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.evaluate import network
from mtl_jax.train import phases, replay_looks, replay_pictures
from mtl_jax.train.loop import Phase
from mtl_jax.train.replay_looks import Look
from mtl_jax.train.run import prepare, resolve
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints

PHASES = ("pretrain", "meta")
_PACKAGE = Path(__file__).parents[1]


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
        raise ConfigError(f"--replay={text}: expected a step as metrics.jsonl counts them, 120 or pretrain:120")
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
    place, (name, number) = Workdir(path), step
    if not place.config.exists():
        raise ConfigError(f"{path}: no run there to replay a step of; give the --workdir of one")
    _check_step(settings, name, number)
    settings, dataset = prepare(settings, len(devices), place)
    single = settings.copy_and_resolve_references()
    single.runtime.steps_per_dispatch = 1
    before: list[tuple[Any, bool, int]] = []

    def watch(state, hard, batch):
        # The step itself, and then the hard tasks that follow it; those before it are not worth a copy each.
        if before or (not hard and int(parallel.local(state.step)) == number - 1):
            before.append((_copy(state), hard, batch))

    alone = _phase(single, name, dataset, devices, place, watch)
    several = settings.runtime.steps_per_dispatch > 1
    phase = _phase(settings, name, dataset, devices, place) if several else alone
    try:
        start, (at, state), metrics = _run_to(phase, place, dataset, number)
        for step in range(at, number) if several else ():
            state, _ = alone.dispatch(parallel.replicate(state, devices), step)
    finally:
        phase.close()
        alone.close()
    at = (number - 1 - start) % phase.per_dispatch
    loss, accuracy, finite = (np.atleast_1d(metrics[key])[at].item() for key in ("loss", "accuracy", "finite"))
    look = (replay_looks.meta_training if name == "meta" else replay_looks.pretraining)(
        single, place, dataset, len(devices)
    )
    folder = place.path / "replay"
    parts = tuple(_part(look, folder, f"{name}-{number}", *seen) for seen in before)
    return Replay(name, number, start, loss, accuracy, bool(finite), parts)


def describe(found: Replay) -> str:
    """What `train.py --replay` prints."""
    origin = f"checkpoint {found.start}" if found.start else "the start"
    lines = [
        f"{found.phase} step {found.step}, run again from {origin}: loss {found.loss!r}, "
        f"accuracy {found.accuracy!r}, {_finite(found.finite)}"
    ]
    for part in found.parts:
        norms = ", ".join(f"{group} {value:.4g}" for group, value in part.norms.items())
        lines.append(f"{part.name}: loss {part.loss:.6g}, accuracy {100 * part.accuracy:.1f} %, {_finite(part.finite)}")
        lines.append(f"  gradient norms: {norms}")
        if part.bad:
            lines.append(f"  tasks that are not finite: {', '.join(map(str, part.bad))}")
        if part.cause:
            lines.append(f"  jax_debug_nans: {part.cause}")
        lines.append(f"  picture: {part.picture}")
    return "\n".join(lines)


def _finite(finite: bool) -> str:
    return "finite" if finite else "not finite"


def _check_step(settings: ConfigDict, name: str, number: int) -> None:
    group = settings[name]
    skipped = settings.pretrain.init if name == "pretrain" else settings.meta.learn == "none"
    if skipped:
        key = "pretrain.init" if name == "pretrain" else "meta.learn"
        raise ConfigError(f"--replay={name}:{number}: this run has no such phase (config.{key} is {skipped!r})")
    if number > group.steps:
        raise ConfigError(f"--replay={name}:{number}: the phase has {group.steps} steps")


def _phase(settings: ConfigDict, name: str, dataset: Dataset, devices: Any, place: Workdir, watch: Any = None) -> Phase:
    if name == "meta":
        return phases.meta_training(settings, dataset, devices, *network.pretrained(settings, place), watch)
    phase = phases.pretraining(settings, dataset, devices)

    def watched(state, at):
        watch(state, False, 0)
        return phase.dispatch(state, at)

    return phase._replace(dispatch=watched) if watch else phase


def _run_to(phase: Phase, place: Workdir, dataset: Dataset, number: int) -> tuple[int, tuple[int, Any], Any]:
    """Runs the dispatches from the newest checkpoint before a step to the one that has it in it.

    Returns:
      (the checkpoint's step, (first step of that dispatch, a copy of the state before it), its metrics).
    """
    state, start = _restore(phase, Checkpoints(place.checkpoints(phase.name)), dataset, number)
    at = start
    while at + phase.per_dispatch < number:
        state, _ = phase.dispatch(state, at)
        at += phase.per_dispatch
    before = _copy(state)
    _, metrics = phase.dispatch(state, at)
    return start, (at, before), jax.device_get(dict(metrics))


def _restore(phase: Phase, checkpoints: Checkpoints, dataset: Dataset, number: int) -> tuple[Any, int]:
    for step in reversed([step for step in checkpoints.steps() if step < number]):
        try:
            found = checkpoints.restore(phase.items(phase.state), step)
        except CheckpointError:
            continue  # damaged, or deleted by a run that goes on meanwhile: an older one does as well
        if found.metadata["data"] != dataset.fingerprint:
            raise CheckpointError(f"{checkpoints.directory}: was trained on other images; give the same data")
        return phase.restore(found.items, step), step
    return phase.state, 0


def _copy(state: Any) -> Any:
    # Copied, since a step may overwrite the state that it is given.
    return jax.tree.map(np.array, parallel.local(state))


def _part(look: Look, folder: Path, name: str, state: Any, hard: bool, batch: int) -> Part:
    inputs = look.inputs(state, hard, batch)
    cause, seen = "", []
    for arguments, _ in inputs:
        cause = cause or _first_nan(look.gradients, arguments)
        seen.append(jax.device_get(look.gradients(*arguments)))
    grads = jax.tree.map(lambda *parts: np.mean(parts, 0), *[one.grads for one in seen])
    norms = {group: _norm(tree) for group, tree in grads.items()}
    fine = [bool(np.isfinite([one.loss, _norm(one.grads)]).all()) for one in seen]
    loss, accuracy = (float(np.mean([getattr(one, key) for one in seen])) for key in ("loss", "accuracy"))
    name = f"{name}-hard{batch}" if hard else name
    bad = tuple(number for number, good in enumerate(fine) if not good) if len(fine) > 1 else ()
    drawn = [
        look.draw(images, one.predictions, number, one.loss, good)
        for number, ((_, images), one, good) in enumerate(zip(inputs, seen, fine, strict=True))
    ]
    picture = replay_pictures.save(folder / f"{name}.png", drawn)
    return Part(name, loss, accuracy, norms, all(fine), bad, cause, picture)


def _norm(tree: Any) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(tree))))


def _first_nan(compiled: Callable[..., Any], arguments: Any) -> str:
    """Where `jax_debug_nans` finds the first NaN, '' if nowhere; it runs what returned one again, by operations."""
    with jax.debug_nans(True):
        try:
            jax.block_until_ready(compiled(*arguments))
        except FloatingPointError as error:
            own = [f for f in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(f.filename).parents]
            inner = [f for f in own if f.filename != __file__]
            where = f" at mtl_jax/{Path(inner[-1].filename).relative_to(_PACKAGE)}:{inner[-1].lineno}" if inner else ""
            return str(error).splitlines()[0].rstrip(".") + where
    return ""

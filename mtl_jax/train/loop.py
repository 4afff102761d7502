"""The loop of a phase: steps, validation, checkpoints, logs. It resumes from the newest checkpoint in its folder."""

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax import parallel
from mtl_jax.config import more_steps
from mtl_jax.config.recipe import Limits
from mtl_jax.data import Split
from mtl_jax.errors import CheckpointError
from mtl_jax.evaluation import Model, Protocol, evaluate_tasks
from mtl_jax.launch import environment, hosts
from mtl_jax.launch.signals import Stopped, StopRequest
from mtl_jax.metrics import describe_chance, in_percent, mean_interval
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints
from mtl_jax.workdir.console import Progress
from mtl_jax.workdir.health import Chance, Health, Validation
from mtl_jax.workdir.step_log import Log, Skipped
from mtl_jax.workdir.writers import JsonlWriter, Writer

_logger = logging.getLogger(__name__)
_LOGGED = ("loss", "accuracy", "hard_loss", "hard_accuracy")


class Phase(NamedTuple):
    """Pre-training or meta-training as the loop runs it.

    name: 'pretrain' or 'meta'. steps: how many in all. state: the one at step 0, a tree whose field `step` counts.
    dispatch: (state, first step) -> (state, metrics of `per_dispatch` steps). items: (state) -> the items of a
    checkpoint. restore: (items, step) -> state. validate: (state) -> (score, scalars), or None. unit, per_step: 'tasks'
    or 'images', and how many of them a step takes. head: (items) -> the parameters of the head. chance: what guessing
    gives. skip: steps that may be left out because they are not finite.
    """

    name: str
    steps: int
    state: Any
    dispatch: Callable[[Any, int], tuple[Any, Mapping[str, jax.Array]]]
    items: Callable[[Any], dict[str, Any]]
    restore: Callable[[Mapping[str, Any], int], Any]
    validate: Callable[[Any], tuple[float, dict[str, float]]] | None
    unit: str
    per_step: int
    per_dispatch: int
    log_every: int
    val_every: int
    checkpoint_every: int
    head: Callable[[Mapping[str, Any]], Any]
    chance: Chance
    skip: int = 0
    close: Callable[[], None] = lambda: None  # ends the threads that gather images ahead of the steps


class Dispatcher(NamedTuple):
    """`Phase.dispatch` and `Phase.close`."""

    run: Callable[[Any, int], tuple[Any, dict[str, jax.Array]]]
    close: Callable[[], None]


Watch = Callable[[Any, bool, int], None]
"""Called before each compiled call with (state, whether for hard tasks, index of the meta-batch in the round)."""


def watched(run: Callable[..., Any], watch: Watch | None, hard: bool = False) -> Callable[..., Any]:
    """`run(state, step[, batch])` with a call of `watch`, if there is one, before each of its own."""

    def watch_and_run(state, step, *batch):
        watch(state, hard, *(batch or (0,)))
        return run(state, step, *batch)

    return watch_and_run if watch else run


def state_items(state: Any, names: Sequence[str]) -> dict[str, Any]:
    """This process's copy of the fields of a state that a checkpoint carries; those that are None are left out."""
    return {name: parallel.local(getattr(state, name)) for name in names if getattr(state, name) is not None}


def score(
    model: Model, split: Split, protocol: Protocol, limits: Limits, devices: Sequence[jax.Device]
) -> tuple[float, dict[str, float]]:
    """What `Phase.validate` returns: a model's mean accuracy on the tasks of a protocol, and the scalars to log."""
    accuracies = evaluate_tasks(
        model, split.images, split.table(), protocol,
        embed_batch=limits.embed_batch, chunk=limits.task_chunk, devices=devices,
    )  # fmt: skip
    mean, ci95 = mean_interval(accuracies)
    return mean, {"accuracy": mean} | ({} if ci95 is None else {"ci95": ci95})


def run_phase(
    phase: Phase,
    workdir: Workdir,
    *,
    metadata: Mapping[str, Any],
    keep: int,
    start: int,
    stop: StopRequest,
    writers: list[Writer],
    metrics: JsonlWriter,
    timing: JsonlWriter,
    label: str = "",
) -> int:
    """Runs a phase from where its newest checkpoint stands to its end.

    Metrics are fetched one dispatch late, so that the host never waits for the step that it has just started.

    Args:
      phase: what to run.
      workdir: where its checkpoints are.
      metadata: what a checkpoint carries besides; a resumed run's `data` fingerprint must be the same.
      keep: checkpoints kept besides the best.
      start: the size of the metrics file before the phase.
      stop: true once a signal has come.
      writers: further writers of the metrics.
      metrics, timing: the files.
      label: stands before the phase's name in its progress.

    Returns:
      The size of the metrics file after the phase, the next one's `start`.

    Raises:
      NotFiniteError: names the step. Stopped: a signal came; the state has been saved. CheckpointError: see there.
    """
    checkpoints = Checkpoints(workdir.checkpoints(phase.name), keep=keep)
    checkpoints.remove_unfinished()
    hosts.wait()
    begin = _resume(phase, checkpoints, metadata, start)
    state, step = begin.state, begin.step
    hosts.check_same("newest checkpoint", step)
    if step < phase.steps and hosts.is_first():
        metrics.truncate(begin.position)
    skipped = Skipped(phase.name, phase.skip, begin.skipped)
    log = Log(phase.name, phase.log_every, [metrics.write, *writers], begin.window, skipped)
    saver = _Saver(phase, checkpoints, metadata, metrics=metrics, log=log, begin=begin)
    record = functools.partial(_record, log, skipped, begin.health)
    pending, started, position = None, time.monotonic(), begin.position
    progress = Progress(
        phase.steps, step, f"{label} {phase.name}".strip(), unit=phase.unit, per_step=phase.per_step,
        chance=phase.chance.training,
    )  # fmt: skip
    with progress as bar:
        while step < phase.steps:
            state, current = phase.dispatch(state, step)
            step += phase.per_dispatch
            if pending:
                bar.update(pending[0], record(*pending))
            pending = (step, current)
            if not (stop or saver.is_due(step)):
                continue
            bar.update(step, record(*pending))
            pending = None
            position = saver.save(step, state)
            _write_timing(timing, phase, step, started)
            if stop and step < phase.steps:
                raise Stopped
    return position


def _record(
    log: Log, skipped: Skipped, health: Health, step: int, metrics: Mapping[str, jax.Array]
) -> dict[str, float]:
    """Logs the metrics of a dispatch, and returns their means."""
    values = {name: np.asarray(value) for name, value in jax.device_get(dict(metrics)).items()}
    finite = np.atleast_1d(values.pop("finite", np.True_))
    for position in np.flatnonzero(~finite):
        skipped.add(step - len(finite) + 1 + int(position))
    each = log.add(step, {name: value for name, value in values.items() if name in _LOGGED})
    health.add(each["loss"], each["accuracy"])
    return {name: float(np.mean(numbers)) for name, numbers in each.items() if numbers}


def _write_timing(timing: JsonlWriter, phase: Phase, step: int, started: float) -> None:
    facts = {"seconds": round(time.monotonic() - started, 3), **environment.memory_peaks()}
    named = {f"{phase.name}/{name}": value for name, value in facts.items()}
    timing.write(step, {**named, "time": round(time.time(), 3)})


class _Saver:
    """Validates, looks after the run's health, and saves; remembers the best score so far."""

    def __init__(
        self, phase: Phase, checkpoints: Checkpoints, metadata: Mapping[str, Any], *,
        metrics: JsonlWriter, log: Log, begin: "_Begin",
    ) -> None:  # fmt: skip
        self._phase, self._checkpoints, self._metadata = phase, checkpoints, metadata
        self._metrics, self._log, self._best, self._health = metrics, log, begin.best, begin.health

    def is_due(self, step: int) -> bool:
        """Whether a validation or a checkpoint is due after `step` steps."""
        return self._is_regular(step) or step % self._phase.checkpoint_every == 0 or step == self._phase.steps

    def _is_regular(self, step: int) -> bool:
        """Whether the run is validated, or looked at where it has no validation, after `step` steps of any length."""
        phase = self._phase
        return step % (phase.val_every if self._is_validated() else phase.checkpoint_every) == 0

    def _is_validated(self) -> bool:
        return self._phase.validate is not None and self._phase.val_every > 0

    def save(self, step: int, state: Any) -> int:
        """Saves the state, validated where that is due, and marks it where it is the best.

        Returns:
          The size of the metrics file.
        """
        items, own = self._phase.items(state), dict[str, Any]()
        if self._is_regular(step) or step == self._phase.steps:
            if not self._is_regular(step):  # a run with more steps continues as if this had not been the last one
                own["before_last"] = self._progress()
            self._check(step, state, items)
        own |= {**self._progress(), **self._log.kept()}
        self._checkpoints.save(step, items, {**self._metadata, **own})
        if self._best and self._best["step"] == step:
            self._checkpoints.mark_best(step, self._best["score"])
        return own["position"]

    def _progress(self) -> dict[str, Any]:
        return {"best": self._best, "position": self._metrics.position(), "health": self._health.state}

    def _check(self, step: int, state: Any, items: Mapping[str, Any]) -> None:
        validation = self._validate(step, state) if self._is_validated() else None
        lines = self._health.check(
            step, _digest(self._phase.head(items)), validation, last=step == self._phase.steps
        )  # fmt: skip
        _warn(lines)

    def _validate(self, step: int, state: Any) -> Validation:
        """Scores the state on the validation tasks; strictly better than before is the new best."""
        score, scalars = self._phase.validate(state)
        self._log.write(step, {f"val_{name}": value for name, value in scalars.items()})
        figure, chance = in_percent(score, scalars.get("ci95")), describe_chance(self._phase.chance.validation)
        _logger.info("%s step %d: validation %s %% (%s)", self._phase.name, step, figure, chance)
        if self._best is None or score > self._best["score"]:
            self._best = {"step": step, "score": score}
        return Validation(score, scalars.get("ci95"))


def _warn(lines: Sequence[str]) -> None:
    for line in lines if hosts.is_first() else ():
        _logger.warning("%s", line)


def _digest(tree: Any) -> str:
    """A digest of the arrays of a tree, on the host; '' if it has none."""
    if not jax.tree.leaves(tree):
        return ""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class _Begin(NamedTuple):
    """Where a run resumes.

    best: {'step', 'score'} of the best validation so far, or None. window, skipped: of `Log` and `Skipped`. position:
    the size of the metrics file.
    """

    state: Any
    step: int
    best: dict[str, Any] | None
    window: dict[str, list[float]]
    skipped: int
    position: int
    health: Health


def _resume(phase: Phase, checkpoints: Checkpoints, metadata: Mapping[str, Any], start: int) -> _Begin:
    """The newest whole checkpoint, or the phase's start."""
    health = functools.partial(Health, phase.name, phase.chance, phase.per_step)
    if not checkpoints.steps():
        return _Begin(phase.state, 0, None, {}, 0, start, health(head=_digest(phase.head(phase.items(phase.state)))))
    saved = checkpoints.restore(phase.items(phase.state))
    then, now = saved.metadata["data"], metadata["data"]
    if then != now:
        raise CheckpointError(
            f"{checkpoints.directory}: was trained on other images (fingerprint {then[:12]}, now {now[:12]}); "
            "give the same data, or another --workdir"
        )
    kept, goes_on = saved.metadata, saved.step < phase.steps
    if goes_on:
        _logger.info("%s resumes from step %d", phase.name, saved.step)
        kept |= kept.get("before_last", {})
    best, own_health = kept["best"], health(kept.get("health"))
    if best and best["step"] in checkpoints.steps():  # a kill between `save` and `mark_best` leaves it unmarked
        checkpoints.mark_best(best["step"], best["score"])
    if goes_on and (text := more_steps.changed_rates(kept, metadata, phase.name, saved.step)):
        _warn(own_health.tell(f"rates at {saved.step}", text))
    state = phase.restore(saved.items, saved.step)
    return _Begin(state, saved.step, best, kept["window"], kept.get("skipped", 0), kept["position"], own_health)

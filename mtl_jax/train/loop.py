"""The loop of a phase: steps, validation, checkpoints, logs. It goes on from the newest checkpoint in its folder."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax import parallel
from mtl_jax.config.recipe import Limits
from mtl_jax.data import Split
from mtl_jax.errors import CheckpointError, NotFiniteError
from mtl_jax.evaluation import Model, Protocol, evaluate_tasks
from mtl_jax.launch import environment, hosts
from mtl_jax.launch.signals import Stopped, StopRequest
from mtl_jax.metrics import in_percent, mean_interval
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.checkpoint import Checkpoints
from mtl_jax.workdir.console import Progress
from mtl_jax.workdir.writers import JsonlWriter, Writer

_logger = logging.getLogger(__name__)
_LOGGED = ("loss", "accuracy", "hard_loss", "hard_accuracy")


class Phase(NamedTuple):
    """Pre-training or meta-training as the loop runs it.

    name: 'pretrain' or 'meta'. steps: how many in all. state: the one at step 0, a tree whose field `step` counts.
    dispatch: (state, first step) -> (state, metrics of `per_dispatch` steps). items: (state) -> the items of a
    checkpoint. restore: (items, step) -> state. validate: (state) -> (score, scalars), or None. unit, per_step: 'tasks'
    or 'images', and how many of them a step takes. skip: steps that may be left out because they are not finite.
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


class Skipped:
    """Counts the steps that were left out, since their loss or a gradient was not finite."""

    def __init__(self, phase: str, allowed: int, count: int) -> None:
        self._phase, self.allowed = phase, allowed
        self.count = count  # part of a checkpoint

    def add(self, step: int) -> None:
        """Counts a step (from 1, as metrics.jsonl has it). Raises NotFiniteError where it is one too many."""
        if self.count >= self.allowed:
            left_out = f" ({self.count} others were skipped: config.runtime.skip_nonfinite)" if self.count else ""
            raise NotFiniteError(
                f"{self._phase} step {step}: the loss or a gradient is not finite{left_out}; the parameters are still "
                f"those of before it. The same command with --replay={self._phase}:{step} shows its images and "
                "gradients; lower the learning rate, or set config.runtime.skip_nonfinite"
            )
        self.count += 1
        _logger.warning("%s step %d is not finite: skipped, as %d before it", self._phase, step, self.count - 1)


class Log:
    """Means of a step's metrics over windows of `every` steps, written as they fill up.

    Values that are not finite are left out of the means. Where steps may be skipped, a line has how many were so far.
    """

    def __init__(
        self, prefix: str, every: int, writers: list[Writer], window: dict[str, list[float]], skipped: Skipped
    ) -> None:
        self._prefix, self._every, self._writers, self._skipped = prefix, every, writers, skipped
        self.window = window  # what has been seen since the last line; part of a checkpoint

    def add(self, step: int, metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Takes the metrics of the steps before `step`; returns the last step's."""
        for name, value in metrics.items():
            self.window.setdefault(name, []).extend(float(v) for v in np.atleast_1d(value) if np.isfinite(v))
        seen = {name: values for name, values in self.window.items() if values}
        if step % self._every == 0:
            skipped = {"skipped": self._skipped.count} if self._skipped.allowed else {}
            self.write(step, {name: float(np.mean(values)) for name, values in seen.items()} | skipped)
            self.window.clear()
        return {name: values[-1] for name, values in seen.items()}

    def kept(self) -> dict[str, Any]:
        """What a checkpoint carries, so that the lines after it are those of a run that was not stopped."""
        return {"window": self.window, "skipped": self._skipped.count}

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars under the phase's name."""
        for writer in self._writers:
            writer(step, {f"{self._prefix}/{name}": value for name, value in scalars.items()})


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

    Returns:
      The size of the metrics file after the phase, the next one's `start`.

    Raises:
      NotFiniteError: names the step. Stopped: a signal came; the state has been saved. CheckpointError: see there.
    """
    checkpoints = Checkpoints(workdir.checkpoints(phase.name), keep=keep)
    checkpoints.remove_unfinished()
    hosts.wait()
    state, step, best, window, count, position = _resume(phase, checkpoints, metadata, start)
    hosts.check_same("newest checkpoint", step)
    if step < phase.steps and hosts.is_first():
        metrics.truncate(position)
    skipped = Skipped(phase.name, phase.skip, count)
    log = Log(phase.name, phase.log_every, [metrics.write, *writers], window, skipped)
    saver = _Saver(phase, checkpoints, metadata, metrics=metrics, log=log, best=best)
    pending, started = None, time.monotonic()
    with Progress(phase.steps, step, phase.name, unit=phase.unit, per_step=phase.per_step) as bar:
        while step < phase.steps:
            state, current = phase.dispatch(state, step)
            step += phase.per_dispatch
            if pending:
                bar.update(pending[0], _record(log, skipped, *pending))
            pending = (step, current)
            if not (stop or saver.is_due(step)):
                continue
            bar.update(step, _record(log, skipped, *pending))
            pending = None
            if phase.validate and phase.val_every and (step % phase.val_every == 0 or step == phase.steps):
                saver.validate(step, state)
            saver.save(step, state)
            _write_timing(timing, phase, step, started)
            if stop and step < phase.steps:
                raise Stopped
            position = saver.position
    return position


def _record(log: Log, skipped: Skipped, step: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    values = {name: np.asarray(value) for name, value in jax.device_get(dict(metrics)).items()}
    finite = np.atleast_1d(values.pop("finite", np.True_))
    for position in np.flatnonzero(~finite):
        skipped.add(step - len(finite) + 1 + int(position))
    scalars = {name: value for name, value in values.items() if name in _LOGGED}
    return log.add(step, scalars)


def _write_timing(timing: JsonlWriter, phase: Phase, step: int, started: float) -> None:
    facts = {"seconds": round(time.monotonic() - started, 3), **environment.memory_peaks()}
    named = {f"{phase.name}/{name}": value for name, value in facts.items()}
    timing.write(step, {**named, "time": round(time.time(), 3)})


class _Saver:
    """Validates and saves; remembers the best score so far."""

    def __init__(
        self, phase: Phase, checkpoints: Checkpoints, metadata: Mapping[str, Any], *,
        metrics: JsonlWriter, log: Log, best: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        self._phase, self._checkpoints, self._metadata = phase, checkpoints, metadata
        self._metrics, self._log, self._best = metrics, log, best
        self.position = 0  # of the metrics file at the last checkpoint

    def is_due(self, step: int) -> bool:
        """Whether a validation or a checkpoint is due after `step` steps."""
        phase = self._phase
        validates = phase.validate is not None and phase.val_every and step % phase.val_every == 0
        return bool(validates) or step % phase.checkpoint_every == 0 or step == phase.steps

    def validate(self, step: int, state: Any) -> None:
        """Scores the state on the validation tasks; strictly better than before is the new best."""
        score, scalars = self._phase.validate(state)
        self._log.write(step, {f"val_{name}": value for name, value in scalars.items()})
        figure = in_percent(score, scalars.get("ci95"))
        _logger.info("%s step %d: validation %s %%", self._phase.name, step, figure)
        if self._best is None or score > self._best["score"]:
            self._best = {"step": step, "score": score}

    def save(self, step: int, state: Any) -> None:
        """Saves the state, and marks it where it is the best."""
        self.position = self._metrics.position()
        own = {"best": self._best, "position": self.position, **self._log.kept()}
        self._checkpoints.save(step, self._phase.items(state), {**self._metadata, **own})
        if self._best and self._best["step"] == step:
            self._checkpoints.mark_best(step, self._best["score"])


def _resume(
    phase: Phase, checkpoints: Checkpoints, metadata: Mapping[str, Any], start: int
) -> tuple[Any, int, dict[str, Any] | None, dict[str, list[float]], int, int]:
    """Of the newest whole checkpoint: state, step, best so far, the log's window, steps skipped, the metrics' size."""
    if not checkpoints.steps():
        return phase.state, 0, None, {}, 0, start
    saved = checkpoints.restore(phase.items(phase.state))
    then, now = saved.metadata["data"], metadata["data"]
    if then != now:
        raise CheckpointError(
            f"{checkpoints.directory}: was trained on other images (fingerprint {then[:12]}, now {now[:12]}); "
            "give the same data, or another --workdir"
        )
    best = saved.metadata["best"]
    if best and best["step"] in checkpoints.steps():  # a kill between `save` and `mark_best` leaves it unmarked
        checkpoints.mark_best(best["step"], best["score"])
    if saved.step < phase.steps:
        _logger.info("%s goes on from step %d", phase.name, saved.step)
    state = phase.restore(saved.items, saved.step)
    kept = saved.metadata
    return state, saved.step, best, kept["window"], kept.get("skipped", 0), kept["position"]

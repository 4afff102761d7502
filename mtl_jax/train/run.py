"""A run from its config to its last checkpoint: pre-training, then meta-training, in a workdir that it resumes from."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config, parallel, workdir
from mtl_jax.config import build, rules, run_data
from mtl_jax.data import Dataset, pictures
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import network
from mtl_jax.launch import environment, hosts, signals
from mtl_jax.train import loop, phases, plan, training_data
from mtl_jax.workdir import checkpoint, console, writers

_logger = logging.getLogger(__name__)


def train(settings: ConfigDict, path: str, hooks: Sequence[writers.Writer] = ()) -> None:
    """Runs what is still to be done of a config's two phases in a workdir.

    Args:
      settings: a config as `configs/default.py` has it.
      path: the workdir.
      hooks: further writers, called as `write(step, {'meta/loss': ...})`; of several processes the first calls them.

    Raises:
      MtlError: what the user can mend. loop.Stopped: a signal came; the run goes on when started again.
    """
    settings, devices = resolve(settings)
    place = workdir.Workdir(path).create()
    with hosts.own_folder(path) as folder, _logged(folder), signals.stop_on_signal() as request:
        own, stop = workdir.Workdir(folder), hosts.stop_together(request, devices)
        settings, dataset = prepare(settings, len(devices), place)
        _check_processes(settings, dataset)
        if parallel.on_cpu() and (warning := environment.cpu_warning()):
            _logger.warning("%s", warning)
        workdir.write_json_atomic(own.config, config.to_json(settings))
        run_data.record(own, dataset, settings.pretrain.init)
        with contextlib.closing(writers.JsonlWriter(own.metrics)) as metrics, \
             contextlib.closing(writers.JsonlWriter(own.timing)) as timing:  # fmt: skip
            common = {
                "metadata": {
                    "config": config.to_json(settings), "data": dataset.fingerprint,
                    "image_shape": list(dataset.splits["train"].images.shape[1:]),
                },
                "keep": settings.runtime.keep, "stop": stop, "metrics": metrics, "timing": timing,
            }  # fmt: skip
            _run(settings, dataset, devices, place, common, hooks)


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """The lock and the log of a folder; on the console, processes but the first only warn."""
    level = logging.INFO if hosts.is_first() else logging.WARNING
    with workdir.lock(folder), console.log_to(workdir.Workdir(folder).log, level=level):
        yield


def _check_processes(settings: ConfigDict, dataset: Dataset) -> None:
    """Whether all processes of the run are about to do the same."""
    settings = config.to_json(settings)
    for name in ("path", "cache_dir"):  # each host may have its own copy
        settings["data"].pop(name)
    hosts.check_same("config", settings)
    hosts.check_same("data set", dataset.fingerprint)


def _run(settings: ConfigDict, dataset: Dataset, devices: Any, place: Any, common: Any, hooks: Any) -> None:
    position = 0
    if not settings.pretrain.init:
        phase = phases.pretraining(settings, dataset, devices)
        position = _run_phase(phase, settings, dataset, place, position, common, hooks)
        hosts.wait()  # for the last checkpoint, which the first process writes
    params, batch_stats = network.pretrained(settings, place)
    if settings.meta.learn != "none":
        phase = phases.meta_training(settings, dataset, devices, params, batch_stats)
        _run_phase(phase, settings, dataset, place, position, common, hooks)


def _run_phase(
    phase: loop.Phase, settings: Any, dataset: Dataset, place: Any, position: int, common: Any, hooks: Any
) -> int:
    phase = phase._replace(dispatch=hosts.polling(phase.dispatch, common["stop"]))
    with contextlib.closing(phase), _board(phase, settings, dataset, place) as board:
        more = [*hooks, *board] if hosts.is_first() else []
        return loop.run_phase(phase, place, start=position, writers=more, **common)


@contextlib.contextmanager
def _board(phase: loop.Phase, settings: Any, dataset: Dataset, place: Any) -> Iterator[list[writers.Writer]]:
    """The writer of a phase's TensorBoard events, where that is installed: [] or one.

    A picture of a task is written at the start of meta-training; the config with the best validation score, by which
    TensorBoard compares runs, at the end of each phase.
    """
    checkpoints = checkpoint.Checkpoints(place.checkpoints(phase.name))
    done = (checkpoints.steps() or [0])[-1]
    if done >= phase.steps or not hosts.is_first():
        yield []
        return
    board = writers.open_tensorboard(place.tensorboard / phase.name, purge_step=done + 1 if done else None)
    if board is None:
        yield []
        return
    with contextlib.closing(board):
        if phase.name == "meta" and not done:
            board.image(0, "meta/task", _picture(settings, dataset))
        yield [board.write]
        best = checkpoints.best()
        scores = {f"{phase.name}/best_val_accuracy": best["score"]} if best else {}
        board.hparams(config.to_json(settings), scores)


def _picture(settings: ConfigDict, dataset: Dataset) -> np.ndarray:
    """A task of the training split as meta-training draws them: uint8 [H, W, 3], a row a class."""
    sizes = {name: settings.meta[name] for name in ("way", "shot", "query")}
    return np.asarray(pictures.episode_grid(dataset.splits["train"], **sizes, seed=settings.seed))


def prepare(settings: ConfigDict, devices: int, place: workdir.Workdir) -> tuple[ConfigDict, Dataset]:
    """The config as a workdir's run has it, planned for so many devices, and its data. `settings` is from `resolve`.

    Raises:
      MtlError: the workdir has a run of another config, or the data cannot give the tasks asked for.
    """
    _check_config(settings, place)
    with hosts.first_goes_first():
        dataset = training_data.load(settings)
    return _planned(settings, dataset, devices, place), dataset


def resolve(settings: ConfigDict) -> tuple[ConfigDict, list[jax.Device]]:
    """A checked copy whose `runtime.dtype` is what it stands for here, so that config.json tells; the run's devices."""
    config.validate(settings)
    resolved = settings.copy_and_resolve_references()
    with resolved.unlocked():
        resolved.runtime.dtype = build.resolve_dtype(settings.runtime.dtype)
    devices = hosts.devices(settings.runtime.devices)
    rules.check_devices(settings, len(devices), jax.local_device_count())
    rules.check_init(settings)
    return resolved, devices


def _check_config(settings: ConfigDict, place: workdir.Workdir) -> None:
    """Whether the run that is to go on has the same config."""
    if place.config.exists():
        then, now = config.to_json(config.read(place.config)), config.to_json(settings)
        if lines := config.compare(then, now, config.MAY_DIFFER):
            raise ConfigError(f"{place.path} holds a run of another config: {'; '.join(lines)}; give another --workdir")


def _planned(settings: ConfigDict, dataset: Dataset, devices: int, place: workdir.Workdir) -> ConfigDict:
    """A copy whose `runtime.chunk` is what was planned when the run was started first, or now.

    A run that goes on with so many devices that the planned chunk does not divide a device's tasks is planned anew.
    """
    planned, tasks = settings.copy_and_resolve_references(), settings.meta.tasks_per_step // devices
    with planned.unlocked():
        if not settings.runtime.chunk and place.config.exists():
            recorded = config.read(place.config).runtime.chunk
            planned.runtime.chunk = recorded if recorded and tasks % recorded == 0 else 0
        planned.runtime.chunk = plan.make(planned, dataset, devices).chunk
    return planned


def dry_run(settings: ConfigDict) -> str:
    """What `train` would do and need, without doing it: data, steps, memory, the least time. Prepares the data.

    Raises:
      MtlError: what `train` would raise before its first step.
    """
    settings, devices = resolve(settings)
    dataset = training_data.load(settings)
    return plan.describe(settings, dataset, plan.make(settings, dataset, len(devices)), len(devices))

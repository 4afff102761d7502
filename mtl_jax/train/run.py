"""A run: config in, last checkpoint out, through pre-training and meta-training, in a workdir that it resumes from.

Read `train` from top to bottom; its parts stand below it in the order of their use.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config, parallel
from mtl_jax.config import build, more_steps, rules, run_data
from mtl_jax.config.recipe import Recipe
from mtl_jax.data import Dataset, pictures
from mtl_jax.episodes import check_table
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluate import maps, network
from mtl_jax.launch import environment, hosts, signals
from mtl_jax.meta import Frozen
from mtl_jax.train import loop, meta_training, plan, pretraining, teacher
from mtl_jax.types import ClassTable
from mtl_jax.words import counted
from mtl_jax.workdir import Workdir, checkpoint, console, lock, write_json_atomic, writers

_logger = logging.getLogger(__name__)


def train(settings: ConfigDict, path: str, hooks: Sequence[writers.Writer] = (), label: str = "") -> None:
    """Runs the rest of a config's two phases in a workdir. It may have more steps than the run started with.

    Args:
      settings: a config as `configs/default.py` has it.
      path: the workdir.
      hooks: further writers, called as `write(step, {'meta/loss': ...})`; of several processes the first calls them.
      label: stands before the phase's name in its progress.

    Raises:
      MtlError: a problem that the user can fix. loop.Stopped: a signal came; the run resumes when started again.
    """
    settings, devices = resolve(settings)
    workdir = Workdir(path).create()
    with hosts.own_folder(path) as folder, _logged(folder), signals.stop_on_signal() as request:
        own, stop = Workdir(folder), hosts.stop_together(request, devices)
        settings, dataset, planned = prepare(settings, len(devices), workdir, more=True)
        _check_processes(settings, dataset)
        _logger.info("device: %s", environment.describe_devices(environment.device_facts(devices)))
        recipe, position = build.recipe(settings), 0
        if recipe.pretraining and hosts.is_first():
            more_steps.set_meta_training_aside(workdir, settings.pretrain.steps)
        if planned.phases and not workdir.config.exists():
            _logger.info("%s", plan.least_times(planned, settings.runtime.dtype))
        if parallel.on_cpu() and (warning := environment.cpu_warning()):
            _logger.warning("%s", warning)
        write_json_atomic(own.config, config.to_json(settings))
        run_data.record(own, dataset, settings.pretrain.init, network.trained_on(settings))
        with contextlib.closing(writers.JsonlWriter(own.metrics)) as metrics, \
             contextlib.closing(writers.JsonlWriter(own.timing)) as timing:  # fmt: skip
            metadata = {
                "config": config.to_json(settings), "data": dataset.fingerprint,
                "image_shape": list(dataset.splits["train"].images.shape[1:]),
            }  # fmt: skip
            run_phase = functools.partial(
                _run_phase, settings=settings, dataset=dataset, workdir=workdir, hooks=hooks, metadata=metadata,
                keep=settings.runtime.keep, stop=stop, metrics=metrics, timing=timing,
                label=label,
            )  # fmt: skip
            if recipe.pretraining:
                position = run_phase(pretraining.phase(recipe.pretraining, dataset.splits, devices), position)
                hosts.wait()  # for the last checkpoint, which the first process writes
            backbone = network.pretrained(settings, workdir)
            if settings.pretrain.init:
                network.check_start(settings, *backbone, dataset.splits["train"].images.shape[1:])
            if recipe.meta_training:
                seen = maps.of_training(settings, recipe.meta_training, dataset.splits, Frozen(*backbone), stop)
                phase = meta_training.phase(*seen, devices, *backbone)
                run_phase(phase, position)


def resolve(settings: ConfigDict) -> tuple[ConfigDict, list[jax.Device]]:
    """A checked copy of the config with `runtime.dtype` resolved for this machine, and the run's devices."""
    config.validate(settings)
    resolved = settings.copy_and_resolve_references()
    with resolved.unlocked():
        resolved.runtime.dtype = build.resolve_dtype(settings.runtime.dtype)
    devices = hosts.devices(settings.runtime.devices)
    rules.check_devices(settings, len(devices), jax.local_device_count())
    network.check_init(settings)
    return resolved, devices


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """The lock and the log of a folder; on the console, processes but the first only warn."""
    level = logging.INFO if hosts.is_first() else logging.WARNING
    with lock(folder), console.log_to(Workdir(folder).log, level=level):
        yield


def prepare(
    settings: ConfigDict, devices: int, workdir: Workdir, *, more: bool = False
) -> tuple[ConfigDict, Dataset, plan.Plan]:
    """The config as a workdir's run has it, its data, and the plan for so many devices. `settings` is from `resolve`.

    `more`: whether a phase may have more steps than the run.

    Raises:
      MtlError: the workdir has a run of another config, or the data cannot give the tasks asked for.
    """
    _check_config(settings, workdir, more)
    with hosts.first_goes_first():
        dataset = load_data(settings)
    settings, planned = _planned(settings, dataset, devices, workdir)
    return settings, dataset, planned


def _check_config(settings: ConfigDict, workdir: Workdir, more: bool = False) -> None:
    """Checks that the run to resume has the same config, except for more steps if `more`."""
    if workdir.config.exists():
        then, now = config.to_json(config.read(workdir.config)), config.to_json(settings)
        may_differ = (*config.MAY_DIFFER, *(more_steps.raised(then, now) if more else ()))
        if lines := config.compare(then, now, may_differ):
            lowered = more and any(line.startswith(("pretrain.steps", "meta.steps")) for line in lines)
            raise ConfigError(
                f"{workdir.path} holds a run of another config: {'; '.join(lines)}; give another --workdir"
                f"{' (steps may be raised, not lowered)' if lowered else ''}"
            )


def load_data(settings: ConfigDict) -> Dataset:
    """The data set of a config, prepared where it has not been before.

    Raises:
      DataError: it cannot give the tasks asked for, which is seen before an image is decoded; or see `data.load`.
      ConfigError: its images have another number of channels than mean and std, or the teacher knows others.
    """
    recipe = build.recipe(settings)
    taught = recipe.pretraining and recipe.pretraining.teacher

    def inspect(contents: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Checks the sizes of splits and classes before any image is decoded."""
        _check_train(contents)
        for name, classes in contents.items():
            counts = np.array([len(images) for images in classes.values()])
            _check_tasks(recipe, name, ClassTable(None, counts), tuple(classes))

    if taught:
        teacher.newest_manifest(recipe.pretraining.teacher)  # fails on a wrong path before images are prepared
    dataset = build.dataset(settings.data, inspect=inspect)
    _check_train(dataset.splits)
    for name, split in dataset.splits.items():
        if name != "test":  # which training leaves alone
            _check_tasks(recipe, name, split.table(), split.class_names)
    _check_channels(settings, dataset)
    if taught:
        teacher.check(recipe.pretraining, dataset)
    for caveat in dataset.caveats:
        _logger.warning("allowed by data.allow: %s", caveat)
    return dataset


def _check_train(splits: Mapping[str, Any]) -> None:
    if "train" not in splits:
        raise DataError(f"the data set has no train split, only {', '.join(splits)}: use it with evaluate.py --data")


def _check_tasks(recipe: Recipe, name: str, table: ClassTable, class_names: Sequence[str]) -> None:
    """Whether a split can give the tasks that training, or the validation of a phase, draws from it."""
    if name == "train":
        check_table(table, class_names, **recipe.tasks._asdict(), split=name)
    for phase in (recipe.pretraining, recipe.meta_training) if name == "val" else ():
        if phase and phase.validation and phase.intervals.val_every:
            way, shot, query, *_ = phase.validation
            check_table(table, class_names, way=way, shot=shot, query=query, split=name)


def _check_channels(settings: ConfigDict, dataset: Dataset) -> None:
    channels = dataset.splits["train"].images.shape[-1]
    for name in ("mean", "std"):
        if (count := len(settings.data[name])) not in (1, channels):
            numbers = f"{counted(count, 'number')} for images of {counted(channels, 'channel')}"
            raise ConfigError(f"config.data.{name} has {numbers}; give one, or one per channel")


def _planned(
    settings: ConfigDict, dataset: Dataset, devices: int, workdir: Workdir
) -> tuple[ConfigDict, plan.Plan]:  # fmt: skip
    """A copy whose `runtime.chunk` is what was planned when the run was started first, or now; and the plan.

    A resumed run is planned again if the planned chunk does not divide the tasks of a device any more.
    """
    planned, tasks = settings.copy_and_resolve_references(), settings.meta.tasks_per_step // devices
    with planned.unlocked():
        if not settings.runtime.chunk and workdir.config.exists():
            recorded = config.read(workdir.config).runtime.chunk
            planned.runtime.chunk = recorded if recorded and tasks % recorded == 0 else 0
        made = plan.make(planned, dataset, devices)
        planned.runtime.chunk = made.chunk
    return planned, made


def _check_processes(settings: ConfigDict, dataset: Dataset) -> None:
    """Whether all processes of the run are about to do the same."""
    settings = config.to_json(settings)
    for name in ("path", "cache_dir"):  # each host may have its own copy
        settings["data"].pop(name)
    hosts.check_same("config", settings)
    hosts.check_same("data set", dataset.fingerprint)


def _run_phase(
    phase: loop.Phase, start: int, *, settings: ConfigDict, dataset: Dataset, workdir: Workdir,
    hooks: Sequence[writers.Writer], stop: signals.StopRequest, **options: Any,
) -> int:  # fmt: skip
    """Runs a phase with its writers; `options` and what it returns are those of `loop.run_phase`."""
    phase = phase._replace(dispatch=hosts.polling(phase.dispatch, stop))
    with contextlib.closing(phase), _board(phase, settings, dataset, workdir) as board:
        writers = [*hooks, *board] if hosts.is_first() else []
        return loop.run_phase(phase, workdir, start=start, stop=stop, writers=writers, **options)


@contextlib.contextmanager
def _board(
    phase: loop.Phase, settings: ConfigDict, dataset: Dataset, workdir: Workdir
) -> Iterator[list[writers.Writer]]:
    """The writer of a phase's TensorBoard events, where that is installed: [] or one.

    A picture of a task is written at the start of meta-training; the config with the best validation score, by which
    TensorBoard compares runs, at the end of each phase.
    """
    checkpoints = checkpoint.Checkpoints(workdir.checkpoints(phase.name))
    done = (checkpoints.steps() or [0])[-1]
    if done >= phase.steps or not hosts.is_first():
        yield []
        return
    board = writers.open_tensorboard(workdir.tensorboard / phase.name, purge_step=done + 1 if done else None)
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
    """A task of the training split as meta-training draws them: uint8 [H, W, 3], a row per class."""
    sizes = {name: settings.meta[name] for name in ("way", "shot", "query")}
    return np.asarray(pictures.episode_grid(dataset.splits["train"], **sizes, seed=settings.seed))


def dry_run(settings: ConfigDict, path: str) -> str:
    """The plan of a run as text, without training or touching the workdir; prepares the data.

    Raises:
      MtlError: what `train` would raise before its first step.
    """
    settings, devices = resolve(settings)
    Workdir(path).check_writable()
    _check_config(settings, Workdir(path))
    dataset = load_data(settings)
    return plan.describe(settings, dataset, plan.make(settings, dataset, len(devices)), len(devices))

"""Pre-training and meta-training of a config, in a workdir that a stopped run goes on from.

python train.py --config=configs/glyphs.py:1shot --workdir=runs/glyphs --config.seed=1
python train.py --config=configs/glyphs.py:1shot --workdir=runs/seeds --num_seeds=3
"""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from mtl_jax import build, checkpoint, cli, config, console, loop, phases, signals, workdir, writers
from mtl_jax.data import Dataset
from mtl_jax.episodes import check_table
from mtl_jax.errors import ConfigError


def train(settings: ConfigDict, path: str, hooks: Sequence[writers.Writer] = ()) -> None:
    """Runs what is still to be done of a config's two phases in a workdir.

    Args:
      settings: a config as `configs/default.py` has it.
      path: the workdir.
      hooks: further writers, called as `write(step, {'meta/loss': ...})`.

    Raises:
      MtlError: what the user can mend. loop.Stopped: a signal came; the run goes on when started again.
    """
    config.validate(settings)
    settings = _resolve(settings)
    devices = jax.local_devices()[: settings.runtime.devices or None]
    config.validate_devices(settings, len(devices))
    place = workdir.Workdir(path).create()
    with workdir.lock(path), console.log_to(place.log), signals.stop_on_signal() as stop:
        _record_config(settings, place)
        dataset = build.dataset(settings.data)
        _check_tasks(settings, dataset)
        with contextlib.closing(writers.JsonlWriter(place.metrics)) as metrics, \
             contextlib.closing(writers.JsonlWriter(place.timing)) as timing:  # fmt: skip
            common = {
                "metadata": {
                    "config": config.to_json(settings), "data": dataset.fingerprint,
                    "image_shape": list(dataset.splits["train"].images.shape[1:]),
                },
                "keep": settings.runtime.keep, "stop": stop, "metrics": metrics, "timing": timing,
            }  # fmt: skip
            _run(settings, dataset, devices, place, common, hooks)


def _run(settings: ConfigDict, dataset: Dataset, devices: Any, place: Any, common: Any, hooks: Any) -> None:
    position = 0
    if not settings.pretrain.init:
        position = _run_phase(phases.pretraining(settings, dataset, devices), place, position, common, hooks)
    params, batch_stats = phases.pretrained(settings, place)
    if settings.meta.learn != "none":
        phase = phases.meta_training(settings, dataset, devices, params, batch_stats)
        _run_phase(phase, place, position, common, hooks)


def _run_phase(phase: loop.Phase, place: Any, position: int, common: Any, hooks: Sequence[writers.Writer]) -> int:
    done = checkpoint.Checkpoints(place.checkpoints(phase.name)).steps()
    board = writers.open_tensorboard(place.tensorboard / phase.name, purge_step=done[-1] + 1 if done else None)
    with contextlib.closing(phase), contextlib.closing(board) if board else contextlib.nullcontext():
        more = [*hooks, *([board.write] if board else [])]
        return loop.run_phase(phase, place, start=position, writers=more, **common)


def _resolve(settings: ConfigDict) -> ConfigDict:
    """A copy whose `runtime.dtype` is what it stands for here, so that a run's config.json tells."""
    resolved = settings.copy_and_resolve_references()
    with resolved.unlocked():
        resolved.runtime.dtype = build.resolve_dtype(settings.runtime.dtype)
    return resolved


def _record_config(settings: ConfigDict, place: workdir.Workdir) -> None:
    """Writes config.json, or checks that the run that is to go on has the same config."""
    now = config.to_json(settings)
    if place.config.exists():
        then = config.to_json(config.read(place.config))
        if lines := checkpoint.describe_difference(then, now, config.MAY_DIFFER):
            raise ConfigError(f"{place.path} holds a run of another config: {'; '.join(lines)}; give another --workdir")
    workdir.write_json_atomic(place.config, now)


def _check_tasks(settings: ConfigDict, dataset: Dataset) -> None:
    """Whether the splits can give the tasks asked for, before anything is compiled."""
    for name in ("train", "val"):
        if name in dataset.splits and (name == "train" or settings.meta.val_tasks):
            split, meta = dataset.splits[name], settings.meta
            check_table(split.table(), split.class_names, way=meta.way, shot=meta.shot, query=meta.query, split=name)


def main(argv: Sequence[str]) -> int | None:
    """The program."""
    values = flags.FlagValues()
    cli.define_config(values, required=True)
    flags.DEFINE_integer("num_seeds", None, "train and test so many seeds, in WORKDIR/seed-0, ...", flag_values=values)
    cli.parse(values, argv, __doc__)
    if values.num_seeds is not None:
        from mtl_jax import seeds  # it is made of this module

        seeds.main(values.config, values.workdir, values.num_seeds, argv)
        return 0
    workdir.record_command(values.workdir, argv)
    train(values.config, values.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

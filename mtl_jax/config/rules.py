"""Checks for combinations of allowed values that contradict each other. Nothing here needs the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from mtl_jax.configs.default import get_config

from mtl_jax import backbones, learners, support_views
from mtl_jax.config import build, own_backbone
from mtl_jax.data import overlaps
from mtl_jax.errors import ConfigError, DataError

PYTORCH_SUFFIXES = (".pth", ".pt", ".pth.tar", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (*PYTORCH_SUFFIXES, ".npy", ".safetensors")
_INTERVALS = (
    "pretrain.steps", "pretrain.val_every", "meta.steps", "meta.val_every", "runtime.log_every",
    "runtime.checkpoint_every",
)  # fmt: skip


def check(config: ConfigDict) -> None:
    """Raises ConfigError at the first contradiction: names the keys, their values, and what can be done."""
    for rule in (_backbone, _steps, _schedules, _pretraining, _inner_loop, _images, _splits, _hard_tasks):
        rule(config)


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def _is(config: Mapping[str, Any], key: str) -> str:
    """How a message begins: 'config.meta.way is 5'."""
    return f"config.{key} is {lookup(config, key)!r}"


def _check_multiple(config: Mapping[str, Any], key: str, unit: int, unit_name: str) -> None:
    if lookup(config, key) % unit:
        raise ConfigError(f"{_is(config, key)}, expected a multiple of {unit_name}, {unit}")


def _backbone(config: ConfigDict) -> None:
    options, ramp = config.backbone, "pretrain.dropblock_ramp"
    if own_backbone.is_own(options.name):
        _own_backbone(config)
        return
    backbones.check_unread(options.name, options, "config.backbone.")
    if config.meta.norm_affine and (options.norm != "batch" or not (options.norm_scale or options.norm_bias)):
        raise ConfigError(
            f"{_is(config, 'meta.norm_affine')}, but {_is(config, 'backbone.norm')} and norm_scale and norm_bias are "
            f"{options.norm_scale} and {options.norm_bias}: there is nothing to learn; set it to False"
        )
    if options.dropblock and not options.dropout:
        raise ConfigError(
            f"{_is(config, 'backbone.dropblock')}, but {_is(config, 'backbone.dropout')}: nothing is dropped; set the "
            "rate, 0.1 in publications"
        )
    if lookup(config, ramp) and not options.dropblock:
        raise ConfigError(f"{_is(config, ramp)}, but {_is(config, 'backbone.dropblock')}; set it too")


def _own_backbone(config: ConfigDict) -> None:
    """A custom backbone has its options in its code."""
    default = get_config().backbone
    for key, value in config.backbone.items():
        if key != "name" and value != default[key]:
            raise ConfigError(
                f"{_is(config, f'backbone.{key}')}, but {config.backbone.name} does not use it; leave it at "
                f"{default[key]!r}"
            )
    if config.pretrain.dropblock_ramp:
        raise ConfigError(f"{_is(config, 'pretrain.dropblock_ramp')}, but {config.backbone.name} has no DropBlock")


def _steps(config: ConfigDict) -> None:
    if not config.pretrain.init and not config.pretrain.steps:
        raise ConfigError(
            "config.pretrain.steps is 0, expected 1 or more: only a run with config.pretrain.init can skip pre-training"
        )
    if config.meta.learn != "none" and not config.meta.steps:
        raise ConfigError("config.meta.steps is 0, expected 1 or more; or set config.meta.learn to 'none'")
    for key in _INTERVALS:
        _check_multiple(config, key, config.runtime.steps_per_dispatch, "config.runtime.steps_per_dispatch")


def _schedules(config: ConfigDict) -> None:
    for phase in ("pretrain", "meta"):
        if config[phase].decay == "steps" and not config[phase].decay_every:
            raise ConfigError(
                f"{_is(config, f'{phase}.decay')}, but config.{phase}.decay_every is 0; "
                "set it to the updates between two decays"
            )


def _pretraining(config: ConfigDict) -> None:
    group = config.pretrain
    if group.rotation and group.rotation_views == "quarter" and group.shuffle == "once":
        raise ConfigError(
            "config.pretrain.rotation_views is 'quarter', which turns an image by its place in the batch, but "
            "config.pretrain.shuffle is 'once': each image would be seen at one angle alone; set shuffle to 'epoch'"
        )


def _inner_loop(config: ConfigDict) -> None:
    inner, stepped = config.inner, config.inner.base_learner in learners.HEADS
    for key in ("evaluate.inner_steps", "evaluate.inner_lr", "evaluate.every_step"):
        if not stepped and lookup(config, key):
            raise ConfigError(f"{_is(config, key)}, but {_is(config, 'inner.base_learner')}, which has no inner steps")
    if inner.adapt != "head" and not stepped:
        raise ConfigError(
            f"{_is(config, 'inner.adapt')}, but {_is(config, 'inner.base_learner')}, which has no inner steps: set "
            "adapt to 'head'"
        )
    if inner.features != "plain" and inner.adapt != "head":
        raise ConfigError(
            f"{_is(config, 'inner.features')}, which config.inner.adapt {config.inner.adapt!r} cannot have: set "
            "features to 'plain' or adapt to 'head'"
        )
    _learned_rates(config)
    if stepped:
        try:
            learners.check_inner(build.inner(inner))
        except ConfigError as error:
            raise ConfigError(f"config.inner: {error}") from None
    support_views.check_crops(config.evaluate.crops, config.inner.adapt, config.meta.batch_norm)


def _learned_rates(config: ConfigDict) -> None:
    """Rates and weights of inner steps are as many as there are steps in training."""
    for key in ("inner.learn_lr", "inner.ensemble"):
        if lookup(config, key) and config.evaluate.inner_steps not in (None, config.inner.steps):
            raise ConfigError(
                f"{_is(config, key)}, which learns a value for each of the {config.inner.steps} inner steps, "
                f"but {_is(config, 'evaluate.inner_steps')}"
            )
    if config.inner.learn_lr and config.evaluate.inner_lr is not None:
        raise ConfigError(f"{_is(config, 'evaluate.inner_lr')}, but the rates are learned (inner.learn_lr)")


def _images(config: ConfigDict) -> None:
    for key in ("data.image_size", "pretrain.augment.resized_crop"):
        if (side := lookup(config, key)) and config.data.crop > side:
            raise ConfigError(
                f"{_is(config, 'data.crop')}, expected at most config.{key}, {side}: a crop cannot be larger than the "
                "image"
            )
    scale = config.pretrain.augment.resized_crop_scale
    if len(scale) != 2 or scale[0] > scale[1]:
        raise ConfigError(
            f"{_is(config, 'pretrain.augment.resized_crop_scale')}, expected the least and the greatest area"
        )


def _splits(config: ConfigDict) -> None:
    fractions = config.data.fractions
    if fractions and config.data.lists:
        raise ConfigError("config.data.fractions and config.data.lists are both set; each says which class is where")
    if fractions and (len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6):
        raise ConfigError(
            f"{_is(config, 'data.fractions')}, expected three numbers for train, val, test that add up to 1"
        )
    try:
        overlaps.parse_allowed(config.data.allow)
    except DataError as error:
        raise ConfigError(f"config.{error}") from None


def _hard_tasks(config: ConfigDict) -> None:
    if not config.hard_tasks.enabled:
        return
    every, tasks = config.runtime.steps_per_dispatch, config.meta.tasks_per_step
    _check_multiple(config, "hard_tasks.round", every, "config.runtime.steps_per_dispatch")
    _check_multiple(config, "hard_tasks.extra", tasks, "config.meta.tasks_per_step")
    if config.meta.learn == "none":
        raise ConfigError(f"{_is(config, 'hard_tasks.enabled')}, but config.meta.learn is 'none': nothing is trained")


def is_weights(path: str) -> bool:
    """Whether a path names weight files (any file, several with commas, a folder of .npy) and not a workdir."""
    return path.endswith(WEIGHT_SUFFIXES) or Path(path).is_file() or any(Path(path).glob("*.npy"))


def check_chunk(chunk: int, tasks: int, per_dispatch: int) -> None:
    """Checks that a device's tasks can be taken `chunk` at a time: tasks left over would be left out.

    `per_dispatch` is `runtime.steps_per_dispatch`.

    Raises:
      ConfigError: names the key.
    """
    if chunk > tasks or tasks % chunk:
        raise ConfigError(f"config.runtime.chunk is {chunk}, expected a divisor of the {tasks} tasks of a device, or 0")
    if chunk < tasks and per_dispatch > 1:
        raise ConfigError(
            f"config.runtime.steps_per_dispatch is {per_dispatch}, but tasks are taken {chunk} of {tasks} at a time "
            "(runtime.chunk, runtime.memory_gb), which needs steps_per_dispatch 1"
        )


def check_devices(config: ConfigDict, devices: int, local_devices: int) -> None:
    """Checks that batches can be spread over the `devices` of a run; this process has `local_devices`.

    Raises:
      ConfigError: names the key.
    """
    if config.runtime.devices > local_devices:
        raise ConfigError(f"{_is(config, 'runtime.devices')}, but there are {local_devices}; 0 uses all")
    for key in ("meta.tasks_per_step", "pretrain.batch_size"):
        if lookup(config, key) % devices:
            raise ConfigError(
                f"{_is(config, key)}, expected a multiple of the number of devices, {devices}; "
                "change it or set config.runtime.devices"
            )

"""Which values of a config contradict each other, each in itself allowed; nothing here needs the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax import backbones, support_views
from mtl_jax.data import overlaps
from mtl_jax.errors import ConfigError, DataError

PYTORCH_SUFFIXES = (".pth", ".pt", ".pth.tar")
WEIGHT_SUFFIXES = (*PYTORCH_SUFFIXES, ".npy", ".safetensors")
_INTERVALS = (
    "pretrain.steps", "pretrain.val_every", "meta.steps", "meta.val_every", "runtime.log_every",
    "runtime.checkpoint_every",
)  # fmt: skip


def check(config: ConfigDict) -> None:
    """Raises ConfigError at the first contradiction: names the keys, their values, and what can be done."""
    rules = (
        _backbone, _norm_affine, _steps, _intervals, _schedules, _dropblock, _rotation, _inner, _image_sizes,
        _support_views, _splits, _allowed, _hard_tasks,
    )  # fmt: skip
    for rule in rules:
        rule(config)


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def _backbone(config: ConfigDict) -> None:
    backbones.check_unread(config.backbone.name, config.backbone, "config.backbone.")


def _norm_affine(config: ConfigDict) -> None:
    options = config.backbone
    if config.meta.norm_affine and (options.norm != "batch" or not (options.norm_scale or options.norm_bias)):
        raise ConfigError(
            f"config.meta.norm_affine is true, but config.backbone.norm is {options.norm!r} and norm_scale and "
            f"norm_bias are {options.norm_scale} and {options.norm_bias}: there is nothing to learn; set it to false"
        )


def _steps(config: ConfigDict) -> None:
    if not config.pretrain.init and not config.pretrain.steps:
        raise ConfigError("config.pretrain.steps is 0, expected 1 or more: only config.pretrain.init does without")
    if config.meta.learn != "none" and not config.meta.steps:
        raise ConfigError("config.meta.steps is 0, expected 1 or more; or set config.meta.learn to 'none'")


def _intervals(config: ConfigDict) -> None:
    every = config.runtime.steps_per_dispatch
    for key in _INTERVALS:
        if lookup(config, key) % every:
            raise ConfigError(
                f"config.{key} is {lookup(config, key)}, expected a multiple of "
                f"config.runtime.steps_per_dispatch, {every}"
            )


def _schedules(config: ConfigDict) -> None:
    for phase in ("pretrain", "meta"):
        group = config[phase]
        if group.decay in ("steps", "restarts") and not group.decay_every:
            raise ConfigError(
                f"config.{phase}.decay is {group.decay!r}, but config.{phase}.decay_every is 0; "
                "set it to the updates between two decays"
            )


def _dropblock(config: ConfigDict) -> None:
    backbone, ramp = config.backbone, config.pretrain.dropblock_ramp
    if backbone.dropblock and not backbone.dropout:
        raise ConfigError(
            f"config.backbone.dropblock is {backbone.dropblock}, but config.backbone.dropout is {backbone.dropout}: "
            "nothing is dropped; set the rate, 0.1 in publications"
        )
    if ramp and not backbone.dropblock:
        raise ConfigError(f"config.pretrain.dropblock_ramp is {ramp}, but config.backbone.dropblock is 0; set it too")


def _rotation(config: ConfigDict) -> None:
    group = config.pretrain
    if group.rotation and group.rotation_views == "quarter" and group.shuffle == "once":
        raise ConfigError(
            "config.pretrain.rotation_views is 'quarter', which turns an image by its place in the batch, but "
            "config.pretrain.shuffle is 'once': each image would be seen at one angle alone; set shuffle to 'epoch'"
        )


def _inner(config: ConfigDict) -> None:
    inner = config.inner
    if inner.features != "plain" and inner.adapt != "head":
        raise ConfigError(
            f"config.inner.features is {inner.features!r}, which config.inner.adapt {inner.adapt!r} "
            "cannot have: set one of them to 'plain' or 'head'"
        )


def _image_sizes(config: ConfigDict) -> None:
    data, augment = config.data, config.pretrain.augment
    for name, side in (("data.image_size", data.image_size), ("pretrain.augment.resized_crop", augment.resized_crop)):
        if side and data.crop > side:
            raise ConfigError(
                f"config.data.crop is {data.crop}, expected at most config.{name}, {side}: "
                "a crop cannot be larger than the image"
            )
    scale = augment.resized_crop_scale
    if len(scale) != 2 or scale[0] > scale[1]:
        raise ConfigError(
            f"config.pretrain.augment.resized_crop_scale is {tuple(scale)}, expected the least and the greatest area"
        )


def _support_views(config: ConfigDict) -> None:
    support_views.check_crops(config.evaluate.crops, config.inner.adapt, config.meta.batch_norm)


def _splits(config: ConfigDict) -> None:
    fractions, lists = config.data.fractions, config.data.lists
    if fractions and lists:
        raise ConfigError("config.data.fractions and config.data.lists are both set; each says which class is where")
    if fractions and (len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6):
        raise ConfigError(
            f"config.data.fractions is {tuple(fractions)}, expected three numbers for train, val, test that add up to 1"
        )


def _allowed(config: ConfigDict) -> None:
    try:
        overlaps.parse_allowed(config.data.allow)
    except DataError as error:
        raise ConfigError(f"config.{error}") from None


def _hard_tasks(config: ConfigDict) -> None:
    hard, each = config.hard_tasks, config.meta.tasks_per_step
    if not hard.enabled:
        return
    for key, unit, name in (
        ("round", config.runtime.steps_per_dispatch, "runtime.steps_per_dispatch"),
        ("extra", each, "meta.tasks_per_step"),
    ):
        if hard[key] % unit:
            raise ConfigError(f"config.hard_tasks.{key} is {hard[key]}, expected a multiple of config.{name}, {unit}")
    if config.meta.learn == "none":
        raise ConfigError("config.hard_tasks.enabled is true, but config.meta.learn is 'none': nothing is trained")


def check_init(config: ConfigDict) -> None:
    """Whether what training is to start from is there. Raises ConfigError."""
    init = config.pretrain.init
    if init and not Path(init).expanduser().exists():
        raise ConfigError(f"config.pretrain.init is {init!r}: no such file or folder; give a workdir or a weight file")


def is_weights(path: str) -> bool:
    """Whether a path names weight files (one, several with commas, a folder of .npy) and not a workdir."""
    return path.endswith(WEIGHT_SUFFIXES) or any(Path(path).glob("*.npy"))


def check_chunk(chunk: int, tasks: int, per_dispatch: int) -> None:
    """Whether a device's tasks can be taken `chunk` at a time: what is left over would be left out.

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


def check_devices(config: ConfigDict, devices: int, there: int) -> None:
    """Whether batches can be spread over the devices of a run, `there` of which are in this process.

    Raises:
      ConfigError: names the key.
    """
    if config.runtime.devices > there:
        raise ConfigError(f"config.runtime.devices is {config.runtime.devices}, but there are {there}; 0 takes all")
    for key in ("meta.tasks_per_step", "pretrain.batch_size"):
        if lookup(config, key) % devices:
            raise ConfigError(
                f"config.{key} is {lookup(config, key)}, expected a multiple of the number of devices, {devices}; "
                "change it or set config.runtime.devices"
            )
    each = config.pretrain.batch_size // devices
    if config.pretrain.mixup and devices > 1 and each % 2:
        raise ConfigError(
            f"config.pretrain.batch_size is {config.pretrain.batch_size}, {each} images a device: pretrain.mixup "
            "mixes neighbours and needs an even number"
        )

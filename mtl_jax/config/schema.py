"""What each key of a config may be: its type, its choices, its range. What contradicts what: rules.py."""

import difflib
import functools
import math
import operator
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from mtl_jax import augment, backbones, base_learner, feature_transform, meta, optimizers, pretrain, scale_shift
from mtl_jax.configs import default
from mtl_jax.data import SPLITS
from mtl_jax.errors import ConfigError
from mtl_jax.launch.program import nearest

CHOICES = {
    "data.channels": (0, 1, 3),
    "backbone.name": backbones.NAMES,
    "backbone.norm": ("batch", "layer", "none"),
    "pretrain.optimizer": ("adam", "sgd"),
    "pretrain.adam_eps": ("after", "before"),
    "pretrain.shuffle": ("epoch", "once"),
    "pretrain.classifier_init": ("uniform", "xavier"),
    "pretrain.rotation_views": pretrain.ROTATION_VIEWS,
    "pretrain.rotation_head": pretrain.ROTATION_HEADS,
    "pretrain.decay": optimizers.DECAYS,
    "pretrain.augment.pad": augment.PADS,
    "pretrain.batch_norm": ("train", "batch"),
    "pretrain.select": ("best", "last"),
    "inner.loss_scale": meta.LOSS_SCALES,
    "inner.adapt": meta.ADAPT,
    "inner.head_init": base_learner.HEAD_INITS,
    "inner.features": feature_transform.FEATURES,
    "meta.learn": ("ss", "weights", "head", "none"),
    "meta.blocks": ("all", "last"),
    "meta.scale": scale_shift.SCALE,
    "meta.shift": scale_shift.SHIFT,
    "meta.batch_norm": backbones.BATCH_STATISTICS,
    "meta.optimizer": ("adam", "sgd"),
    "meta.adam_eps": ("after", "before"),
    "meta.decay": optimizers.DECAYS,
    "meta.select": ("best", "last"),
    "evaluate.split": SPLITS,
    "runtime.dtype": ("float32", "bfloat16", "auto"),
}


class Range(NamedTuple):
    """From `low` to `high`; `under` and `over`: without these themselves. Of a tuple, of each number in it."""

    low: float
    high: float = math.inf
    over: bool = False
    under: bool = False

    def __contains__(self, value: Any) -> bool:
        return (value > self.low or (value == self.low and not self.over)) and (
            value < self.high or (value == self.high and not self.under)
        )

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.over else f"{self.low:g} or more"
        if self.high == math.inf:
            return low
        return f"{low} and {'less than' if self.under else 'at most'} {self.high:g}"


_COUNT, _FROM_ZERO, _POSITIVE = Range(1), Range(0), Range(0, over=True)
_RATE, _FRACTION = Range(0, 1, under=True), Range(0, 1)
_SEED = Range(0, 2**32 - 1)
_SCHEDULE = {
    "lr": _FROM_ZERO, "momentum": _RATE, "weight_decay": _FROM_ZERO, "decay_every": _FROM_ZERO,
    "decay_factor": Range(0, 1, over=True), "decay_floor": _FRACTION, "decay_delay": _FROM_ZERO, "steps": _FROM_ZERO,
    "val_every": _FROM_ZERO, "val_tasks": _FROM_ZERO, "val_shot": _COUNT, "val_query": _COUNT,
}  # fmt: skip
RANGES = {
    "seed": _SEED, "evaluate.seed": _SEED, "data.split_seed": _FROM_ZERO,
    **dict.fromkeys(("data.image_size", "data.resize", "data.crop", "data.device_budget_gb"), _FROM_ZERO),
    "data.std": _POSITIVE, "data.fractions": _FRACTION,
    "backbone.width": _POSITIVE, "backbone.dropout": _RATE, "backbone.norm_epsilon": _POSITIVE,
    "backbone.norm_momentum": _FRACTION, "backbone.resize": _FROM_ZERO, "backbone.dropblock": _FROM_ZERO,
    **{f"{phase}.{key}": allowed for phase in ("pretrain", "meta") for key, allowed in _SCHEDULE.items()},
    "pretrain.batch_size": _COUNT, "pretrain.label_smoothing": _RATE,
    "pretrain.average": _RATE, "pretrain.distill_weight": _FRACTION, "pretrain.temperature": _POSITIVE,
    **dict.fromkeys(("pretrain.hidden", "pretrain.rotation", "pretrain.mixup", "pretrain.dropblock_ramp"), _FROM_ZERO),
    **dict.fromkeys(("pretrain.augment.shift", "pretrain.augment.resized_crop"), _FROM_ZERO),
    "pretrain.augment.resized_crop_scale": Range(0, 1, over=True), "pretrain.augment.jitter": _FRACTION,
    "inner.steps": _FROM_ZERO, "inner.lr": _FROM_ZERO,
    "meta.way": Range(2), "meta.shot": _COUNT, "meta.query": _COUNT, "meta.tasks_per_step": _COUNT,
    "meta.head_lr": _FROM_ZERO, "hard_tasks.round": _COUNT, "hard_tasks.extra": _COUNT,
    "evaluate.way": Range(2), "evaluate.shot": _COUNT, "evaluate.query": _COUNT, "evaluate.num_tasks": _COUNT,
    "evaluate.inner_steps": _FROM_ZERO, "evaluate.inner_lr": _FROM_ZERO, "evaluate.crops": _FROM_ZERO,
    "evaluate.crop_area": Range(0, 1, over=True),
    **dict.fromkeys(("runtime.devices", "runtime.chunk", "runtime.skip_nonfinite"), _FROM_ZERO),
    "runtime.memory_gb": _POSITIVE,
    **{f"runtime.{key}": _COUNT for key in (
        "steps_per_dispatch", "log_every", "checkpoint_every", "keep", "embed_batch", "task_chunk")},
}  # fmt: skip
_DESCRIPTIONS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text",
    tuple: "numbers in parentheses, such as '(0.5,0.2,0.3)'",
}  # fmt: skip


class Kind(NamedTuple):
    """The type of a key's value, and whether it may be unset."""

    type: type
    optional: bool = False

    def __str__(self) -> str:
        return _DESCRIPTIONS[self.type]

    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind; numbers must be finite."""
        if value is None:
            return self.optional
        if self.type is tuple:
            return isinstance(value, list | tuple) and all(_is_number(one) for one in value)
        if self.type is float:
            return _is_number(value)
        return isinstance(value, self.type) and (self.type is bool or not isinstance(value, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@functools.cache
def kinds() -> dict[str, Kind]:
    """The kind of every key of a config, by its dotted name."""
    config, by_key = default.get_config(), {}
    for (*groups, name), value in flatten_dict(config.to_dict()).items():
        group = functools.reduce(operator.getitem, groups, config)
        by_key[".".join((*groups, name))] = Kind(group.get_type(name), value is None)
    return by_key


def check(config: ConfigDict) -> None:
    """Checks that a config has all keys and no other, each with a value that it may have.

    Raises:
      ConfigError: names the key, the value, and what is allowed.
    """
    values = flatten_dict(config.to_dict(), sep=".")
    for key in values.keys() - kinds().keys():
        raise unknown_key(key)
    for key, kind in kinds().items():
        if key not in values:
            raise ConfigError(f"config.{key} is missing, expected {kind}; start from mtl_jax.configs.default")
        check_value(key, values[key])


def check_value(key: str, value: Any) -> None:
    """Checks the value of a known key. Raises ConfigError where the key may not have it."""
    kind = kinds()[key]
    if not kind.fits(value):
        raise ConfigError(f"config.{key} is {value!r}, expected {kind}{' or None' if kind.optional else ''}")
    if value is None:
        return
    if key in CHOICES and value not in CHOICES[key]:
        listed = ", ".join(map(str, CHOICES[key]))
        raise ConfigError(f"config.{key} is {value!r}, expected one of {listed}{nearest(str(value), CHOICES[key])}")
    if key in RANGES and not all(one in RANGES[key] for one in (value if kind.type is tuple else (value,))):
        each = "numbers of " if kind.type is tuple else ""
        raise ConfigError(f"config.{key} is {value!r}, expected {each}{RANGES[key]}")


def unknown_key(key: str) -> ConfigError:
    """The error for a key that no config has: names the nearest ones, or those of its group."""
    group, _, name = key.rpartition(".")
    parts = {known: known.rpartition(".") for known in kinds()}
    siblings = [known_name for known_group, _, known_name in parts.values() if known_group == group]
    in_group = [f"{group}.{sibling}".lstrip(".") for sibling in difflib.get_close_matches(name, siblings, 1)]
    same_name = [known for known, (*_, known_name) in parts.items() if known_name == name]
    if near := in_group or difflib.get_close_matches(key, parts, 1, 0.8) or same_name:
        return ConfigError(f"config.{key} is no key of a config (did you mean config.{' or config.'.join(near)}?)")
    listed, owner = (siblings, f"config.{group}") if group and siblings else (default.get_config(), "a config")
    return ConfigError(f"config.{key} is no key of a config; {owner} has {', '.join(listed)}")

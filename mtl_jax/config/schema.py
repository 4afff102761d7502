"""What each key of a config may be: its type, its choices, its range. What contradicts what: rules.py."""

import difflib
import functools
import math
import operator
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from mtl_jax.configs import default

from mtl_jax import (
    augment,
    backbones,
    base_learner,
    feature_transform,
    layers,
    learners,
    optimizers,
    pretrain,
    scale_shift,
    solved_learners,
)
from mtl_jax.config import own_backbone
from mtl_jax.data import SPLITS, transforms
from mtl_jax.errors import ConfigError
from mtl_jax.words import nearest

_PHASE_CHOICES = {
    "optimizer": ("adam", "sgd"), "adam_eps": ("after", "before"), "decay": optimizers.DECAYS,
    "select": ("best", "last"),
}  # fmt: skip
CHOICES = {
    **{f"{phase}.{key}": allowed for phase in ("pretrain", "meta") for key, allowed in _PHASE_CHOICES.items()},
    "data.channels": (0, 1, 3),
    "data.interpolation": tuple(transforms.INTERPOLATIONS),
    "backbone.name": backbones.NAMES,
    "backbone.norm": ("batch", "layer", "none"),
    "pretrain.shuffle": ("epoch", "once"),
    "pretrain.classifier_init": ("uniform", "xavier"),
    "pretrain.rotation_views": pretrain.ROTATION_VIEWS,
    "pretrain.rotation_head": pretrain.ROTATION_HEADS,
    "pretrain.augment.pad": augment.PADS,
    "pretrain.batch_norm": ("train", "batch"),
    "inner.loss_scale": learners.LOSS_SCALES,
    "inner.base_learner": (*learners.HEADS, "prototypes", "ridge", "logistic"),
    "inner.start": learners.STARTS,
    "inner.distance": tuple(solved_learners.DISTANCES),
    "inner.adapt": learners.ADAPT,
    "inner.head_init": base_learner.HEAD_INITS,
    "inner.features": feature_transform.FEATURES,
    "meta.learn": ("ss", "weights", "head", "none"),
    "meta.blocks": ("all", "last"),
    "meta.per": scale_shift.PER,
    "meta.scale": scale_shift.SCALE,
    "meta.shift": scale_shift.SHIFT,
    "meta.batch_norm": layers.BATCH_STATISTICS,
    "evaluate.split": SPLITS,
    "runtime.dtype": ("float32", "bfloat16", "auto"),
}


class Range(NamedTuple):
    """From `low` to `high`; `over`: without `low` itself; `under`: without `high`. Each number of a tuple must fit."""

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


_KEYS_BY_RANGE = {
    Range(0): """
        data.split_seed data.image_size data.resize data.crop data.device_budget_gb backbone.resize backbone.dropblock
        pretrain.steps pretrain.hidden pretrain.rotation pretrain.dropblock_ramp pretrain.lr
        pretrain.weight_decay pretrain.decay_every pretrain.decay_delay pretrain.augment.shift
        pretrain.augment.resized_crop pretrain.val_every pretrain.val_tasks inner.steps inner.lr meta.steps meta.lr
        meta.head_lr meta.weight_decay meta.decay_every meta.decay_delay meta.val_every meta.val_tasks
        evaluate.inner_steps evaluate.inner_lr evaluate.crops runtime.devices runtime.chunk runtime.skip_nonfinite
    """,
    Range(1): """
        pretrain.batch_size pretrain.val_shot pretrain.val_query meta.shot meta.query meta.tasks_per_step meta.val_shot
        meta.val_query hard_tasks.round hard_tasks.extra evaluate.num_tasks evaluate.shot evaluate.query
        runtime.steps_per_dispatch runtime.log_every runtime.checkpoint_every runtime.keep runtime.embed_batch
        runtime.task_chunk data.max_pixels
    """,
    Range(2): "meta.way evaluate.way",
    Range(0, over=True): """
        data.std backbone.width backbone.norm_epsilon pretrain.temperature inner.l2 runtime.memory_gb
    """,
    Range(0, 1): """
        data.fractions backbone.norm_momentum pretrain.distill_weight pretrain.decay_floor pretrain.augment.jitter
        meta.decay_floor
    """,
    Range(0, 1, over=True): """
        pretrain.decay_factor pretrain.augment.resized_crop_scale meta.decay_factor evaluate.crop_area
    """,
    Range(0, 1, under=True): """
        backbone.dropout pretrain.label_smoothing pretrain.average pretrain.momentum meta.momentum
    """,
    Range(0, 2**32 - 1): "seed evaluate.seed",
}
RANGES = {key: allowed for allowed, keys in _KEYS_BY_RANGE.items() for key in keys.split()}
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
    if key == "backbone.name" and own_backbone.is_own(value):
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
        return ConfigError(f"config.{key} is not a config key (did you mean config.{' or config.'.join(near)}?)")
    listed, owner = (siblings, f"config.{group}") if group and siblings else (default.get_config(), "a config")
    return ConfigError(f"config.{key} is not a config key; {owner} has {', '.join(listed)}")

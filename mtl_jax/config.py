"""Configs: read from a file, checked, written into a workdir and read from there."""

import copy
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mtl_jax import backbones, base_learner, feature_transform, meta, optimizers, scale_shift
from mtl_jax.configs import default
from mtl_jax.data import SPLITS
from mtl_jax.errors import ConfigError
from mtl_jax.manifest import read_bounded

CHOICES = {
    "backbone.name": backbones.NAMES,
    "backbone.norm": ("batch", "layer", "none"),
    "pretrain.optimizer": ("adam", "sgd"),
    "pretrain.adam_eps": ("after", "before"),
    "pretrain.shuffle": ("epoch", "once"),
    "pretrain.classifier_init": ("uniform", "xavier"),
    "pretrain.decay": optimizers.DECAYS,
    "pretrain.batch_norm": ("train", "batch"),
    "pretrain.select": ("best", "last"),
    "inner.loss_scale": ("mean", "per_shot"),
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
POSITIVE = (
    "pretrain.batch_size", "meta.way", "meta.shot", "meta.query", "meta.tasks_per_step", "evaluate.num_tasks",
    "evaluate.query", "runtime.steps_per_dispatch", "runtime.log_every", "runtime.checkpoint_every",
    "runtime.embed_batch", "runtime.task_chunk", "runtime.keep", "backbone.width",
)  # fmt: skip
MAX_BYTES = 1 << 20  # of a config.json
MAY_DIFFER = ("evaluate", "runtime", "data.path", "data.cache_dir")


def validate(config: ConfigDict) -> None:
    """Checks what can be checked without the data.

    Raises:
      ConfigError: names the key, the value and what is allowed.
    """
    for key, allowed in CHOICES.items():
        value = lookup(config, key)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"config.{key} is {value!r}, expected one of {', '.join(allowed)}{hint}")
    for key in POSITIVE:
        if not lookup(config, key) > 0:
            raise ConfigError(f"config.{key} is {lookup(config, key)!r}, expected a positive number")
    if config.inner.features != "plain" and config.inner.adapt != "head":
        raise ConfigError(
            f"config.inner.features is {config.inner.features!r}, which config.inner.adapt {config.inner.adapt!r} "
            "cannot have: set one of them to 'plain' or 'head'"
        )
    _validate_intervals(config)
    _validate_hard_tasks(config)


def _validate_intervals(config: ConfigDict) -> None:
    every = config.runtime.steps_per_dispatch
    for key in ("pretrain.steps", "pretrain.val_every", "meta.steps", "meta.val_every", "runtime.log_every",
                "runtime.checkpoint_every"):  # fmt: skip
        if lookup(config, key) % every:
            raise ConfigError(
                f"config.{key} is {lookup(config, key)}, expected a multiple of "
                f"config.runtime.steps_per_dispatch, {every}"
            )


def _validate_hard_tasks(config: ConfigDict) -> None:
    hard, each = config.hard_tasks, config.meta.tasks_per_step
    if not hard.enabled:
        return
    for key, unit, name in (
        ("round", config.runtime.steps_per_dispatch, "runtime.steps_per_dispatch"),
        ("extra", each, "meta.tasks_per_step"),
    ):
        if hard[key] <= 0 or hard[key] % unit:
            raise ConfigError(
                f"config.hard_tasks.{key} is {hard[key]}, expected a positive multiple of config.{name}, {unit}"
            )
    if config.meta.learn == "none":
        raise ConfigError("config.hard_tasks.enabled is true, but config.meta.learn is 'none': nothing is trained")


def validate_devices(config: ConfigDict, devices: int) -> None:
    """Checks that batches can be spread over the devices. Raises ConfigError."""
    for key in ("meta.tasks_per_step", "pretrain.batch_size"):
        if lookup(config, key) % devices:
            raise ConfigError(
                f"config.{key} is {lookup(config, key)}, expected a multiple of the number of devices, {devices}; "
                "change it or set config.runtime.devices"
            )


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def to_json(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON has it: nested dicts, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def read(path: Path) -> ConfigDict:
    """The resolved config of a workdir's config.json.

    Raises:
      ConfigError: it is missing or no JSON object.
    """
    try:
        content = json.loads(read_bounded(path, MAX_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the workdir of a run of train.py") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error}); it was written by train.py and must not be edited") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON object was expected")
    try:
        return complete(content).lock()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a config of this version: {error}".replace("\n", " ")) from error


def complete(content: Mapping[str, Any]) -> ConfigDict:
    """A config as JSON has it, with the defaults of the keys that a run of an older version did not know yet."""
    config = default.get_config()
    config.update(content)
    return config


def override(config: ConfigDict, words: Iterable[str]) -> ConfigDict:
    """A copy of a config with `--config.a.b=value` words applied, values read as the type that stands there.

    Raises:
      ConfigError: an unknown key or a value of another type.
    """
    words, parser = list(words), flags.FlagValues()
    try:
        # A deep copy knows the types of unset values, which a resolved one has forgotten.
        own = copy.deepcopy(config)
        config_flags.DEFINE_config_dict("config", own, flag_values=parser, sys_argv=["", *words])
        parser(["", *words])
    except flags.Error as error:
        raise ConfigError(str(error).strip().replace("\n", "; ")) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{' '.join(words)}: {error}".replace("\n", " ")) from error
    return parser.config

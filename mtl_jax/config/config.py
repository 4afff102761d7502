"""Configs: read from a file, checked, written into a workdir and read from there."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mtl_jax import backbones
from mtl_jax.config import command_line, rules, schema
from mtl_jax.configs import default
from mtl_jax.errors import ConfigError
from mtl_jax.workdir.manifest import read_bounded
from mtl_jax.workdir.workdir import plain

MAX_BYTES = 1 << 20  # of a config.json
MAY_DIFFER = ("evaluate", "runtime", "data.path", "data.cache_dir", "data.allow")


def validate(config: ConfigDict) -> None:
    """Checks what can be checked without the data: keys, types, ranges, contradictions.

    Raises:
      ConfigError: names the key, the value and what is allowed.
    """
    schema.check(config)
    rules.check(config)


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
    # What a run's backbone did not read is refused now, and older presets have set it.
    config.backbone.update(backbones.unread(config.backbone.name, config.backbone))
    return config


def override(config: ConfigDict, words: Iterable[str]) -> ConfigDict:
    """A copy of a config with `--config.a.b=value` words applied, values read as the type that stands there.

    Raises:
      ConfigError: an unknown key or a value of another type.
    """
    words, parser = list(words), flags.FlagValues()
    command_line.check_words(words)
    # A deep copy knows the types of unset values, which a resolved one has forgotten.
    own = copy.deepcopy(config)
    try:
        config_flags.DEFINE_config_dict("config", own, flag_values=parser, sys_argv=["", *words])
        parser(["", *words])
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{' '.join(words)}: {error}".strip().replace("\n", " ")) from error
    return parser.config


def compare(saved: Mapping[str, Any], config: Mapping[str, Any], ignore: Iterable[str] = ()) -> list[str]:
    """The lines 'backbone.name: conv4 in the checkpoint, resnet12 now' for all that differs between two configs.

    Args:
      saved: the config in a checkpoint's metadata, as JSON has it (tuples are lists there).
      config: the config of now.
      ignore: dotted names to leave out, with all that is under them ('runtime', 'evaluate.seed').
    """
    then, now, absent = dict(_dotted(saved)), dict(_dotted(config)), "absent"
    skipped = tuple(f"{name}." for name in ignore)
    lines = []
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key, absent), now.get(key, absent)
        if before != after and not f"{key}.".startswith(skipped):
            lines.append(f"{key}: {before} in the checkpoint, {after} now")
    return lines


def _dotted(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=plain)

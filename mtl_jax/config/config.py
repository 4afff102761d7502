"""Configs: checked, overridden, compared, turned into JSON and read from a workdir."""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags
from mtl_jax.configs import default

from mtl_jax import backbones
from mtl_jax.config import command_line, own_backbone, rules, schema
from mtl_jax.errors import ConfigError
from mtl_jax.words import counted
from mtl_jax.workdir.workdir import read_bounded

MAX_BYTES = 1 << 20  # of a config.json
_LISTED_RUNS = 10  # in a message
REMOVED = (
    ("pretrain", "mixup", 0.0),
)  # keys of older versions, ignored where they have this value, which turned them off
MAY_DIFFER: tuple[str, ...] = ("evaluate", "runtime", "data.path", "data.cache_dir", "data.allow")


def validate(config: ConfigDict) -> None:
    """Checks all that needs no data: keys, types, ranges, contradictions.

    Raises:
      ConfigError: names the key, the value and what is allowed.
    """
    schema.check(config)
    rules.check(config)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON: nested dicts, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def read(path: Path) -> ConfigDict:
    """The resolved config of a workdir's config.json.

    Raises:
      ConfigError: it is missing or no JSON object.
    """
    try:
        content = json.loads(read_bounded(path, MAX_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {_which_run(path.parent)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error}); it was written by train.py and must not be edited") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON object was expected")
    try:
        return complete(content).lock()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a config of this version: {error}".replace("\n", " ")) from error


def _which_run(folder: Path) -> str:
    """The advice for a folder that is not a workdir: the runs in it, if any."""
    runs = sorted(str(file.parent) for file in folder.glob("*/config.json"))
    if not runs:
        return "give the workdir of a train.py run"
    more = ", ..." if len(runs) > _LISTED_RUNS else ""
    return f"{folder} holds {counted(len(runs), 'run')}; give one of them: {', '.join(runs[:_LISTED_RUNS])}{more}"


def complete(content: Mapping[str, Any]) -> ConfigDict:
    """The config of JSON `content`, with the defaults of keys that are newer than the run.

    Raises:
      KeyError, AttributeError, TypeError, ValueError: it has keys or values that this version does not know.
    """
    config, content = default.get_config(), copy.deepcopy(dict(content))
    for group, key, off in REMOVED:
        if content.get(group, {}).get(key) == off:
            del content[group][key]
    config.update(content)
    # Options that the backbone does not read are refused now; older presets set some.
    if not own_backbone.is_own(config.backbone.name):
        config.backbone.update(backbones.unread(config.backbone.name, config.backbone))
    return config


def override(config: ConfigDict, words: Iterable[str]) -> ConfigDict:
    """A copy of a config with `--config.a.b=value` words applied; a value gets the type of the one that it replaces.

    Raises:
      ConfigError: an unknown key or a value of another type.
    """
    words, parser = list(words), flags.FlagValues()
    command_line.check_words(words)
    # A deep copy knows the types of unset values; a resolved copy has forgotten them.
    own = copy.deepcopy(config)
    try:
        config_flags.DEFINE_config_dict("config", own, flag_values=parser, sys_argv=["", *words])
        parser(["", *words])
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{' '.join(words)}: {error}".strip().replace("\n", " ")) from error
    return parser.config


def compare(saved: dict[str, Any], config: dict[str, Any], ignore: Iterable[str] = ()) -> list[str]:
    """The lines 'backbone.name: conv4 in the checkpoint, resnet12 now' for all that differs between two configs.

    Args:
      saved: the config in a checkpoint's metadata, as JSON (tuples are lists).
      config: the config now, as JSON.
      ignore: dotted names to leave out, with all that is under them ('runtime', 'evaluate.seed').
    """
    then, now = _texts(saved), _texts(config)
    ignored = tuple(f"{name}." for name in ignore)
    return [
        f"{key}: {then.get(key, 'absent')} in the checkpoint, {now.get(key, 'absent')} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not f"{key}.".startswith(ignored)
    ]


def _texts(config: dict[str, Any]) -> dict[str, str]:
    """Each value as it is written in a message, by its dotted key."""
    flat = flatten_dict(config, sep=".")
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}

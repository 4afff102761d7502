"""The command line of a program with a config: --config=FILE.py[:argument], --config.a.b=v, and its own flags.

Words are checked before anything is loaded: known flags, each given once, with values that fit.
"""

import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from mtl_jax import configs
from mtl_jax.config import own_backbone
from mtl_jax.config.schema import Kind, check, check_value, kinds, unknown_key
from mtl_jax.errors import ConfigError
from mtl_jax.launch import environment
from mtl_jax.words import nearest

_EXPECTED = "expected a ConfigDict: see configs/default.py"
_PARSERS = {
    int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser(),
    tuple: tuple_parser.TupleParser(), str: flags.ArgumentParser(),
}  # fmt: skip
_TYPES = {"int": int, "float": float, "bool": bool}  # by absl's names; all others are texts
_PREFIX = "config."


def define_config(values: flags.FlagValues, required: bool) -> None:
    """Defines --config=FILE.py[:argument], --workdir and --debug."""
    config_flags.DEFINE_config_file("config", None, "FILE.py[:argument]; --config.a.b=v overrides", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("backbone", None, own_backbone.HELP, flag_values=values)
    flags.DEFINE_bool("debug", False, "show the traceback of an error", flag_values=values)
    for name in ("workdir", "config") if required else ("workdir",):
        flags.mark_flag_as_required(name, flag_values=values)


def parse(values: flags.FlagValues, argv: Sequence[str], about: str | None = "") -> None:
    """Parses the command line; --help prints `about` (the program's docstring) and its flags, and exits.

    Raises:
      ConfigError: an unknown flag or key, a value of the wrong type, a word that is not a flag.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(_help(values, about or ""))
        raise SystemExit(0)
    argv = [_installed_config(word) for word in argv]
    seen = check_words(argv[1:], values)
    file = seen.get("config") or ""
    if "config" in seen:
        _check_exists(file)
    try:
        values(argv)
    except flags.Error as error:
        missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
        if missing and missing[1] == "config" and file:
            raise ConfigError(f"--config={file}: get_config() gives None; {_EXPECTED}") from error
        if missing:
            example = {"config": "configs/glyphs.py:1shot", "workdir": "runs/mine"}[missing[1]]
            raise ConfigError(f"--{missing[1]} is missing; give --{missing[1]}={example}") from error
        raise _config_failed(file, error) from error
    except Exception as error:  # a config file is a program, which may raise anything
        raise _config_failed(file, error) from error
    if values.backbone:
        own_backbone.load(values.backbone)
    if file:
        _check_config(file, values.config)
        if values.backbone:
            values.config.backbone.name = values.backbone
        if values.config.runtime.deterministic:
            environment.make_deterministic()


def _check_exists(file: str) -> None:
    path = file.partition(":")[0]
    if not Path(path).is_file():
        known = sorted(f"configs/{config.name}" for config in Path(configs.__path__[0]).glob("[!_]*.py"))
        near = nearest(path, known)
        raise ConfigError(f"--config={file}: no such file{near}; there are {', '.join(known)}")


def _config_failed(file: str, error: Exception) -> ConfigError:
    """The error for a config file that raised something: the exception, and the line of the file."""
    path, text = file.partition(":")[0], str(error).strip()
    lines = re.findall(rf'File "[^"]*{re.escape(Path(path).name)}", line (\d+)', text)
    if not lines:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(path).name]
    if "Error whilst parsing config file" in text:  # a whole traceback follows, whose last line is the exception
        said = text.splitlines()[-1]
    else:
        said = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
    if "ConfigError: " in said:  # it says what to write; the line of the file is no news
        return ConfigError(f"--config={file}: {said.partition('ConfigError: ')[2]}")
    if "get_config() takes 0 positional arguments" in said:
        return ConfigError(f"--config={file}: that config takes no argument; write --config={path}")
    if isinstance(error, flags.Error) and not lines:
        return ConfigError(text.replace("\n", " "))
    return ConfigError(f"--config={file}{f', line {lines[-1]}' if lines else ''}: {said}")


def _check_config(file: str, config: Any) -> None:
    """Checks that what a config file returns is a ConfigDict with the keys and types of a config."""
    if not isinstance(config, ConfigDict):
        try:
            what = type(config).__name__
            config.seed  # noqa: B018, after a file that could not be read this raises the reason
        except OSError as error:
            what = f"an error: {error}".replace("\n", " ")
        except AttributeError:
            pass
        raise ConfigError(f"--config={file}: get_config() gives {what}; {_EXPECTED}")
    try:
        check(config)
    except ConfigError as error:
        raise ConfigError(f"--config={file}: {error}") from error


def _help(values: flags.FlagValues, about: str) -> str:
    lines = [f"  --{name}: {values[name].help}" for name in values if name not in ("flagfile", "undefok")]
    return "\n".join([about, *lines, "\nThe keys of a config, with their meanings: configs/default.py"])


def _installed_config(word: str) -> str:
    """Turns --config=configs/X.py into the path of the installed config where the current folder has no such file."""
    name, sign, value = word.partition("=")
    path, colon, argument = value.partition(":")
    if name not in ("--config", "-config") or Path(path).exists() or Path(path).parent.name != "configs":
        return word
    installed = Path(configs.__path__[0]) / Path(path).name
    return f"{name}{sign}{installed}{colon}{argument}" if installed.exists() else word


def check_words(words: Sequence[str], values: flags.FlagValues | None = None) -> dict[str, str | None]:
    """Checks the words of a command line.

    Args:
      words: without the program's name. What follows `--` is not looked at.
      values: the program's own flags; those of a config are known besides.

    Returns:
      The value of each flag by its name without dashes, None where it has no value.

    Raises:
      ConfigError: a word that is not a flag, a flag that is unknown or given twice, a value of the wrong type or out of
        range; names the flag, the value, what is allowed, and the nearest known name.
    """
    seen: dict[str, str | None] = {}
    for name, value in _split_flags(words, values):
        _check_flag(name, value, values)
        if name in seen:
            both = f"{seen[name]} and {value}" if None not in (seen[name], value) else "two times"
            raise ConfigError(f"--{name} is given twice ({both}); leave one out")
        seen[name] = value
    return seen


def _split_flags(words: Sequence[str], values: flags.FlagValues | None) -> Iterator[tuple[str, str | None]]:
    """Each flag's name, without dashes and the 'no' of a switch, and its value, if it has one."""
    words = list(words[: words.index("--")] if "--" in words else words)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?([^-=\s][^=]*)(?:=(.*))?", word, re.DOTALL)
        if not match:
            hint = f"; write --{word}" if re.fullmatch(r"[\w.]+=.*", word, re.DOTALL) else ", such as --config.seed=1"
            raise ConfigError(f"{word!r} is not a flag: flags start with two dashes{hint}")
        name, value = match.groups()
        if _kind(name, values) is None and name.startswith("no") and _is_switch(name[2:], values):
            name = name[2:]
        elif value is None and not _is_switch(name, values) and words:
            value = words.pop(0)
        yield name, value


def _kind(name: str, values: flags.FlagValues | None) -> Kind | None:
    """What a flag takes; None for an unknown flag."""
    if name.startswith(_PREFIX):
        return kinds().get(name.removeprefix(_PREFIX))
    if values is None or name not in values:
        return None
    return Kind(_TYPES.get(values[name].parser.flag_type(), str))


def _is_switch(name: str, values: flags.FlagValues | None) -> bool:
    """Whether a flag is true or false, and so may stand without a value."""
    kind = _kind(name, values)
    return kind is not None and kind.type is bool


def _check_flag(name: str, value: str | None, values: flags.FlagValues | None) -> None:
    kind = _kind(name, values)
    if kind is None:
        raise _unknown_flag(name, values)
    if value is None:
        if kind.type is not bool:
            raise ConfigError(f"--{name} has no value, expected {kind}: --{name}=...")
        return
    try:
        parsed = _PARSERS[kind.type].parse(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--{name} is {value!r}, expected {kind}") from error
    if name.startswith(_PREFIX):
        check_value(name.removeprefix(_PREFIX), parsed)


def _unknown_flag(name: str, values: flags.FlagValues | None) -> ConfigError:
    if not name.startswith(_PREFIX):
        known = [*(values or ()), *(f"{_PREFIX}{key}" for key in kinds())]
        return ConfigError(f"--{name} is not a flag{nearest(name, known, '--')}; --help lists them")
    key = name.removeprefix(_PREFIX)
    if inside := [known for known in kinds() if known.startswith(f"{key}.")]:
        return ConfigError(f"--{name} is a group of keys; give one of them, such as --config.{inside[0]}=...")
    return unknown_key(key)

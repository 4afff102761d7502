"""The command line of a program with a config: --config=FILE.py[:argument], --config.a.b=v, and its own flags.

Words are checked before anything is loaded: known flags, each given once, with values that fit.
"""

import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from mtl_jax import configs
from mtl_jax.config.schema import check, check_value, kinds, unknown_key
from mtl_jax.errors import ConfigError
from mtl_jax.launch import environment
from mtl_jax.launch.program import nearest

_EXPECTED = "expected a ConfigDict: see configs/default.py"
_PARSERS = {
    int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser(),
    tuple: tuple_parser.TupleParser(), str: flags.ArgumentParser(),
}  # fmt: skip
_PREFIX = "config."


class _Flag(NamedTuple):
    """A flag on the command line: its name without dashes (and without 'no'), and its value, if it has one."""

    name: str
    value: str | None


def define_config(values: flags.FlagValues, required: bool) -> None:
    """Defines --config=FILE.py[:argument], --workdir and --debug."""
    config_flags.DEFINE_config_file("config", None, "FILE.py[:argument]; --config.a.b=v overrides", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder with everything of a run", flag_values=values)
    flags.DEFINE_bool("debug", False, "show the traceback of an error", flag_values=values)
    for name in ("workdir", "config") if required else ("workdir",):
        flags.mark_flag_as_required(name, flag_values=values)


def parse(values: flags.FlagValues, argv: Sequence[str], about: str | None = "") -> None:
    """Parses the command line; --help prints `about` (the program's docstring) and its flags, and exits.

    Raises:
      ConfigError: an unknown flag or key, a value of the wrong type, a word that is no flag.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(_help(values, about or ""))
        raise SystemExit(0)
    argv = [_installed_config(word) for word in argv]
    check_words(argv[1:], values)
    file = _config_file(argv)
    try:
        values(argv)
    except flags.Error as error:
        missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
        if missing and missing[1] == "config" and file:
            raise ConfigError(f"--config={file}: get_config() gives None; {_EXPECTED}") from error
        if missing:
            example = {"config": "--config=configs/glyphs.py:1shot", "workdir": "--workdir=runs/mine"}.get(missing[1])
            raise ConfigError(f"--{missing[1]} is missing; give {example or 'it'}") from error
        raise _config_failed(file, error) from error
    except Exception as error:  # a config file is a program, which may raise anything
        raise _config_failed(file, error) from error
    if file:
        _check_config(file, values.config)
        if values.config.runtime.deterministic:
            environment.make_deterministic()


def _config_file(argv: Sequence[str]) -> str:
    """What --config says, '' where it is not given. Raises ConfigError where there is no such file."""
    words = [word.lstrip("-") for word in argv]
    given = [after for word, after in zip(words, [*argv[1:], ""], strict=True) if word == "config"]
    given += [word.partition("=")[2] for word in words if word.startswith("config=")]
    if not given:
        return ""
    path = Path(given[0].partition(":")[0])
    if not path.is_file():
        there = sorted(f"configs/{file.name}" for file in Path(configs.__path__[0]).glob("[!_]*.py"))
        near = nearest(str(path), there)
        raise ConfigError(f"--config={given[0]}: no such file{near}; there are {', '.join(there)}")
    return given[0]


def _config_failed(file: str, error: Exception) -> ConfigError:
    """The error for a config file that could not be run: the exception, and the line of the file that raised it."""
    path, text = file.partition(":")[0], str(error).strip()
    lines = re.findall(rf'File "[^"]*{re.escape(Path(path).name)}", line (\d+)', text)
    if not lines:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(path).name]
    if "Error whilst parsing config file" in text:  # a whole traceback follows, whose last line is the exception
        said = text.splitlines()[-1].removeprefix("mtl_jax.errors.ConfigError: ")
    else:
        said = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
    if isinstance(error, flags.Error) and not lines:
        return ConfigError(text.replace("\n", " "))
    return ConfigError(f"--config={file}{f', line {lines[-1]}' if lines else ''}: {said}")


def _check_config(file: str, config: Any) -> None:
    """Whether what a config file gives has the keys and types of a config."""
    if not isinstance(config, ConfigDict):
        try:
            what = type(config).__name__
            config.seed  # noqa: B018, what stands for a file that could not be read raises why
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
    """--config=configs/X.py from any folder: the installed config where there is no such file."""
    name, sign, value = word.partition("=")
    path, colon, argument = value.partition(":")
    if name not in ("--config", "-config") or Path(path).exists() or Path(path).parent.name != "configs":
        return word
    installed = Path(configs.__path__[0]) / Path(path).name
    return f"{name}{sign}{installed}{colon}{argument}" if installed.exists() else word


def check_words(words: Sequence[str], values: flags.FlagValues | None = None) -> None:
    """Looks the words of a command line over.

    Args:
      words: without the program's name. What follows `--` is not looked at.
      values: the program's own flags; those of a config are known besides.

    Raises:
      ConfigError: a word that is no flag, a flag that is not known or given twice, a value of the wrong type or out of
        range; names the flag, the value, what is allowed, and the nearest known name.
    """
    seen: dict[str, str | None] = {}
    for flag in _flags(words, values):
        if flag.name.startswith(_PREFIX):
            _check_override(flag)
        else:
            _check_own(flag, values)
        if flag.name in seen:
            both = f"{seen[flag.name]} and {flag.value}" if None not in (seen[flag.name], flag.value) else "two times"
            raise ConfigError(f"--{flag.name} is given twice ({both}); leave one of them out")
        seen[flag.name] = flag.value
    for name in seen:
        inner = next((other for other in seen if other.startswith(f"{name}.") and name != "config"), None)
        if inner:
            raise ConfigError(f"--{name} and --{inner} contradict each other; leave one of them out")


def _flags(words: Sequence[str], values: flags.FlagValues | None) -> Iterator[_Flag]:
    words = list(words[: words.index("--")] if "--" in words else words)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?([^-=\s][^=]*)(=.*)?", word, re.DOTALL)
        if not match:
            dashes = f"; write --{word}" if re.fullmatch(r"[\w.]+=.*", word, re.DOTALL) else ", such as --config.seed=1"
            raise ConfigError(f"{word!r} is no flag: a flag has two dashes{dashes}")
        name, value = match[1], match[2] and match[2][1:]
        is_bool = _is_bool(name, values)
        if not is_bool and name.startswith("no") and _is_bool(name[2:], values):
            name, is_bool = name[2:], True
        if value is None and not is_bool and words:
            value = words.pop(0)
        yield _Flag(name, value)


def _is_bool(name: str, values: flags.FlagValues | None) -> bool:
    if name.startswith(_PREFIX):
        kind = kinds().get(name.removeprefix(_PREFIX))
        return kind is not None and kind.type is bool
    return values is not None and name in values and bool(values[name].boolean)


def _check_override(flag: _Flag) -> None:
    key = flag.name.removeprefix(_PREFIX)
    if key not in kinds():
        inside = [known for known in kinds() if known.startswith(f"{key}.")]
        if inside:
            raise ConfigError(f"--{flag.name} is a group of keys; give one of them, such as --config.{inside[0]}=...")
        raise unknown_key(key)
    kind = kinds()[key]
    if flag.value is None:
        if kind.type is not bool:
            raise ConfigError(f"--{flag.name} has no value, expected {kind}: --{flag.name}=...")
        return
    check_value(key, _parsed(flag, _PARSERS[kind.type], str(kind)))


def _check_own(flag: _Flag, values: flags.FlagValues | None) -> None:
    if values is None or flag.name not in values:
        known = [*(values or ()), *(f"{_PREFIX}{key}" for key in kinds())]
        raise ConfigError(f"--{flag.name} is no flag{nearest(flag.name, known, '--')}; --help lists them")
    known = values[flag.name]
    if flag.value is None and not known.boolean:
        raise ConfigError(f"--{flag.name} has no value: --{flag.name}=...")
    if flag.value is not None and flag.name != "config":
        said = {"int": "a whole number", "bool": "true or false", "float": "a number"}
        _parsed(flag, known.parser, said.get(known.parser.flag_type(), known.parser.flag_type()))


def _parsed(flag: _Flag, parser: flags.ArgumentParser, expected: str) -> Any:
    try:
        return parser.parse(flag.value)
    except (ValueError, TypeError) as error:
        bounds = getattr(parser, "lower_bound", None)
        least = f", {bounds} or more" if bounds is not None else ""
        raise ConfigError(f"--{flag.name} is {flag.value!r}, expected {expected}{least}") from error

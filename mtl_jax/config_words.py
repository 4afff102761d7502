"""The words of a command line, looked over before anything is loaded: known flags, each once, with values that fit."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections.config_flags import tuple_parser

from mtl_jax.config_values import check_value, kinds, nearest, unknown_key
from mtl_jax.errors import ConfigError

_PARSERS = {
    int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser(),
    tuple: tuple_parser.TupleParser(), str: flags.ArgumentParser(),
}  # fmt: skip
_PREFIX = "config."


class _Flag(NamedTuple):
    """A flag on the command line: its name without dashes (and without 'no'), and its value, if it has one."""

    name: str
    value: str | None


def check(words: Sequence[str], values: flags.FlagValues | None = None) -> None:
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

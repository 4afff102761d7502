"""What the programs share: reading flags and configs, and ending with one line instead of a traceback."""

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from mtl_jax import compilation_cache, config_values, config_words, host_memory, xla_flags
from mtl_jax.errors import ConfigError, MtlError
from mtl_jax.signals import EXIT_GO_ON_LATER

EXIT_USER_ERROR = 2
_EXPECTED = "expected a ConfigDict: see configs/default.py"


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
    config_words.check(argv[1:], values)
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
            xla_flags.make_deterministic()


def _config_file(argv: Sequence[str]) -> str:
    """What --config says, '' where it is not given. Raises ConfigError where there is no such file."""
    words = [word.lstrip("-") for word in argv]
    given = [after for word, after in zip(words, [*argv[1:], ""], strict=True) if word == "config"]
    given += [word.partition("=")[2] for word in words if word.startswith("config=")]
    if not given:
        return ""
    path = Path(given[0].partition(":")[0])
    if not path.is_file():
        from mtl_jax import configs

        there = sorted(f"configs/{file.name}" for file in Path(configs.__path__[0]).glob("[!_]*.py"))
        near = config_values.nearest(str(path), there)
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
        config_values.check(config)
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
    from mtl_jax import configs

    installed = Path(configs.__path__[0]) / Path(path).name
    return f"{name}{sign}{installed}{colon}{argument}" if installed.exists() else word


class Parser(argparse.ArgumentParser):
    """The parser of programs without a config: its errors are ConfigErrors, a flag is given once and in full."""

    def __init__(self, *words: Any, **options: Any) -> None:
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options}
        super().__init__(*words, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse. Raises ConfigError where a flag is given twice or is wrong."""
        given = [word.partition("=")[0] for word in (sys.argv[1:] if args is None else args) if word.startswith("--")]
        if twice := [name for name in given if given.count(name) > 1]:
            self.error(f"{twice[0]} is given twice; leave one of them out")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError, with the nearest known flag where one is not known."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        near = config_values.nearest(unknown[1], _options(self)) if unknown else ""
        raise ConfigError(f"{message}{near}; {self.prog} --help lists what there is")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a program's main: a user's error is one line and status 2, a stop by signal status 75.

    One of several processes does not come back from an error: see `hosts.abandon`.
    """
    argv = sys.argv if argv is None else argv
    xla_flags.configure()
    host_memory.keep()
    compilation_cache.configure()
    from mtl_jax import hosts

    try:
        status = _status(main, argv)
    except Exception:
        if hosts.is_joined():
            traceback.print_exc()
            hosts.abandon(1)
        raise
    if status not in (0, EXIT_GO_ON_LATER):
        hosts.abandon(status)
    return status


def _status(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    from mtl_jax.loop import NotFiniteError, Stopped

    try:
        return main(argv) or 0
    except Stopped:
        print("stopped and saved; the same command goes on from here", file=sys.stderr)
        return EXIT_GO_ON_LATER
    except MtlError as error:
        if any(word in ("--debug", "--debug=true", "--debug=1") for word in argv):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NotFiniteError) else EXIT_USER_ERROR

"""What the programs share: reading flags and configs, and ending with one line instead of a traceback."""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mtl_jax import compilation_cache, xla_flags
from mtl_jax.errors import ConfigError, MtlError
from mtl_jax.signals import EXIT_GO_ON_LATER

EXIT_USER_ERROR = 2


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
    try:
        rest = values(argv)
    except flags.Error as error:
        raise ConfigError(str(error).strip().replace("\n", "; ")) from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
        raise ConfigError(f"--config: {type(error).__name__}: {error}".replace("\n", " ")) from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is no flag; write --config.a.b=value, with two dashes")


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


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a program's main: a user's error is one line and status 2, a stop by signal status 75.

    One of several processes does not come back from an error: see `hosts.abandon`.
    """
    argv = sys.argv if argv is None else argv
    xla_flags.configure()
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
        if any(word in ("--debug", "--debug=true") for word in argv):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NotFiniteError) else EXIT_USER_ERROR

"""What every program does: set up the process, parse flags, show the log, end with one line instead of a traceback."""

import argparse
import contextlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from mtl_jax.errors import ConfigError, MtlError, NotFiniteError
from mtl_jax.launch import environment, hosts, interrupts
from mtl_jax.launch.signals import EXIT_GO_ON_LATER, Stopped
from mtl_jax.launch.start import EXIT_USER_ERROR
from mtl_jax.words import nearest
from mtl_jax.workdir import console


class Parser(argparse.ArgumentParser):
    """The parser of programs without a config: it raises ConfigErrors; a flag is given once, with its full name."""

    def __init__(self, *words: Any, **options: Any) -> None:
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options}
        super().__init__(*words, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse. Raises ConfigError where a flag is given twice or is wrong."""
        words = sys.argv[1:] if args is None else args
        names = [word.partition("=")[0] for word in words if word.startswith("--")]
        if twice := [name for name in names if names.count(name) > 1]:
            self.error(f"{twice[0]} is given twice; leave one out")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError, with the nearest known flag or word where one is not known."""
        near = ""
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            near = nearest(unknown[1], _options(self))
        elif unknown := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = nearest(unknown[1], re.findall(r"[\w.-]+", unknown[2]))
        raise ConfigError(f"{message}{near}; {self.prog} --help lists the choices")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a program's main: a user's error gives one line and status 2, a stop by signal status 75.

    Ctrl-C ends the process in one line; with `argv` it is the caller's. One of several processes does not return from
    an error: see `hosts.abandon`.
    """
    with interrupts.within_program() if argv is None else contextlib.nullcontext():
        return _run(main, sys.argv if argv is None else argv)


def _run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    environment.configure_xla()
    environment.keep_freed_memory()
    environment.configure_compilation_cache()
    stdout: Any = sys.stdout
    stdout.reconfigure(errors="backslashreplace")  # a class name that the console cannot show is not an error
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
    try:
        with interrupts.readers_may_leave(), environment.naming_missing_devices(), console.shown():
            return main(argv) or 0
    except Stopped:
        print("stopped and saved; rerun the command to resume", file=sys.stderr)
        return EXIT_GO_ON_LATER
    except MtlError as error:
        if any(word in ("--debug", "--debug=true", "--debug=1") for word in argv):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NotFiniteError) else EXIT_USER_ERROR

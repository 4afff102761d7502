"""How a program begins, before anything heavy is imported: its name is known, and Ctrl-C ends it in one line."""

import itertools
import re
import runpy
import sys

from mtl_jax.launch import interrupts
from mtl_jax.words import nearest

PROGRAMS = (
    "demo", "data", "train", "evaluate", "launch", "frozen_episodes", "report", "ablation", "classify", "demo_page",
    "export", "reference_weights",
)  # fmt: skip
EXIT_USER_ERROR = 2


def begin() -> None:
    """What the package calls when `python -m` imports it. Ends the process where there is not a program of that name.

    Does nothing where `python -m` runs a module of somebody else.
    """
    named = [word for before, word in itertools.pairwise(sys.orig_argv) if re.fullmatch(r"-\w*m", before)]
    package, _, name = (named or [""])[0].partition(".")
    if package == "mtl_jax":
        interrupts.end_at_once()
        check(name.partition(".")[0] or "__main__", "python -m mtl_jax.{}")


def check(name: str, command: str) -> None:
    """Ends the process with one line and status 2 where no program has that name; `command` is how it is called."""
    if name not in PROGRAMS and name != "__main__":
        near = nearest(name, PROGRAMS)
        print(f"error: {name!r} is not a program{near}; there are {', '.join(PROGRAMS)}: "
              f"{command.format('train')} --help", file=sys.stderr)  # fmt: skip
        raise SystemExit(EXIT_USER_ERROR)


def run(name: str) -> None:
    """Runs a program with the words of `sys.argv`, as `python -m mtl_jax.NAME` does; it ends the process."""
    interrupts.end_at_once()
    runpy.run_module(f"mtl_jax.{name}", run_name="__main__")

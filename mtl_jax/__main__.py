"""Lists and runs the programs: `mtl-jax` (or `python -m mtl_jax`) lists them, `mtl-jax train ...` runs one.

mtl-jax train --config=configs/glyphs.py:1shot --workdir=runs/glyphs
"""

import ast
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.launch import interrupts, start
from mtl_jax.launch.start import PROGRAMS


def file_of(program: str) -> Path:
    """The file that `python -m mtl_jax.PROGRAM` runs."""
    spec = importlib.util.find_spec(f"mtl_jax.{program}")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("__main__.py") if spec.submodule_search_locations else Path(spec.origin)


def summary(program: str) -> str:
    """The first line of a program's docstring, read without importing the program."""
    return (ast.get_docstring(ast.parse(file_of(program).read_bytes())) or "").partition("\n")[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program named by the first word; without one, prints the list. Status 2 for an unknown name."""
    words = (sys.argv if argv is None else argv)[1:]
    if words and words[0] not in ("-h", "--help"):
        start.check(words[0], "mtl-jax {}")
        sys.argv = [str(file_of(words[0])), *words[1:]]
        start.run(words[0])
    width = max(map(len, PROGRAMS))
    with interrupts.readers_may_leave():
        print("Programs (each has --help; `python -m mtl_jax.train` is the same as `mtl-jax train`):\n")
        for program in PROGRAMS:
            print(f"  mtl-jax {program:{width}}  {summary(program)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

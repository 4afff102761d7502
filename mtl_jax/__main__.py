"""What can be run: `python -m mtl_jax` lists the programs, a line each.

python -m mtl_jax.train --help
"""

import ast
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = (
    "demo", "data", "train", "evaluate", "launch", "frozen_episodes", "report", "ablation", "classify", "export",
    "reference_weights",
)  # fmt: skip


def summary(program: str) -> str:
    """The first line of a program's docstring, read without importing the program."""
    spec = importlib.util.find_spec(f"mtl_jax.{program}")
    file = Path(spec.origin)
    if spec.submodule_search_locations:
        file = file.with_name("__main__.py")
    return ast.get_docstring(ast.parse(file.read_bytes())).partition("\n")[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the list; status 2 where a program's name was given as a word."""
    words = (sys.argv if argv is None else argv)[1:]
    if words and words[0] not in ("-h", "--help"):
        near = words[0] if words[0] in PROGRAMS else "train"
        print(f"error: python -m mtl_jax takes no words; write python -m mtl_jax.{near} --help", file=sys.stderr)
        return 2
    width = max(map(len, PROGRAMS))
    print("Programs, each with --help:\n")
    for program in PROGRAMS:
        print(f"  python -m mtl_jax.{program:{width}}  {summary(program)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""python -m benchmarks [--rows=a,d] [--quick] [--output=FILE]     measure, print the table, write FILE
python -m benchmarks --rows=a,b,c --dtype=bfloat16 --times=8         the same on an accelerator, in its own precision
python -m benchmarks table FILE [PAGE ...]           print FILE's table, or put it, or its summary, into pages

Rows: a meta-training step of the PyTorch preset, b of the TensorFlow preset, c pre-training step, d adaptation from
features, e meta-test, f the loop, g preparing images, h start-up; i, peak memory, is a column. All take about
20 minutes on two cores; nothing else should run meanwhile. The rivals need PyTorch: '.[torch]'.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import accelerator, run, table
from benchmarks.rows import groups

OUTPUT = Path(__file__).parent / "results.json"


def _table(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks table")
    parser.add_argument("file", type=Path)
    parser.add_argument("pages", type=Path, nargs="*")
    flags = parser.parse_args(argv)
    results = json.loads(flags.file.read_text(encoding="utf-8"))
    for page in flags.pages:
        table.insert(page, results)
    if not flags.pages:
        print(table.markdown(results))
    return 0


def _measure(argv: list[str]) -> int:
    letters = "".join(groups(False))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(letters), help="letters, separated by commas")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one repeat: does the machinery work?")
    parser.add_argument(
        "--output", type=Path, help=f"default: {OUTPUT.name} beside the code; none with --quick, --rows"
    )
    accelerator.add_flags(parser)
    flags = parser.parse_args(argv)
    accelerator.choose(flags)
    rows = flags.rows.split(",")
    if unknown := [row for row in rows if row not in letters]:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(letters)}")
    results = run.run(rows, quick=flags.quick, say=run.say_to_stderr)
    whole = not flags.quick and rows == list(letters) and (flags.dtype, flags.times) == ("float32", 1)
    if output := flags.output or (OUTPUT if whole else None):
        run.write(results, output)
    print(table.markdown(results))
    failed = [f"{row['row']}: {row['error']}" for row in results["rows"] if "error" in row]
    print(*failed, sep="\n", end="", file=sys.stderr)
    return int(bool(failed))


def main(argv: list[str]) -> int:
    """The program; its status is 1 where a row failed."""
    return _table(argv[1:]) if argv[:1] == ["table"] else _measure(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

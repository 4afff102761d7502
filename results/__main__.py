"""The program `python -m results`; see the package."""

import argparse
import sys

import results
from mtl_jax.launch import program
from results import records


def main(argv: list[str]) -> int:
    """keep, check, effects, options, ladder, sweep, gpu, imagenet, confidence, pretrained or table."""
    from results import check, confidence, effects, gpu, imagenet, keep, ladder, options, pretrained, sweep

    root = argparse.ArgumentParser(
        "python -m results", description=results.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = root.add_subparsers(dest="command", required=True)
    for part in (keep, check, effects, options, ladder, sweep, gpu, imagenet, confidence, pretrained):
        command = commands.add_parser(part.__name__.rsplit(".", 1)[1], help=part.__doc__.split("\n", 1)[0])
        part.add_flags(command)
        command.set_defaults(main=part.main)
    commands.add_parser("table", help="writes the tables").set_defaults(main=lambda _: records.write_tables() or 0)
    flags = root.parse_args(argv[1:])
    return flags.main(flags)


if __name__ == "__main__":
    sys.exit(program.run(main))

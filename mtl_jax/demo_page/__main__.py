"""A page in your browser where photographs are sorted by a few examples that you drop into each class.

    python -m mtl_jax.demo_page --support=my_classes
    python -m mtl_jax.demo_page --workdir=runs/mine

my_classes/ has one folder per class, with any number of images in each; without it the page begins empty. The program
prints the page's address. Drop photographs into classes, and others below: each gets the probabilities of the classes
and the examples that are most like it. The page is for this machine alone, uses no network and writes nothing: what
was dropped is gone when Ctrl-C ends the program.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.classify import FewShotClassifier, folders
from mtl_jax.classify.classifier import PRETRAINED
from mtl_jax.config import own_backbone
from mtl_jax.demo_page.album import Album
from mtl_jax.demo_page.server import Server
from mtl_jax.launch import program
from mtl_jax.reference_weights import kept_networks
from mtl_jax.words import counted

PORT = 8642


def parser() -> program.Parser:
    """The program's parser."""
    root = program.Parser("python -m mtl_jax.demo_page", description=__doc__)
    root.add_argument("--support", type=Path, help="a folder with one folder of images per class")
    root.add_argument("--workdir", type=Path, help="the run of train.py whose network to use")
    names = ", ".join(kept_networks.packaged_names())
    about = f"a network of the package: {names} ({PRETRAINED}); {own_backbone.WITH_RUN}"
    root.add_argument("--backbone", metavar="NAME", help=about)
    root.add_argument("--port", type=int, default=PORT, help="of the page's address (%(default)s); 0: any that is free")
    return root


def run(argv: Sequence[str]) -> int:
    """The program."""
    flags = parser().parse_args(argv[1:])
    backbone = own_backbone.load_beside(flags.workdir, flags.backbone)
    support = folders.find_support(flags.support) if flags.support else None
    with Server(flags.port) as server:
        if flags.workdir:
            classifier, network = FewShotClassifier.from_workdir(flags.workdir), str(flags.workdir)
        else:
            network = backbone or PRETRAINED
            classifier = FewShotClassifier.from_pretrained(network)
        server.album = album = Album(classifier, network)
        if support:
            album.fill(support)
        for line in album.left_out:
            print(f"left out: {line}", file=sys.stderr)
        print(f"{counted(len(album.classes), 'class')}, {counted(len(album.photographs), 'photograph')}; "
              f"open {server.address} in your browser, end it with Ctrl-C", flush=True)  # fmt: skip
        server.serve_forever()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

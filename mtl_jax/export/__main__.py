"""Exports the embedding function of a trained run as StableHLO, which runs without this package or its code.

    python -m mtl_jax.export --workdir=runs/glyphs --output=embedding.stablehlo

The function takes stored images, uint8 [B, H, W, C] with any B, and returns features, float32 [B, F]. It includes the
centre crop, the normalisation and the backbone, with scale and shift and batch norm folded into the convolutions.
It needs JAX alone:

    from jax import export
    features = export.deserialize(bytearray(open('embedding.stablehlo', 'rb').read())).call(images)

embedding.json beside it says what images it takes and what it was made from. With this package,
`FewShotClassifier(mtl_jax.export.load('embedding.stablehlo'))` takes images of any size and kind.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.errors import ConfigError, MtlError
from mtl_jax.export import embedding, stablehlo
from mtl_jax.launch import program


def parser() -> program.Parser:
    """The program's parser."""
    root = program.Parser("python -m mtl_jax.export", description=__doc__)
    root.add_argument("--workdir", type=Path, required=True, help="a run of train.py")
    root.add_argument("--output", type=Path, default=Path("embedding.stablehlo"), help="the file (%(default)s)")
    root.add_argument(
        "--platforms", default=",".join(stablehlo.DEFAULT_PLATFORMS), help="where it will run (%(default)s)"
    )
    return root


def run(argv: Sequence[str]) -> int:
    """The program."""
    flags = parser().parse_args(argv[1:])
    if flags.output.suffix == ".json":
        raise MtlError(f"--output={flags.output}: the JSON file beside it has that name; give another suffix")
    embed = embedding.load(flags.workdir)
    if embed.inner.adapt != "head":
        raise ConfigError(
            f"{flags.workdir}: its inner loop adapts the backbone to every task (inner.adapt={embed.inner.adapt!r}), "
            "so no single function gives its features; give a run with inner.adapt='head'"
        )
    facts = stablehlo.write(embed, flags.output, flags.platforms.split(",")).facts
    size = flags.output.stat().st_size / 1e6
    print(
        f"{flags.output} ({size:.1f} MB, for {', '.join(facts['platforms'])}): uint8 {facts['input']} -> "
        f"float32 [B, {facts['features']}], equal to the run's features to {facts['max_difference']:.1g}"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

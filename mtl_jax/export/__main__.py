"""Exports the embedding function of a trained run as StableHLO or ONNX, which run without this package or its code.

    python -m mtl_jax.export --workdir=runs/glyphs --output=embedding.stablehlo
    python -m mtl_jax.export --backbone=imagenet-lite0 --output=photographs.stablehlo
    python -m mtl_jax.export --backbone=imagenet-lite0 --output=photographs.onnx          # needs '.[onnx]'

The function takes stored images, uint8 [B, H, W, C] with any B, and returns features, float32 [B, F]. It includes the
centre crop, the normalisation and the backbone, with scale and shift and batch norm folded into the convolutions.
StableHLO needs only JAX:

    from jax import export
    features = export.deserialize(bytearray(open('embedding.stablehlo', 'rb').read())).call(images)

An .onnx file has one input, images, and one output, features. A JSON file beside the exported one says how to prepare
images and what it was made from. With this package, `FewShotClassifier(mtl_jax.export.load('embedding.stablehlo'))`
accepts images of any size and kind.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.config import own_backbone
from mtl_jax.errors import ConfigError, MtlError
from mtl_jax.export import embedding, onnx, stablehlo
from mtl_jax.launch import program
from mtl_jax.learners import moved_part
from mtl_jax.reference_weights import kept_networks


def parser() -> program.Parser:
    """The program's parser."""
    root = program.Parser("python -m mtl_jax.export", description=__doc__)
    root.add_argument("--workdir", type=Path, help="workdir of a train.py run")
    names = ", ".join(kept_networks.packaged_names())
    root.add_argument(
        "--backbone",
        metavar="NETWORK",
        help=f"{names}, a weight file or {own_backbone.HUB}OWNER/NAME; {own_backbone.WITH_RUN}",
    )
    root.add_argument(
        "--output",
        type=Path,
        default=Path("embedding.stablehlo"),
        help="the file (%(default)s); ONNX if it ends in .onnx",
    )
    root.add_argument("--platforms", help=f"where StableHLO will run ({','.join(stablehlo.DEFAULT_PLATFORMS)})")
    return root


def run(argv: Sequence[str]) -> int:
    """The program."""
    flags = parser().parse_args(argv[1:])
    name = own_backbone.load_beside(flags.workdir, flags.backbone)
    if not (flags.workdir or name):
        raise ConfigError("give --workdir=DIR or --backbone=NETWORK")
    if flags.output.suffix == ".json":
        raise MtlError(f"--output={flags.output}: the JSON file beside it has that name; give another suffix")
    embed = embedding.named(name) if name else embedding.load(flags.workdir)
    if isinstance(embed, embedding.Embedding) and (moved := moved_part(embed.inner)) != "head":
        raise ConfigError(
            f"{name or flags.workdir}: its inner loop adapts the backbone to every task (inner.adapt={moved!r}), "
            "so no single function gives its features; give one with inner.adapt='head'"
        )
    if flags.output.suffix == onnx.SUFFIX:
        if flags.platforms:
            raise ConfigError("--platforms is for StableHLO; leave it out for an .onnx file")
        facts, where = onnx.write(embed, flags.output), "ONNX"
    else:
        platforms = flags.platforms.split(",") if flags.platforms else stablehlo.DEFAULT_PLATFORMS
        facts = stablehlo.write(embed, flags.output, platforms).facts
        where = f"for {', '.join(facts['platforms'])}"
    size = flags.output.stat().st_size / 1e6
    print(
        f"{flags.output} ({size:.1f} MB, {where}): uint8 {facts['input']} -> "
        f"float32 [B, {facts['features']}], equal to the network's features to {facts['max_difference']:.1g}"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

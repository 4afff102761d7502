"""Shows and converts weight files: of the two reference implementations, of RFS, FEAT, DeepEMD and MetaOptNet, and
ResNets and vision transformers of torchvision, timm, DINO, DINOv2 and Hugging Face.

    python -m mtl_jax.reference_weights info FILE
    python -m mtl_jax.reference_weights convert FILE OUT.pth|OUT.safetensors|OUT.npy

FILE is a .pth (.pt, .pth.tar, .bin) of PyTorch code; a .npy of the TensorFlow code, several separated by commas, or a
folder of them; a .safetensors; a workdir of train.py; or hf-hub:OWNER/NAME.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax import config, meta
from mtl_jax.config.rules import is_weights
from mtl_jax.errors import CheckpointError
from mtl_jax.launch import program
from mtl_jax.reference_weights import kept_networks, networks
from mtl_jax.reference_weights.files import (
    ReferenceWeights,
    export_npy,
    export_pth,
    export_safetensors,
    load_reference_weights,
)
from mtl_jax.reference_weights.trees import GROUPS
from mtl_jax.words import counted
from mtl_jax.workdir import Workdir, named_arrays, writing
from mtl_jax.workdir.checkpoint import Checkpoints

_LISTED = 8  # keys that a line names; it counts the others


def from_workdir(path: Path) -> ReferenceWeights:
    """The selected checkpoint of a run of train.py, with fine-tuned parameters applied.

    Raises:
      MtlError: there is none.
    """
    workdir = Workdir(path)
    settings = config.read(workdir.config)
    if settings.meta.learn == "none":
        return _pretrained(settings, workdir)
    items = Checkpoints(workdir.checkpoints("meta")).selected(settings.meta.select).items
    learned = items["learned"]
    params = meta.overlay(items["params"], learned.get("params", {}))
    stats = items.get("batch_stats") if settings.meta.batch_norm != "batch" else None
    return ReferenceWeights(settings.backbone.name, params, stats, learned.get("ss"), learned["head"])


def _pretrained(settings: ConfigDict, workdir: Workdir) -> ReferenceWeights:
    """The pre-trained backbone of a run, or of its `pretrain.init`: a workdir or a weight file."""
    init = kept_networks.init_path(settings.pretrain.init)
    if kept_networks.is_kept(init):
        kept = kept_networks.read(Path(init))
        return ReferenceWeights(settings.backbone.name, *kept.model.frozen, None, None)
    if init and is_weights(init):
        return load_reference_weights(init)
    source = Workdir(init) if init else workdir
    items = Checkpoints(source.checkpoints("pretrain")).selected(settings.pretrain.select).items
    network = items.get("average") or items
    return ReferenceWeights(
        settings.backbone.name, network["params"]["backbone"], network.get("batch_stats", {}), None, None
    )


def describe(weights: ReferenceWeights) -> str:
    """What the weights are, one line per group."""
    lines = [f"backbone: {weights.backbone}"]
    for group in GROUPS:
        tree = getattr(weights, group)
        arrays = named_arrays.flatten(tree) if tree else {}
        count = sum(array.size for array in arrays.values())
        lines.append(
            f"{group}: {counted(len(arrays), 'array')}, {counted(count, 'number', ',')}" if arrays else f"{group}: none"
        )
    if weights.head:
        lines.append(f"head: {counted(weights.head['kernel'].shape[1], 'class')}")
    return "\n".join(lines)


def describe_network(network: networks.Network) -> str:
    """What a network is, one line a fact."""
    name, options = networks.named(network.module)
    lines = [f"backbone: {name}", "options: " + ", ".join(f"{key} {value}" for key, value in options.items())]
    for group, tree in (("params", network.params), ("batch_stats", network.batch_stats)):
        arrays = named_arrays.flatten(tree) if tree else {}
        count = sum(array.size for array in arrays.values())
        lines.append(f"{group}: {len(arrays)} arrays, {count:,} numbers" if arrays else f"{group}: none")
    lines.append("images: " + ", ".join(f"{key} {value}" for key, value in network.description.items()))
    if network.left_out:
        more = f" and {len(network.left_out) - _LISTED} more" if len(network.left_out) > _LISTED else ""
        lines.append(f"left out: {', '.join(network.left_out[:_LISTED])}{more}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The program."""
    parser = program.Parser("python -m mtl_jax.reference_weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("info", "show what is in a file"), ("convert", "write it in another format")):
        command = commands.add_parser(name, help=about)
        command.add_argument(
            "file",
            help=".pth, .pt, .pth.tar, .bin, .npy (several: separated by commas), folder of .npy, .safetensors, "
            "workdir, or hf-hub:OWNER/NAME",
        )
        if name == "convert":
            command.add_argument("out", type=Path, help="ends in .pth, .npy or .safetensors")
    flags = parser.parse_args(argv[1:])
    path = Path(flags.file)
    is_run = (path / "config.json").exists() and not networks.in_folder(path)
    weights = from_workdir(path) if is_run else networks.read(flags.file)
    is_network = isinstance(weights, networks.Network)
    print(describe_network(weights) if is_network else describe(weights))
    if flags.command == "convert":
        _convert(weights, flags.out, {".safetensors": networks.write} if is_network else _EXPORTS)
    return 0


_EXPORTS = {".pth": export_pth, ".pt": export_pth, ".npy": export_npy, ".safetensors": export_safetensors}


def _convert(weights: Any, out: Path, exports: Mapping[str, Callable]) -> None:
    if out.suffix not in exports:
        raise CheckpointError(f"{out}: expected a name that ends in {', '.join(exports)}")
    with writing(out, "give another path", CheckpointError):
        written = exports[out.suffix](weights, out) or [out]
    print("written:", ", ".join(map(str, written)))


if __name__ == "__main__":
    sys.exit(program.run(main))

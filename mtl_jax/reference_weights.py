"""Weight files of the two reference implementations and of RFS, FEAT, DeepEMD and MetaOptNet, in both directions.

    python -m mtl_jax.reference_weights info FILE
    python -m mtl_jax.reference_weights convert FILE OUT.pth|OUT.safetensors|OUT.npy

FILE is a .pth (.pt, .pth.tar) of PyTorch code; a .npy of the TensorFlow code, several with commas between, or their
folder; a .safetensors; or a workdir of train.py.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax import cli, named_arrays, reference_pytorch, reference_tensorflow, state_dicts, weight_files
from mtl_jax.errors import CheckpointError
from mtl_jax.reference_trees import ReferenceWeights

__all__ = ["ReferenceWeights", "export_npy", "export_pth", "export_safetensors", "load_reference_weights"]

GROUPS = ("params", "batch_stats", "ss", "head")


def load_reference_weights(path_or_mapping: str | Path | Mapping[str, Any]) -> ReferenceWeights:
    """The weights of a published file: MTL's resnet25 (PyTorch), resnet12 or resnet18 (TensorFlow), or a resnet12_640.

    Args:
      path_or_mapping: a `.pth`, `.pt` or `.pth.tar` (needs PyTorch); a `.npy`, several of them separated by commas, or
        a folder of them; a `.safetensors`, of `export_safetensors` or of a state dict; or what has been loaded already:
        a state dict, bare or as a trainer wraps it (`state_dicts`), a `weights` dict of the TensorFlow code, or
        {'weights': ..., 'ss_weights': ..., 'fc_weights': ...}. A pre-training file gives Θ alone, or with its
        classifier as θ; a meta-training one Φ and θ as well.

    Returns:
      ReferenceWeights(backbone, params, batch_stats, ss, head), None for what the file has not.

    Raises:
      CheckpointError: unreadable, or not one of these: every missing, surplus and wrongly shaped key is listed.
    """
    if isinstance(path_or_mapping, Mapping):
        return _from_mapping(path_or_mapping, "the mapping")
    text = str(path_or_mapping)
    paths = [Path(part) for part in text.split(",")]
    paths = sorted(paths[0].glob("*.npy")) if len(paths) == 1 and paths[0].is_dir() else paths
    for path in paths:
        if not path.is_file() or not path.name.endswith(weight_files.SUFFIXES):
            what = "no weight file" if path.exists() else "there is no such file"
            raise CheckpointError(f"{path}: {what}; expected one of {', '.join(weight_files.SUFFIXES)}")
    if not paths:
        raise CheckpointError(f"{text}: a folder without .npy files; give a weight file")
    if len(paths) == 1 and paths[0].suffix == ".safetensors":
        return _from_safetensors(paths[0])
    if len(paths) == 1 and paths[0].name.endswith(weight_files.PYTORCH):
        return _from_mapping(weight_files.read_pth(paths[0]), text)
    return reference_tensorflow.from_dicts(_by_kind(paths), text)


def _by_kind(paths: Sequence[Path]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        content = weight_files.read_npy(path)
        kind = reference_tensorflow.kind_of(content)
        if kind is None or kind in found:
            what = f"a second file of {kind}" if kind else "none of the TensorFlow code's dicts"
            raise CheckpointError(f"{path}: {what}; give one file each of {', '.join(reference_tensorflow.KINDS)}")
        found[kind] = content
    return found


def _from_mapping(mapping: Any, where: str) -> ReferenceWeights:
    state = state_dicts.unwrapped(mapping) if isinstance(mapping, Mapping) else {}
    if reference_pytorch.backbone_of(state):
        return reference_pytorch.from_state_dict(state, where)
    if isinstance(mapping, Mapping) and mapping.keys() & set(reference_tensorflow.KINDS):
        return reference_tensorflow.from_dicts(mapping, where)
    if isinstance(mapping, Mapping) and reference_tensorflow.kind_of(mapping):
        return reference_tensorflow.from_dicts({reference_tensorflow.kind_of(mapping): mapping}, where)
    keys = ", ".join(sorted(state)[:5]) if isinstance(mapping, Mapping) else type(mapping).__name__
    raise CheckpointError(
        f"{where}: not the weights of a known network: found {keys or 'nothing'}; expected conv1.weight (resnet25), "
        "layer1.0.conv3.weight (resnet12_640) or block1_conv1 (TensorFlow) among the keys, with or without a prefix"
    )


def _from_safetensors(path: Path) -> ReferenceWeights:
    arrays, metadata = weight_files.read_safetensors(path)
    trees = named_arrays.nest(arrays)
    if "backbone" not in metadata or "params" not in trees or trees.keys() - set(GROUPS):
        return _from_mapping(arrays, str(path))
    return ReferenceWeights(metadata["backbone"], *(trees.get(group) for group in GROUPS))


def export_pth(weights: ReferenceWeights, path: str | Path) -> None:
    """Writes a `.pth` that MTL's code loads (of resnet25) or RFS' (of resnet12_640); `to_state_dict` is its mapping.

    Raises:
      MtlError: PyTorch is not installed. CheckpointError: the weights are another backbone's.
    """
    weight_files.write_pth(Path(path), reference_pytorch.to_state_dict(weights))


def export_npy(weights: ReferenceWeights, path: str | Path) -> list[Path]:
    """Writes the TensorFlow code's files OUT-weights.npy, OUT-ss_weights.npy, OUT-fc_weights.npy, `path` being OUT.npy.

    Raises:
      CheckpointError: not a resnet12 or resnet18, or with what these files cannot hold.
    """
    written, stem = [], Path(path).with_suffix("")
    for kind, arrays in reference_tensorflow.to_dicts(weights).items():
        written.append(stem.with_name(f"{stem.name}-{kind}.npy"))
        weight_files.write_npy(written[-1], arrays)
    return written


def export_safetensors(weights: ReferenceWeights, path: str | Path) -> None:
    """Writes all trees as named arrays 'params/stem/conv/kernel', with the backbone's name in the metadata."""
    trees = {group: getattr(weights, group) for group in GROUPS if getattr(weights, group)}
    weight_files.write_safetensors(Path(path), named_arrays.flatten(trees), {"backbone": weights.backbone})


def from_workdir(path: Path) -> ReferenceWeights:
    """The selected checkpoint of a run of train.py, its fine-tuned parameters put in their places.

    Raises:
      MtlError: there is none.
    """
    from mtl_jax import config, meta, phases, workdir

    place = workdir.Workdir(path)
    settings = config.read(place.config)
    if settings.meta.learn == "none":
        params, batch_stats = phases.pretrained(settings, place)
        return ReferenceWeights(settings.backbone.name, params, batch_stats, None, None)
    items = phases.meta_checkpoint(settings, place).items
    learned = items["learned"]
    params = meta.overlay(items["params"], learned.get("params", {}))
    stats = items.get("batch_stats") if settings.meta.batch_norm != "batch" else None
    return ReferenceWeights(settings.backbone.name, params, stats, learned.get("ss"), learned["head"])


def describe(weights: ReferenceWeights) -> str:
    """What is in it, a line a group."""
    lines = [f"backbone: {weights.backbone}"]
    for group in GROUPS:
        tree = getattr(weights, group)
        arrays = named_arrays.flatten(tree) if tree else {}
        count = sum(array.size for array in arrays.values())
        lines.append(f"{group}: {len(arrays)} arrays, {count:,} numbers" if arrays else f"{group}: none")
    if weights.head:
        lines.append(f"head: {weights.head['kernel'].shape[1]} classes")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The program."""
    parser = cli.Parser("python -m mtl_jax.reference_weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("info", "what a file holds"), ("convert", "write it in another format")):
        command = commands.add_parser(name, help=about)
        command.add_argument(
            "file", help=".pth, .pt, .pth.tar, .npy (several: with commas), folder of .npy, .safetensors, or workdir"
        )
        if name == "convert":
            command.add_argument("out", type=Path, help="ends in .pth, .npy or .safetensors")
    arguments = parser.parse_args(argv[1:])
    place = Path(arguments.file)
    weights = from_workdir(place) if (place / "config.json").exists() else load_reference_weights(arguments.file)
    print(describe(weights))
    if arguments.command == "convert":
        _convert(weights, arguments.out)
    return 0


def _convert(weights: ReferenceWeights, out: Path) -> None:
    exports = {".pth": export_pth, ".pt": export_pth, ".npy": export_npy, ".safetensors": export_safetensors}
    if out.suffix not in exports:
        raise CheckpointError(f"{out}: expected a name that ends in {', '.join(exports)}")
    try:
        written = exports[out.suffix](weights, out) or [out]
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}; give another path") from error
    print("written:", ", ".join(map(str, written)))


if __name__ == "__main__":
    sys.exit(cli.run(main))

"""What users call: loads and exports weight files of MTL's two implementations, RFS, FEAT, DeepEMD and MetaOptNet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.config.rules import WEIGHT_SUFFIXES
from mtl_jax.errors import CheckpointError
from mtl_jax.reference_weights import file_formats, mobile, pth, pytorch, tensorflow
from mtl_jax.reference_weights.trees import GROUPS, ReferenceWeights
from mtl_jax.reference_weights.vision import keys as vision_keys
from mtl_jax.workdir import named_arrays

__all__ = ["ReferenceWeights", "export_npy", "export_pth", "export_safetensors", "load_reference_weights"]


def load_reference_weights(path_or_mapping: str | Path | Mapping[str, Any]) -> ReferenceWeights:
    """The weights of a published network.

    These are MTL's resnet25 (PyTorch), resnet12 and resnet18 (TensorFlow), resnet12_640, and for photographs
    efficientnet_lite0, mobilenet_v2 and imagenet_resnet18, -34 and -50. `load_network` reads vision transformers too.

    Args:
      path_or_mapping: one of
        - a file of PyTorch (`.pth`, `.pt`, `.pth.tar`, `.bin`, `.ckpt`);
        - a `.npy` file, several of them separated by commas, or a folder of them;
        - a `.safetensors` file, of `export_safetensors` or of a state dict;
        - a loaded state dict, bare or wrapped (see `pytorch.WRAPPERS`);
        - a loaded `weights` dict of the TensorFlow code, or {'weights': ..., 'ss_weights': ..., 'fc_weights': ...}.

    Returns:
      ReferenceWeights(backbone, params, batch_stats, ss, head), None for what the file does not have. A pre-training
      file has Θ, sometimes with its classifier as θ; a meta-training file has Φ and θ as well.

    Raises:
      CheckpointError: unreadable, or no such network: lists every missing, surplus and wrongly shaped key.
    """
    if isinstance(path_or_mapping, Mapping):
        return from_mapping(path_or_mapping, "the mapping")
    text = str(path_or_mapping)
    paths = [Path(part) for part in text.split(",")]
    paths = sorted(paths[0].glob("*.npy")) if len(paths) == 1 and paths[0].is_dir() else paths
    if not paths:
        raise CheckpointError(f"{text}: a folder without .npy files; give a weight file")
    kinds = [kind_of(path) for path in paths]
    if kinds == ["safetensors"]:
        return _from_safetensors(paths[0])
    if kinds == ["pth"]:
        return from_mapping(pth.read(paths[0]), text)
    return tensorflow.from_dicts(_read_npy_files(paths), text)


def kind_of(path: Path) -> str:
    """`file_formats.kind_of` of a file. Raises CheckpointError: there is none, or it is not a weight file."""
    kind = file_formats.kind_of(path) if path.is_file() else None
    if kind is None:
        problem = "not a weight file" if path.exists() else "no such file"
        raise CheckpointError(f"{path}: {problem}; expected one of {', '.join(WEIGHT_SUFFIXES)}")
    return kind


def _read_npy_files(paths: Sequence[Path]) -> dict[str, Mapping[str, Any]]:
    """The TensorFlow code's dicts by their kind."""
    dicts: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        content = file_formats.read_npy(path)
        kind = tensorflow.kind_of(content)
        if kind is None or kind in dicts:
            problem = f"a second file of {kind}" if kind else "none of the TensorFlow code's dicts"
            raise CheckpointError(f"{path}: {problem}; give one file each of {', '.join(tensorflow.KINDS)}")
        dicts[kind] = content
    return dicts


def from_mapping(mapping: Any, source: str) -> ReferenceWeights:
    """`load_reference_weights` of a loaded mapping; `source` is how error messages begin."""
    state = pytorch.unwrapped(mapping, source) if isinstance(mapping, Mapping) else {}
    if mobile.dialect_of(state):
        return mobile.from_state_dict(state, source)
    if pytorch.backbone_of(state):
        return pytorch.from_state_dict(state, source)
    if isinstance(mapping, Mapping) and mapping.keys() & set(tensorflow.KINDS):
        return tensorflow.from_dicts(mapping, source)
    if isinstance(mapping, Mapping) and tensorflow.kind_of(mapping):
        return tensorflow.from_dicts({tensorflow.kind_of(mapping): mapping}, source)
    if vision_keys.dialect_of(state):
        raise CheckpointError(f"{source}: a vision transformer; mtl_jax.reference_weights.load_network reads it")
    keys = ", ".join(sorted(state)[:5]) if isinstance(mapping, Mapping) else type(mapping).__name__
    raise CheckpointError(
        f"{source}: not the weights of a known network: found {keys or 'nothing'}; expected conv1.weight (resnet25, "
        "imagenet_resnet18), layer1.0.conv3.weight (resnet12_640), _conv_stem.weight (efficientnet_lite0), "
        "features.0.0.weight (mobilenet_v2), blocks.0.norm1.weight (a vision transformer) or block1_conv1 (TensorFlow) "
        "among the keys, with or without a prefix"
    )


def _from_safetensors(path: Path) -> ReferenceWeights:
    arrays, metadata = file_formats.read_safetensors(path)
    trees = named_arrays.nest(arrays)
    if "backbone" not in metadata or "params" not in trees or trees.keys() - set(GROUPS):
        return from_mapping(arrays, str(path))
    if metadata["backbone"] == "vit":
        raise CheckpointError(f"{path}: a vision transformer; mtl_jax.reference_weights.load_network reads it")
    return ReferenceWeights(metadata["backbone"], *(trees.get(group) for group in GROUPS))


def export_pth(weights: ReferenceWeights, path: str | Path) -> None:
    """Writes a `.pth` that MTL's code (resnet25) or RFS' (resnet12_640) loads. `pytorch.to_state_dict` is its content.

    Raises:
      MtlError: PyTorch is not installed.
      CheckpointError: the weights are of another backbone.
    """
    file_formats.write_pth(Path(path), pytorch.to_state_dict(weights))


def export_npy(weights: ReferenceWeights, path: str | Path) -> list[Path]:
    """Writes the TensorFlow code's files OUT-weights.npy, OUT-ss_weights.npy, OUT-fc_weights.npy for `path` OUT.npy.

    Raises:
      CheckpointError: not a resnet12 or resnet18, or with something that these files cannot hold.
    """
    written, stem = [], Path(path).with_suffix("")
    for kind, arrays in tensorflow.to_dicts(weights).items():
        written.append(stem.with_name(f"{stem.name}-{kind}.npy"))
        file_formats.write_npy(written[-1], arrays)
    return written


def export_safetensors(weights: ReferenceWeights, path: str | Path) -> None:
    """Writes all trees as named arrays, such as 'params/stem/conv/kernel', with the backbone's name as metadata."""
    trees = {group: getattr(weights, group) for group in GROUPS if getattr(weights, group)}
    file_formats.write_safetensors(Path(path), named_arrays.flatten(trees), {"backbone": weights.backbone})

"""A trained network as one small file: safetensors with the run's config as its metadata; nothing in it is code.

What evaluation needs and no more: the backbone's parameters with SS and fine-tuned leaves put in, batch norm's
averages, the head. Optimisers, counters and paths of the machine stay behind.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import config
from mtl_jax.config import build
from mtl_jax.errors import CheckpointError
from mtl_jax.evaluation import Model
from mtl_jax.meta import Frozen, backbone_params
from mtl_jax.reference_weights import weight_files
from mtl_jax.workdir import named_arrays

FORMAT = 1


class Kept(NamedTuple):
    """What a file holds: the run's config as JSON has it, the checkpoint's step, [H, W, C] of stored images, model."""

    settings: Mapping[str, Any]
    step: int
    image_shape: tuple[int, int, int]
    model: Model


def write(path: Path, kept: Kept, *, base: Path | None = None, dtype: Any = np.float32) -> None:
    """Writes a network.

    Args:
      path: the file.
      kept: the network.
      base: the file of the network that Φ was learned on, in the same folder: then only Φ and the head are written.
      dtype: of the written arrays. Half precision rounds them; what is read back is float32 again.

    Raises:
      CheckpointError: `base` is given, but more than Φ and the head was learned.
    """
    learned, frozen = kept.model.learned, kept.model.frozen
    if base is None:
        tree = {"params": backbone_params(learned, frozen), "batch_stats": frozen.batch_stats, "head": learned["head"]}
    elif learned.keys() <= {"ss", "head"}:
        tree = learned
    else:
        raise CheckpointError(f"{path}: {', '.join(sorted(learned))} were learned; only Φ can stand on another file")
    settings = json.loads(json.dumps(kept.settings))
    settings["data"].update({"path": "", "cache_dir": ""})
    settings["pretrain"].update({"init": "", "teacher": ""})
    content = {"format": FORMAT, "settings": settings, "step": kept.step, "image_shape": list(kept.image_shape)}
    if base is not None:
        content["base"] = {"file": base.name, "sha256": digest(base)}
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"mtl_jax": json.dumps(content, sort_keys=True)}
    arrays = named_arrays.flatten(jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree))
    weight_files.write_safetensors(path, arrays, metadata)


def is_kept(path: str | Path) -> bool:
    """Whether a file is one that `write` has written."""
    path = Path(path)
    return path.suffix == ".safetensors" and path.is_file() and "mtl_jax" in weight_files.read_safetensors(path)[1]


def read(path: Path) -> Kept:
    """Reads a network that `write` has written.

    Raises:
      CheckpointError: no such file, damaged, or none of this format.
    """
    arrays, metadata = weight_files.read_safetensors(path)
    try:
        content = json.loads(metadata["mtl_jax"])
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads format {FORMAT}")
        settings, shape = config.to_json(config.complete(content["settings"])), tuple(content["image_shape"])
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), named_arrays.nest(arrays))
        learned = {name: tree[name] for name in ("ss", "head") if name in tree}
        frozen = (
            _base(path, content["base"]) if "base" in content else Frozen(tree["params"], tree.get("batch_stats", {}))
        )
        model = Model(build.embedding(settings), learned, frozen)
        return Kept(settings, int(content["step"]), shape, model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a kept network of mtl_jax ({error}); fetch it again") from error


def _base(path: Path, base: Mapping[str, str]) -> Frozen:
    """The network that a file of Φ stands on."""
    file = path.parent / base["file"]
    if not file.exists() or digest(file) != base["sha256"]:
        raise CheckpointError(f"{path}: stands on {file.name}, which is missing beside it or another file; fetch it")
    return read(file).model.frozen


def digest(path: Path) -> str:
    """The SHA-256 of a file: the fingerprint that stands beside a figure."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""A trained network as one small file: safetensors with the run's config as its metadata; nothing in it is code.

What evaluation needs and no more: the backbone's parameters with SS and fine-tuned leaves put in, batch norm's
averages, the head. Optimisers, counters and paths of the machine stay behind.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import build, config, named_arrays, weight_files
from mtl_jax.errors import CheckpointError
from mtl_jax.evaluation import Model
from mtl_jax.meta import Frozen, backbone_params

FORMAT = 1
_FOLDER = "weights"


class Kept(NamedTuple):
    """What a file holds: the run's config as JSON has it, the checkpoint's step, [H, W, C] of stored images, model."""

    settings: Mapping[str, Any]
    step: int
    image_shape: tuple[int, int, int]
    model: Model


def write(path: Path, kept: Kept) -> None:
    """Writes a network."""
    params = backbone_params(kept.model.learned, kept.model.frozen)
    tree = {"params": params, "batch_stats": kept.model.frozen.batch_stats, "head": kept.model.learned["head"]}
    settings = json.loads(json.dumps(kept.settings))
    settings["data"].update({"path": "", "cache_dir": ""})
    settings["pretrain"].update({"init": "", "teacher": ""})
    content = {"format": FORMAT, "settings": settings, "step": kept.step, "image_shape": list(kept.image_shape)}
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"mtl_jax": json.dumps(content, sort_keys=True)}
    weight_files.write_safetensors(path, named_arrays.flatten(jax.tree.map(np.asarray, tree)), metadata)


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
        tree = jax.tree.map(jnp.asarray, named_arrays.nest(arrays))
        frozen = Frozen(tree["params"], tree.get("batch_stats", {}))
        model = Model(build.embedding(settings), {"head": tree["head"]}, frozen)
        return Kept(settings, int(content["step"]), shape, model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a kept network of mtl_jax ({error}); fetch it again") from error


def digest(path: Path) -> str:
    """The SHA-256 of a file: the fingerprint that stands beside a figure."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def packaged(name: str) -> Path:
    """The file of a network that comes with the package.

    Raises:
      CheckpointError: there is none of that name.
    """
    folder = Path(str(resources.files("mtl_jax"))) / _FOLDER
    path = folder / f"{name}.safetensors"
    if not path.exists():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.safetensors"))) or "none"
        raise CheckpointError(f"no network {name!r} comes with the package, expected one of: {there}")
    return path

"""A trained network as one small file: safetensors with the run's config as metadata. Nothing in it can run code.

It holds what evaluation needs: the backbone's parameters with SS and fine-tuned leaves applied, batch norm's averages
and the head. Optimisers, counters and this machine's paths are left out.
"""

import hashlib
import json
import os
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
from mtl_jax.reference_weights import file_formats
from mtl_jax.workdir import named_arrays

FORMAT = 1
_PACKAGED = Path(__file__).parents[1] / "export"


class Kept(NamedTuple):
    """The content of a file.

    settings: the run's config as plain JSON. step: of the checkpoint. image_shape: [H, W, C] of stored images.
    """

    settings: Mapping[str, Any]
    step: int
    image_shape: tuple[int, int, int]
    model: Model


def write(path: Path, kept: Kept, *, base: Path | None = None, dtype: Any = np.float32) -> None:
    """Writes a network; one that was trained elsewhere may come without a head.

    Args:
      path: the file.
      kept: the network.
      base: the file, in the same folder, of the network that Φ was learned on: then only Φ and the head are written.
      dtype: of the arrays in the file. Half precision rounds them; they are read back as float32.

    Raises:
      CheckpointError: `base` is given, but more than Φ and the head was learned.
    """
    learned, frozen = kept.model.learned, kept.model.frozen
    if base is None:
        tree = {"params": backbone_params(learned, frozen), "batch_stats": frozen.batch_stats}
        tree |= {"head": learned["head"]} if "head" in learned else {}
    elif learned.keys() <= {"ss", "head"}:
        tree = learned
    else:
        raise CheckpointError(f"{path}: {', '.join(sorted(learned))} were learned; only Φ can refer to another file")
    settings = json.loads(json.dumps(kept.settings))
    settings["data"].update({"path": "", "cache_dir": ""})
    settings["pretrain"].update({"init": "", "teacher": ""})
    content = {"format": FORMAT, "settings": settings, "step": kept.step, "image_shape": list(kept.image_shape)}
    if base is not None:
        content["base"] = {"file": base.name, "sha256": digest(base)}
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"mtl_jax": json.dumps(content, sort_keys=True)}
    arrays = named_arrays.flatten(jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree))
    file_formats.write_safetensors(path, arrays, metadata)


def is_kept(path: str | Path) -> bool:
    """Whether `write` wrote this file."""
    path = Path(path)
    return path.suffix == ".safetensors" and path.is_file() and "mtl_jax" in file_formats.read_safetensors(path)[1]


def read(path: Path) -> Kept:
    """Reads a network that `write` wrote.

    Raises:
      CheckpointError: the file is missing, damaged, or of another format.
    """
    arrays, metadata = file_formats.read_safetensors(path)
    try:
        content = json.loads(metadata["mtl_jax"])
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads format {FORMAT}")
        settings, shape = config.to_json(config.complete(content["settings"])), tuple(content["image_shape"])
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), named_arrays.nest(arrays))
        learned = {name: tree[name] for name in ("ss", "head") if name in tree}
        if "base" in content:
            frozen = _read_base(path, content["base"])
        else:
            frozen = Frozen(tree["params"], tree.get("batch_stats", {}))
        model = Model(build.embedding(settings), learned, frozen)
        return Kept(settings, int(content["step"]), shape, model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a kept network of mtl_jax ({error}); download it again") from error


def packaged_names() -> list[str]:
    """The names of the networks that come with the package."""
    return sorted(file.stem for file in _PACKAGED.glob("*.safetensors"))


def packaged(name: str) -> Path:
    """The file of a network that comes with the package.

    Raises:
      CheckpointError: there is none of that name.
    """
    if name not in packaged_names():
        known = ", ".join(packaged_names()) or "none"
        raise CheckpointError(f"no bundled network is called {name!r}, expected one of: {known}")
    return packaged_path(name)


def packaged_path(name: str) -> Path:
    """Where the file of a network that comes with the package lies."""
    return _PACKAGED / f"{name}.safetensors"


def init_path(init: str) -> str:
    """The path of what `pretrain.init` names, a workdir or weights: a path, or the name of a network in the package."""
    path = os.path.expanduser(init)
    return str(packaged(init)) if init in packaged_names() and not os.path.exists(path) else path


def _read_base(path: Path, base: Mapping[str, str]) -> Frozen:
    """The frozen network that a file of Φ refers to."""
    file = path.parent / base["file"]
    if not file.exists() or digest(file) != base["sha256"]:
        raise CheckpointError(f"{path}: needs {file.name} beside it, which is missing or another file; fetch it")
    return read(file).model.frozen


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal: the fingerprint given with measured results."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

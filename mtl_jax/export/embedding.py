"""A trained workdir's backbone as a function of images from anywhere: uint8 [B, H, W, C] -> features [B, F]."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax import config
from mtl_jax.config import build, run_data
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.evaluate import network
from mtl_jax.evaluation import Model, embed_all
from mtl_jax.meta import Embed, Frozen, Inner, backbone_params
from mtl_jax.reference_weights import kept_networks
from mtl_jax.types import Params
from mtl_jax.workdir import Workdir, manifest, named_arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
    """What an image's features depend on. It is called with stored images: uint8 [B, *image_shape] -> float32 [B, F].

    settings: the run's config, as JSON has it. params, batch_stats: the backbone's, SS and fine-tuned leaves put in.
    image_shape: [H, W, C] of the images that the run was trained on, as stored (before the crop on device).
    step: that of the meta-training checkpoint; 0 where only the pre-training counts.
    """

    settings: Mapping[str, Any]
    params: Params
    batch_stats: Params
    image_shape: tuple[int, int, int]
    step: int = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of stored images; an image's do not depend on the others."""
        if images.shape[1:] != self.image_shape:
            raise ConfigError(f"images of {list(images.shape[1:])}, the backbone was trained on {self.image_shape}")
        model = Model(self.embed, {}, Frozen(self.params, self.batch_stats))
        padded = _pad(images, self.settings["runtime"]["embed_batch"])
        return np.asarray(embed_all(model, padded, batch=self.settings["runtime"]["embed_batch"]))[: len(images)]

    @functools.cached_property
    def embed(self) -> Embed:
        """The backbone by running averages with its crop and normalisation."""
        return build.embedding(self.settings)._replace(batch_statistics="running")

    @property
    def transform(self) -> Transform:
        """How any image is brought to `image_shape`: as the data set was, and unusual kinds are taken, too."""
        data, (height, _, channels) = self.settings["data"], self.image_shape
        return Transform(height, data["resize"], channels, convert=True)

    @property
    def inner(self) -> Inner:
        """The inner loop of the run's evaluation."""
        return build.protocol(self.settings).inner

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all that the features of an image file depend on: architecture, preparation, every weight."""
        data = {key: self.settings["data"][key] for key in ("resize", "crop", "mean", "std")}
        facts = [self.settings["backbone"], data, self.settings["runtime"]["dtype"], list(self.image_shape)]
        state = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        arrays = named_arrays.flatten({"params": self.params, "batch_stats": self.batch_stats})
        for name in sorted(arrays):
            state.update(f"{name} {manifest.record_array(arrays[name]).digest}\n".encode())
        return state.hexdigest()

    def __deepcopy__(self, memo: Any) -> "Embedding":
        return self  # nothing in it changes; scikit-learn's clone copies parameters deeply

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        return f"Embedding({self.settings['backbone']['name']}, {self.fingerprint[:12]})"


def _pad(images: np.ndarray, batch: int) -> np.ndarray:
    """Zero images up to a power of two where there are fewer than a batch, so that few shapes are compiled."""
    count = len(images)
    missing = 0 if count >= batch else min(batch, 1 << (count - 1).bit_length()) - count
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images


def load(path: str | Path) -> Embedding:
    """The embedding of a workdir's evaluated checkpoint.

    Raises:
      MtlError: no such run; or it was trained under batch statistics, where features depend on the other images.
    """
    place = Workdir(path)
    settings = config.to_json(config.read(place.config))
    if settings["meta"]["batch_norm"] == "batch" and settings["backbone"]["norm"] == "batch":
        raise ConfigError(
            f"{place.config}: meta.batch_norm is 'batch': an image's features depend on the images beside it, so there "
            "is no function of one image; train with meta.batch_norm='running' (and pretrain.batch_norm='train')"
        )
    shape = run_data.image_shape(settings, place)
    step, model = network.trained(settings, place, shape)
    params = jax.tree.map(np.asarray, backbone_params(model.learned, model.frozen))
    stats = jax.tree.map(np.asarray, model.frozen.batch_stats)
    return Embedding(settings, params, stats, shape, step)


def pretrained(name: str) -> Embedding:
    """The embedding of a network that comes with the package. Raises CheckpointError where there is none such."""
    kept = kept_networks.read(packaged(name))
    params, stats = jax.tree.map(np.asarray, tuple(kept.model.frozen))
    return Embedding(kept.settings, params, stats, kept.image_shape, kept.step)


def packaged(name: str) -> Path:
    """The file of a network that comes with the package.

    Raises:
      CheckpointError: there is none of that name.
    """
    folder = Path(__file__).parent
    path = folder / f"{name}.safetensors"
    if not path.exists():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.safetensors"))) or "none"
        raise CheckpointError(f"no network {name!r} comes with the package, expected one of: {there}")
    return path

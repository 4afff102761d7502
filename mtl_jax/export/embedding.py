"""The backbone of a run, or of a network in this package, as a function of images: uint8 [B, H, W, C] -> [B, F]."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax import config
from mtl_jax.config import build, own_backbone, run_data
from mtl_jax.data import transforms
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.evaluate import network
from mtl_jax.learners import BaseLearner
from mtl_jax.meta import Embed, backbone_params
from mtl_jax.reference_weights import Network, kept_networks, load_network, networks
from mtl_jax.types import Params
from mtl_jax.words import nearest
from mtl_jax.workdir import Workdir, manifest


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
    """A function of stored images: uint8 [B, *image_shape] -> features, float32 [B, F].

    An image's features do not depend on the other images.

    settings: the run's config as plain JSON.
    params, batch_stats: of the backbone, with scale and shift and fine-tuned leaves applied.
    image_shape: [H, W, C] of the run's images as stored, before the crop on the device.
    step: of the meta-training checkpoint; 0 if the run was not meta-trained.
    head: what the base-learner of the run has learned.
    name: of a network of the package; '' for others.
    """

    settings: Mapping[str, Any]
    params: Params
    batch_stats: Params
    image_shape: tuple[int, int, int]
    step: int = 0
    head: Params = dataclasses.field(default_factory=dict)
    name: str = ""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of stored images. Raises ConfigError for another image shape."""
        if images.shape[1:] != self.image_shape:
            raise ConfigError(f"images of {list(images.shape[1:])}, the backbone was trained on {self.image_shape}")
        return networks.features(
            self.embed, self.params, self.batch_stats, images, self.settings["runtime"]["embed_batch"]
        )

    @functools.cached_property
    def embed(self) -> Embed:
        """The backbone with its crop and normalisation; its batch norm uses running averages."""
        return build.embedding(self.settings)._replace(batch_statistics="running")

    @property
    def transform(self) -> Transform:
        """How an image of any size and mode is prepared: as the run's data set was."""
        return transforms.of_network(self.settings["data"], self.image_shape)

    @property
    def inner(self) -> BaseLearner:
        """The base-learner of the run's evaluation."""
        return build.protocol(self.settings).inner

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of everything that an image's features depend on: architecture, image preparation, all weights."""
        data = {key: self.settings["data"][key] for key in ("resize", "crop", "mean", "std")}
        if self.transform.interpolation != "bilinear":  # there was no choice once, and fingerprints are to stay
            data["interpolation"] = self.transform.interpolation
        facts = [self.settings["backbone"], data, self.settings["runtime"]["dtype"], list(self.image_shape)]
        return manifest.fingerprint(facts, self.params, self.batch_stats)

    def __deepcopy__(self, memo: Any) -> "Embedding":
        return self  # immutable; scikit-learn's clone deep-copies parameters

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        return f"Embedding({self.settings['backbone']['name']}, {self.fingerprint[:12]})"


def load(path: str | Path) -> Embedding:
    """The embedding of a run, from the checkpoint that its evaluation uses.

    Raises:
      MtlError: no such run; or its batch norm uses batch statistics, so that features depend on the other images.
    """
    workdir = Workdir(path)
    settings = config.to_json(config.read(workdir.config))
    _check_inductive(settings, workdir.config)
    shape = run_data.image_shape(settings, workdir)
    step, model = network.trained(settings, workdir, shape)
    params = jax.tree.map(np.asarray, backbone_params(model.learned, model.frozen))
    stats = jax.tree.map(np.asarray, model.frozen.batch_stats)
    return Embedding(settings, params, stats, shape, step, jax.tree.map(np.asarray, model.learned.get("head", {})))


def _check_inductive(settings: Mapping[str, Any], place: Path) -> None:
    if settings["meta"]["batch_norm"] == "batch" and settings["backbone"]["norm"] == "batch":
        raise ConfigError(
            f"{place}: meta.batch_norm is 'batch': an image's features depend on the images beside it, so no function "
            "of one image gives them; train with meta.batch_norm='running' (and pretrain.batch_norm='train')"
        )


def pretrained(name: str) -> Embedding:
    """The embedding of a bundled network. Raises CheckpointError if there is none of that name."""
    return dataclasses.replace(_of_kept(kept_networks.packaged(name)), name=name)


def named(name: str | Path) -> Embedding | Network:
    """The network of a name: of one in the package, a weight file that `load_network` reads, or 'hf-hub:owner/name'.

    Raises:
      CheckpointError: there is none of that name, or the file cannot be read.
    """
    if str(name) in kept_networks.packaged_names():
        return pretrained(str(name))
    if str(name).startswith(own_backbone.HUB) or Path(name).exists():
        return _of_kept(Path(name)) if kept_networks.is_kept(name) else load_network(name)
    names = kept_networks.packaged_names()
    raise CheckpointError(
        f"no bundled network is called {str(name)!r}{nearest(str(name), names)}, and there is no such file; give "
        f"{', '.join(names)}, a weight file, or {own_backbone.HUB}OWNER/NAME"
    )


def of_place(path: str | Path) -> Embedding | Network:
    """`load` of a workdir's path, `named` of anything else."""
    return load(path) if (Path(path) / "config.json").exists() and not networks.in_folder(Path(path)) else named(path)


def _of_kept(path: Path) -> Embedding:
    kept = kept_networks.read(path)
    _check_inductive(kept.settings, path)
    params, stats = jax.tree.map(np.asarray, tuple(kept.model.frozen))
    return Embedding(kept.settings, params, stats, kept.image_shape, kept.step)

"""The teacher of self-distillation: the pre-trained network of another run, with its classifier."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mtl_jax import config, pretrain
from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.errors import ConfigError
from mtl_jax.types import Array, Params
from mtl_jax.workdir import Workdir, manifest
from mtl_jax.workdir.checkpoint import Checkpoints, Restored
from mtl_jax.workdir.manifest import Manifest


def checkpoints(settings: Mapping[str, Any]) -> Checkpoints:
    """The checkpoints of `pretrain.teacher`, a workdir."""
    return Checkpoints(Workdir(os.path.expanduser(settings["pretrain"]["teacher"])).checkpoints("pretrain"))


def manifest_of(settings: Mapping[str, Any]) -> Manifest | None:
    """What the newest checkpoint of `pretrain.teacher` is; None where a run has no teacher or no pre-training.

    Raises:
      ConfigError: it has no checkpoint of pre-training.
    """
    path = settings["pretrain"]["teacher"]
    if not path or settings["pretrain"]["init"]:
        return None
    saved = checkpoints(settings)
    if not saved.steps():
        raise ConfigError(
            f"config.pretrain.teacher is {path!r}, which has no checkpoint of pre-training in {saved.directory}; give "
            "the workdir of a run that was pre-trained there"
        )
    return manifest.read(saved.directory / str(saved.steps()[-1]))


def check(settings: Mapping[str, Any], dataset: Dataset) -> None:
    """Whether `pretrain.teacher`, where it is set, can teach a run on a data set. Reads no weights.

    Raises:
      ConfigError: it was not pre-trained, or on other images or other views of them; or it has no running averages.
    """
    path, found = settings["pretrain"]["teacher"], manifest_of(settings)
    if found is None:
        return
    theirs = config.complete(found.metadata["config"])
    for what, then, now in _images(found, theirs.data, settings["data"], dataset):
        if then != now:
            raise ConfigError(
                f"config.pretrain.teacher is {path!r}, whose {what} is {then}, but this run's is {now}; a teacher must "
                "have been trained on the same images, brought to the same size and scale"
            )
    if theirs.pretrain.batch_norm == "batch" and theirs.backbone.norm == "batch":
        raise ConfigError(
            f"config.pretrain.teacher is {path!r}, whose pretrain.batch_norm is 'batch': it has no running averages; "
            "give one that was trained with 'train'"
        )


def _images(found: Manifest, theirs: Any, own: Any, dataset: Dataset) -> Iterator[tuple[str, Any, Any]]:
    """What both networks' images must have in common: its name, the teacher's value and the run's."""
    train = dataset.splits["train"]
    yield "number of classes", found.arrays["params"]["classifier/output/bias"].shape[0], len(train.class_names)
    stored = np.empty((0, *found.metadata.get("image_shape", train.images.shape[1:])))
    yield "image size", build.image_shape(theirs, stored), build.image_shape(own, train.images)
    yield "fingerprint of images", found.metadata["data"][:12], dataset.fingerprint[:12]
    for name in ("mean", "std"):
        yield f"data.{name}", tuple(theirs[name]), tuple(own[name])


def network(found: Restored, dtype: str) -> tuple[Params, Callable[[Params, Array], Array]]:
    """The network of a checkpoint of pre-training as a teacher.

    Returns:
      (its variables, (variables, normalised images [B, H, W, C]) -> logits [B, classes] by running averages, computed
      in `dtype`).
    """
    settings, items = config.complete(found.metadata["config"]), found.items.get("average", found.items)
    params = items["params"]
    module = build.backbone(settings.backbone, dtype)
    classifier = pretrain.Classifier(params["classifier"]["output"]["bias"].shape[0], settings.pretrain.hidden)
    backbone = {"params": params["backbone"], "batch_stats": items.get("batch_stats", {})}

    def logits(variables: Params, images: Array) -> Array:
        features = module.apply(variables["backbone"], images, batch_statistics="running")
        return classifier.apply({"params": variables["classifier"]}, features)

    return {"backbone": backbone, "classifier": params["classifier"]}, logits

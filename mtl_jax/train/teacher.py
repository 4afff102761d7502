"""The teacher of self-distillation: the pre-trained network of another run, with its classifier."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from flax import linen as nn

from mtl_jax import pretrain
from mtl_jax.config import build, complete
from mtl_jax.config.recipe import PretrainRecipe, Teacher, image_shape
from mtl_jax.data import Dataset
from mtl_jax.embed import mode_options
from mtl_jax.errors import ConfigError
from mtl_jax.types import Array, Params
from mtl_jax.workdir import Workdir, manifest
from mtl_jax.workdir.checkpoint import Checkpoints, Restored
from mtl_jax.workdir.manifest import Manifest


def load(teacher: Teacher) -> tuple[Params, pretrain.Distillation]:
    """The variables of a teacher, and what it adds to the loss."""
    variables, logits = network(checkpoints(teacher).selected(teacher.select), teacher.dtype)
    return variables, pretrain.Distillation(logits, teacher.weight, teacher.temperature)


def checkpoints(teacher: Teacher) -> Checkpoints:
    """The teacher's checkpoints of pre-training."""
    return Checkpoints(Workdir(os.path.expanduser(teacher.path)).checkpoints("pretrain"))


def newest_manifest(teacher: Teacher) -> Manifest:
    """What the teacher's newest checkpoint is.

    Raises:
      ConfigError: it has no checkpoint of pre-training.
    """
    saved = checkpoints(teacher)
    if not saved.steps():
        raise ConfigError(
            f"config.pretrain.teacher is {teacher.path!r}, which has no pre-training checkpoint in "
            f"{saved.directory}; give the workdir of a pre-trained run"
        )
    return manifest.read(saved.directory / str(saved.steps()[-1]))


def check(recipe: PretrainRecipe, dataset: Dataset) -> None:
    """Whether the recipe's teacher can teach a run on a data set. Reads no weights.

    Raises:
      ConfigError: it was not pre-trained, or on other images or other views of them; or it has no running averages.
    """
    saved, path = newest_manifest(recipe.teacher), recipe.teacher.path
    theirs = build.pretraining(complete(saved.metadata["config"]))
    for what, then, now in _compared(saved, theirs, recipe, dataset):
        if then != now:
            raise ConfigError(
                f"config.pretrain.teacher is {path!r}, whose {what} is {then}, but this run's is {now}; a teacher must "
                "have been trained on the same images, resized and normalised the same way"
            )
    if theirs.options.batch_statistics == "batch" and _may_have_batch_norm(theirs.embed.module):
        raise ConfigError(
            f"config.pretrain.teacher is {path!r}, whose pretrain.batch_norm is 'batch': it has no running averages; "
            "give one that was trained with 'train'"
        )


def _may_have_batch_norm(backbone: nn.Module) -> bool:
    """A custom backbone does not say what its norm is."""
    return not hasattr(backbone, "options") or backbone.options.norm == "batch"


def _compared(
    saved: Manifest, theirs: PretrainRecipe, own: PretrainRecipe, dataset: Dataset
) -> Iterator[tuple[str, Any, Any]]:
    """What both networks' images must have in common: its name, the teacher's value and the run's."""
    train = dataset.splits["train"]
    yield "number of classes", saved.arrays["params"]["classifier/output/bias"].shape[0], len(train.class_names)
    shape = train.images.shape[1:]
    prepares, stored = (theirs.embed.prepare, own.embed.prepare), (saved.metadata.get("image_shape", shape), shape)
    yield "image size", *map(image_shape, prepares, stored)
    yield "fingerprint of images", saved.metadata["data"][:12], dataset.fingerprint[:12]
    for name in ("mean", "std"):
        yield f"data.{name}", *(getattr(prepare, name) for prepare in prepares)


def network(saved: Restored, dtype: str) -> tuple[Params, Callable[[Params, Array], Array]]:
    """The network of a checkpoint of pre-training as a teacher.

    Returns:
      (its variables, (variables, normalised images [B, H, W, C]) -> logits [B, classes] by running averages, computed
      in `dtype`).
    """
    theirs = build.pretraining(complete(saved.metadata["config"]), dtype)
    items = saved.items.get("average", saved.items)
    params = items["params"]
    classifier = pretrain.Classifier(params["classifier"]["output"]["bias"].shape[0], theirs.hidden)
    backbone = {"params": params["backbone"], "batch_stats": items.get("batch_stats", {})}

    def logits(variables: Params, images: Array) -> Array:
        options = mode_options(theirs.embed.module, "running")
        features = theirs.embed.module.apply(variables["backbone"], images, **options)
        return classifier.apply({"params": variables["classifier"]}, features)

    return {"backbone": backbone, "classifier": params["classifier"]}, logits

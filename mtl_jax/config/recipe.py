"""A run as plain values. `build.recipe` makes a `Recipe` from a config; Python code can make one itself.

Training never reads the config: each phase takes its part of a `Recipe` and splits of images.
"""

import typing
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax import augment, scale_shift
from mtl_jax.data import Split
from mtl_jax.embed import Embed, Preparation
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation import Protocol
from mtl_jax.learners import BaseLearner
from mtl_jax.meta import Loss, episode_loss
from mtl_jax.types import Array, Params


class Keys(NamedTuple):
    """The streams of random numbers of a run, a key each. A field's position is part of its key: append new ones."""

    backbone: Array
    head: Array
    order: Array
    augment: Array
    tasks: Array
    hard_tasks: Array

    @classmethod
    def from_seed(cls, seed: int) -> "Keys":
        """The streams of a seed."""
        return cls(*(jax.random.fold_in(jax.random.key(seed), number) for number in range(len(cls._fields))))


class Augment(typing.Protocol):
    """Any function (keys [B], uint8 images [B, H, W, C]) -> what the backbone sees."""

    def __call__(self, keys: Array, images: Array, /) -> Array:
        """One batch."""


class Prepare(NamedTuple):
    """What is done to uint8 images before the backbone, without augmentation: centre crop, normalisation.

    A value, not a closure, so that equal ones share what is compiled for them.
    """

    crop: int = 0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __call__(self, images: Array) -> Array:
        """uint8 [..., H, W, C] -> float32 [..., crop, crop, C]; a crop of 0 keeps the size."""
        return augment.normalize(augment.center_crop(images, self.crop), mean=self.mean, std=self.std)


class Augmentation(NamedTuple):
    """Pre-training's random view of an image; the fields are as in the config's `pretrain.augment`."""

    prepare: Prepare = Prepare()
    shift: int = 0
    pad: str = "edge"
    jitter: float = 0.0
    flip: bool = False
    resized_crop: int = 0
    resized_crop_scale: tuple[float, float] = (0.08, 1.0)

    def __call__(self, keys: Array, images: Array) -> Array:
        """(keys [B], uint8 [B, H, W, C]) -> normalised float32 [B, H, W, C].

        In the PyTorch reference's order: random resized crop, (shift, jitter,) centre crop, flip.
        """
        crop_key, shift_key, flip_key = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        if self.resized_crop:
            images = augment.random_resized_crop(crop_key, images, self.resized_crop, scale=self.resized_crop_scale)
        images = augment.random_shift(shift_key, images, self.shift, self.pad)
        # Keys 0 to 2 are split off above; 3 was mixup's, and stays unused so that runs keep their bytes.
        images = augment.color_jitter(jax.vmap(jax.random.fold_in, (0, None))(keys, 4), images, self.jitter)
        images = augment.center_crop(images, self.prepare.crop)
        if self.flip:
            images = augment.random_flip(flip_key, images)
        return augment.normalize(images, mean=self.prepare.mean, std=self.prepare.std)


def image_shape(prepare: Preparation, stored: Sequence[int]) -> tuple[int, ...]:
    """The backbone's input shape [H, W, C] for stored uint8 images [H, W, C]. Computes nothing."""
    # By a function, since JAX cannot hold a weak reference to a tuple.
    return jax.eval_shape(lambda images: prepare(images), jax.ShapeDtypeStruct((1, *stored), jnp.uint8)).shape[1:]


class Intervals(NamedTuple):
    """How long a phase is and what happens how often, in optimiser steps.

    steps: of the whole phase. per_dispatch: steps in one call of the device (1 on CPUs); all others are multiples of
    it. log_every, checkpoint_every, val_every: 0 for no validation. skip: steps that may be left out because a loss or
    gradient is not finite; one more stops the run.
    """

    steps: int
    per_dispatch: int = 1
    log_every: int = 20
    checkpoint_every: int = 500
    val_every: int = 0
    skip: int = 0


class Limits(NamedTuple):
    """Sizes that bound memory use.

    device_bytes: a split of up to so many bytes lives on every device whole, a larger one on the host. embed_batch:
    images embedded at once in validation. task_chunk: tasks adapted at once in validation.
    """

    device_bytes: float = 2e9
    embed_batch: int = 256
    task_chunk: int = 1000

    def on_device(self, split: Split) -> bool:
        """Whether a split lives on every device whole."""
        return split.images.nbytes <= self.device_bytes


class Learned(NamedTuple):
    """What meta-training learns; the fields are as in the config's `meta`.

    learn: 'ss', 'weights' or 'head'. blocks: 'all' or 'last'. per, scale, shift: see `scale_shift.init`. norm_affine:
    whether batch norm's scales and offsets are learned as well.
    """

    learn: str = "ss"
    blocks: str = "all"
    scale: str = "all"
    shift: str = "bias"
    norm_affine: bool = False
    per: str = "pair"

    def start(self, inner: BaseLearner, key: Array, params: Params, features: int) -> Params:
        """The learned groups at their start: 'head', of a base-learner, and 'ss' or 'params', of a backbone's `params`.

        `features` is F.
        """
        groups: Params = {"head": inner.init(key, features)}
        blocks = None if self.blocks == "all" else [scale_shift.last_block(params)]
        own = {name: params[name] for name in blocks or params}
        if self.learn == "ss":
            groups["ss"] = scale_shift.init(params, per=self.per, scale=self.scale, shift=self.shift, blocks=blocks)
        if self.learn == "weights":
            groups["params"] = own
        elif self.norm_affine:
            groups["params"] = norm_affine(own)
        return groups


def norm_affine(params: Params) -> Params:
    """The part of a backbone's parameters that is batch norm's scales and offsets."""
    part = {}
    for name, tree in params.items():
        if not isinstance(tree, Mapping) or "kernel" in tree:
            continue
        is_norm = not any(isinstance(leaf, Mapping) for leaf in tree.values())
        inside = tree if is_norm else norm_affine(tree)
        if inside:
            part[name] = inside
    return part


class Batches(NamedTuple):
    """How pre-training cuts epochs into batches.

    size: images of a batch, on all devices. drop_last: leave out an epoch's last, partial batch. shuffle: 'epoch' for
    a new order every epoch, 'once' for the same order in all.
    """

    size: int = 64
    drop_last: bool = True
    shuffle: str = "epoch"


class PretrainOptions(NamedTuple):
    """Options of `pretrain.train_step`, explained there and in `pretrain.classification_loss`."""

    batch_statistics: str = "train"
    label_smoothing: float = 0.0
    rotation: float = 0.0
    rotation_views: str = "all"
    rotation_head: str = "features"
    dropblock_ramp: int = 0
    average: float = 0.0


class Teacher(NamedTuple):
    """The pre-trained network of another run, from which pre-training learns as well.

    path: that run's workdir. select: 'best' or 'last' checkpoint. weight, temperature: see `pretrain.Distillation`.
    dtype: of its computation.
    """

    path: str
    select: str = "best"
    weight: float = 0.5
    temperature: float = 4.0
    dtype: str = "float32"


class PretrainRecipe(NamedTuple):
    """The first phase: classification of all base classes.

    embed: the backbone, and how validation runs it. optimizer: of all parameters. keys: the run's random streams.
    augment: (keys [B], uint8 images [B, H, W, C]) -> what the backbone sees. hidden: units of the
    classifier's hidden layer, 0 for none. classifier_init: 'uniform' or 'xavier'. validation: few-shot tasks with an
    untrained base-learner, or None.
    """

    embed: Embed
    optimizer: optax.GradientTransformation
    keys: Keys
    intervals: Intervals
    batches: Batches = Batches()
    augment: Augment = Augmentation()
    hidden: int = 0
    classifier_init: str = "uniform"
    options: PretrainOptions = PretrainOptions()
    teacher: Teacher | None = None
    validation: Protocol | None = None
    limits: Limits = Limits()


class TaskSizes(NamedTuple):
    """N, K and Q per class of training's tasks."""

    way: int
    shot: int
    query: int


class HardTasks(NamedTuple):
    """round: steps whose failure classes are pooled. extra: tasks drawn from the pool after each round."""

    round: int = 10
    extra: int = 8


class MetaRecipe(NamedTuple):
    """Meta-training: updates the parameters in `learned` over tasks; all others stay frozen.

    embed: the backbone in meta-training's mode of batch norm. inner: the base-learner. optimizer: of `learned`.
    keys: the run's random streams. tasks: their sizes. tasks_per_step: tasks of a meta-batch, on all devices. chunk:
    tasks of a device whose activations are in memory at once, 0 for all. hard_tasks, validation: None for none. loss:
    see `meta.train_step`.
    """

    embed: Embed
    inner: BaseLearner
    optimizer: optax.GradientTransformation
    keys: Keys
    intervals: Intervals
    learned: Learned
    tasks: TaskSizes
    tasks_per_step: int = 4
    chunk: int = 0
    hard_tasks: HardTasks | None = None
    validation: Protocol | None = None
    limits: Limits = Limits()
    loss: Loss = episode_loss


class Recipe(NamedTuple):
    """A run.

    tasks: what every train split must be able to give. pretraining: None where the backbone comes from elsewhere.
    meta_training: None where nothing is meta-learned.
    """

    tasks: TaskSizes
    pretraining: PretrainRecipe | None
    meta_training: MetaRecipe | None


def check(recipe: PretrainRecipe | MetaRecipe, devices: int) -> None:
    """Whether a phase's sizes divide each other, so that no image, task or step is left out.

    Raises:
      ConfigError: names what does not.
    """
    every = recipe.intervals
    sizes = [(f"intervals.{name}", getattr(every, name), every.per_dispatch) for name in every._fields[:-1]]
    if isinstance(recipe, PretrainRecipe):
        sizes.append(("batches.size", recipe.batches.size, devices))
    else:
        sizes.append(("tasks_per_step", recipe.tasks_per_step, devices))
        if recipe.hard_tasks:
            sizes.append(("hard_tasks.round", recipe.hard_tasks.round, every.per_dispatch))
            sizes.append(("hard_tasks.extra", recipe.hard_tasks.extra, recipe.tasks_per_step))
    for name, size, unit in sizes:
        if size % unit:
            raise ConfigError(f"{name} of the recipe is {size}, expected a multiple of {unit}")

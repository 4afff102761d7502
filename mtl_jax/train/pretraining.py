"""The first phase, pre-training: its start, its step, its batches, its validation. Begin at `phase`.

It classifies the images of all base classes; its classifier is thrown away afterwards.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import parallel, pretrain
from mtl_jax.config.recipe import PretrainRecipe, check, image_shape
from mtl_jax.data import Split
from mtl_jax.data.prefetch import Ahead
from mtl_jax.embed import feature_width
from mtl_jax.episodes import numbered_keys
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import network
from mtl_jax.evaluation import Model
from mtl_jax.learners import with_way
from mtl_jax.meta import Frozen
from mtl_jax.pretrain import PretrainState
from mtl_jax.train import teacher
from mtl_jax.train.loop import Dispatcher, Phase, Watch, score, state_items, watched
from mtl_jax.types import Array
from mtl_jax.words import counted
from mtl_jax.workdir.health import Chance

Devices = Sequence[jax.Device]
_ITEMS = ("params", "batch_stats", "opt_state", "average")  # of a checkpoint; a teacher has its own


def phase(recipe: PretrainRecipe, splits: Mapping[str, Split], devices: Devices, watch: Watch | None = None) -> Phase:
    """Pre-training as a phase of the loop.

    Args:
      recipe: the phase.
      splits: 'train', and 'val' where it is validated.
      devices: those of the run.
      watch: called before every call of the device.

    Raises:
      ConfigError: the images, or the last batch of an epoch, do not fit the recipe; or see `recipe.check`.
    """
    check(recipe, len(devices))
    train = splits["train"]
    parts = make_parts(recipe, train, parallel.AXIS if len(devices) > 1 else None)
    state = parallel.replicate(parts.init(recipe.keys.backbone), devices)
    dispatch = dispatcher(recipe, train, devices, parts.step)

    def restore(items: Mapping[str, Any], step: int) -> PretrainState:
        return parallel.replicate(PretrainState(jnp.int32(step), **items, teacher=state.teacher), devices)

    return Phase(
        "pretrain", state=state, dispatch=watched(dispatch.run, watch), close=dispatch.close,
        items=functools.partial(state_items, names=_ITEMS), restore=restore,
        validate=_validation(recipe, splits, devices), unit="images", per_step=recipe.batches.size,
        head=lambda items: items["params"]["classifier"], chance=_chance(recipe, train),
        **recipe.intervals._asdict(),
    )  # fmt: skip


# The start and the step.


class Parts(NamedTuple):
    """init: key -> the state before the first step. step: `pretrain.train_step` with all its options."""

    init: Callable[[Array], PretrainState]
    step: Callable[..., tuple[PretrainState, dict[str, Array]]]


def make_parts(recipe: PretrainRecipe, train: Split, axis: str | None = None) -> Parts:
    """The parts for a train split; `axis` is the mapped axis that batches are spread over, if any.

    Raises:
      ConfigError: images are to be turned, but are not square.
    """
    options, shape = recipe.options, image_shape(recipe.embed.prepare, train.images.shape[1:])
    if options.rotation and shape[0] != shape[1]:
        raise ConfigError(
            f"config.pretrain.rotation is {options.rotation}, but images are {shape[0]} x {shape[1]} pixels; turning "
            "them needs squares: set data.image_size, or rotation to 0"
        )
    backbone = recipe.embed.module
    if axis and hasattr(backbone, "options"):  # batch norm by the statistics of all devices' images
        backbone = backbone.clone(options=dataclasses.replace(backbone.options, axis_name=axis))
    classifier = pretrain.Classifier(len(train.class_names), recipe.hidden, uniform=recipe.classifier_init == "uniform")
    variables, distillation = teacher.load(recipe.teacher) if recipe.teacher else (None, None)
    shared = {"backbone": backbone, "classifier": classifier, "optimizer": recipe.optimizer}
    init = functools.partial(
        pretrain.init_state, **shared, image_shape=shape, rotation=options.rotation > 0,
        rotation_head=options.rotation_head, teacher=variables, average=options.average > 0,
    )  # fmt: skip
    step = functools.partial(pretrain.train_step, **shared, **options._asdict(), distillation=distillation)
    return Parts(init, step)


# Its batches: which images a step sees, and what it makes of them.


class Epochs(NamedTuple):
    """How a split is cut into batches.

    count: images. batch, rest: the size of a batch and of an epoch's last one, 0 where there is no such. order: of the
    images in an epoch, int32 [count].
    """

    count: int  # type: ignore[assignment]  # hides what a tuple has of that name
    batch: int
    rest: int
    order: Callable[[int], np.ndarray]

    def steps(self) -> int:
        """Steps of an epoch."""
        return max(1, self.count // self.batch + bool(self.rest))

    def size(self, step: int) -> int:
        """The size of the batch of a step."""
        return self.rest if self.rest and step % self.steps() == self.steps() - 1 else self.batch

    def padded(self, epoch: int) -> np.ndarray:
        """The order, cut to whole batches, or repeated to one where images are fewer than a batch."""
        return np.resize(self.order(epoch), self.steps() * self.batch)

    def rows(self, step: int) -> np.ndarray:
        """The images of a step."""
        epoch, position = divmod(step, self.steps())
        return self.padded(epoch)[position * self.batch :][: self.size(step)]


def cut(recipe: PretrainRecipe, count: int, devices: int) -> Epochs:
    """How `count` images are cut into batches.

    Raises:
      ConfigError: an epoch's last, partial batch cannot be spread over so many devices.
    """
    size, drop_last, shuffle = recipe.batches

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.asarray(pretrain.epoch_order(recipe.keys.order, 0 if shuffle == "once" else epoch, count))

    rest = 0 if drop_last or count < size else count % size
    if rest and (recipe.intervals.per_dispatch > 1 or rest % devices):
        raise ConfigError(
            f"config.pretrain.drop_last is false, but an epoch's last batch of {counted(rest, 'image')} cannot be "
            f"spread over {counted(devices, 'device')} or be part of a dispatch of several steps; set it to true, or "
            "change pretrain.batch_size, runtime.devices or runtime.steps_per_dispatch"
        )
    return Epochs(count, size, rest, order)


View = Callable[[Array, Array, Array, Array], tuple[Array, Array, Array]]
"""(step [], device's number [], images [B, ...], labels [B]) -> (augmented images, labels, key of dropout)."""


def viewer(recipe: PretrainRecipe, key: Array) -> View:
    """The augmentation of a step's images; `key` is the stream of augmentation."""

    def view(step: Array, number: Array, images: Array, labels: Array) -> tuple[Array, Array, Array]:
        each, step_key = len(images), jax.random.fold_in(key, step)
        image_keys = numbered_keys(step_key, number * each + jnp.arange(each))
        views = recipe.augment(image_keys, images)
        return views, labels, jax.random.fold_in(step_key, recipe.batches.size + number)

    return view


def dispatcher(recipe: PretrainRecipe, train: Split, devices: Devices, step: Callable[..., Any]) -> Dispatcher:
    """The loop's dispatch: steps on batches in the order of epochs. `step` is that of `Parts`.

    Raises:
      ConfigError: see `cut`.
    """
    epochs = cut(recipe, len(train.labels), len(devices))

    def learn(
        number: Array, axis: str | None, state: PretrainState, images: Array, labels: Array, key: Array
    ) -> tuple[PretrainState, dict[str, Array]]:
        view = viewer(recipe, key)
        return step(state, *view(state.step, number, images, labels), axis_name=axis)

    run = _from_devices if recipe.limits.on_device(train) else _from_host
    return run(recipe, train, devices, epochs, learn)


def _compile(
    step: Callable[..., Any], devices: Devices, epochs: Epochs, **options: int
) -> dict[int, parallel.Step]:  # fmt: skip
    """`step(size, ...)` compiled for each size that a batch of an epoch has; options of `parallel.compile_step`."""
    sizes = {epochs.batch, epochs.rest or epochs.batch}
    return {size: parallel.compile_step(functools.partial(step, size), devices, **options) for size in sizes}


def _from_devices(
    recipe: PretrainRecipe, train: Split, devices: Devices, epochs: Epochs, learn: Callable[..., Any]
) -> Dispatcher:
    """Batches of a split that lies on every device whole."""
    repeat = recipe.intervals.per_dispatch

    def step(
        size: int, number: Array, axis: str | None, state: PretrainState,
        images: Array, labels: Array, order: Array, first: Array, key: Array,
    ) -> tuple[PretrainState, dict[str, Array]]:  # fmt: skip
        each = size // len(devices)
        position = (state.step - first) * epochs.batch + number * each
        rows = jax.lax.dynamic_slice(order, (position,), (each,))
        return learn(number, axis, state, images[rows], labels[rows], key)

    compiled = _compile(step, devices, epochs, arguments=5, repeat=repeat)
    images, labels, key = parallel.replicate((train.images, train.labels, recipe.keys.augment), devices)
    # A dispatch that starts at an epoch's last step reaches the furthest.
    spanned = 1 + -(-(repeat - 1) // epochs.steps())

    @functools.lru_cache(maxsize=1)
    def orders(epoch: int) -> tuple[Array, Array]:
        joined = np.concatenate([epochs.padded(number) for number in range(epoch, epoch + spanned)])
        return parallel.replicate((joined, np.int32(epoch * epochs.steps())), devices)

    def run(state: PretrainState, first: int) -> tuple[PretrainState, dict[str, Array]]:
        return compiled[epochs.size(first)](state, images, labels, *orders(first // epochs.steps()), key)

    return Dispatcher(run, lambda: None)


def _from_host(
    recipe: PretrainRecipe, train: Split, devices: Devices, epochs: Epochs, learn: Callable[..., Any]
) -> Dispatcher:
    """Batches of a split that stays on the host: gathered while earlier steps run."""
    repeat, own = recipe.intervals.per_dispatch, parallel.own_numbers(devices)

    def step(
        size: int, number: Array, axis: str | None, state: PretrainState,
        key: Array, first: Array, images: Array, labels: Array,
    ) -> tuple[PretrainState, dict[str, Array]]:  # fmt: skip
        return learn(number, axis, state, images[state.step - first], labels[state.step - first], key)

    compiled = _compile(step, devices, epochs, arguments=4, apart=2, repeat=repeat)
    key = parallel.replicate(recipe.keys.augment, devices)

    def batches(start: int) -> Iterator[np.ndarray]:
        # [own devices, steps of the dispatch, images of a device]
        for first in range(start, recipe.intervals.steps, repeat):
            rows = np.stack([epochs.rows(first + i) for i in range(repeat)])
            yield rows.reshape(repeat, len(devices), -1).swapaxes(0, 1)[own]

    ahead = Ahead(train.images, batches, steps=repeat)

    def run(state: PretrainState, first: int) -> tuple[PretrainState, dict[str, Array]]:
        rows, images = ahead.get(first)
        placed = parallel.spread((images, train.labels[rows]), devices)
        return compiled[epochs.size(first)](state, key, np.int32(first), *placed)

    return Dispatcher(run, ahead.close)


def _chance(recipe: PretrainRecipe, train: Split) -> Chance:
    """What guessing gives. Without validation tasks nothing is asked of them."""
    return Chance(1 / len(train.class_names), 1 / recipe.validation.way if recipe.validation else 0)


# Its validation: few-shot tasks of classes that it has not seen, by a fresh head on the backbone's features.


def _validation(
    recipe: PretrainRecipe, splits: Mapping[str, Split], devices: Devices
) -> Callable[[PretrainState], tuple[float, dict[str, float]]] | None:
    if not recipe.validation or "val" not in splits:
        return None
    val = splits["val"]

    def validate(state: PretrainState) -> tuple[float, dict[str, float]]:
        params, batch_stats = network.backbone_of(parallel.local(state._asdict()))
        features = feature_width(recipe.embed, params, batch_stats, val.images.shape[1:])
        head = with_way(recipe.validation.inner, recipe.validation.way).init(recipe.keys.head, features)
        model = Model(recipe.embed, {"head": head}, Frozen(params, batch_stats))
        return score(model, val, recipe.validation, recipe.limits, devices)

    return validate

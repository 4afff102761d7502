"""What the loop calls in pre-training: steps on batches that follow an epoch's order, from the devices or the host."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import augment, parallel, pretrain
from mtl_jax.config import build
from mtl_jax.data import Split
from mtl_jax.data.prefetch import Ahead
from mtl_jax.episodes import numbered_keys
from mtl_jax.errors import ConfigError
from mtl_jax.train.meta_dispatch import Dispatcher
from mtl_jax.types import Array


class Epochs(NamedTuple):
    """How a split is cut into batches.

    count: images. batch, rest: the size of a batch and of an epoch's last one, 0 where there is no such. order: of the
    images in an epoch, int32 [count].
    """

    count: int
    batch: int
    rest: int
    order: Callable[[int], np.ndarray]

    def steps(self) -> int:
        """Steps of an epoch."""
        return max(1, self.count // self.batch + bool(self.rest))

    def size(self, at: int) -> int:
        """The size of the batch of step `at`."""
        return self.rest if self.rest and at % self.steps() == self.steps() - 1 else self.batch

    def padded(self, epoch: int) -> np.ndarray:
        """The order as long as an epoch's batches are, from the beginning again where images are fewer than a batch."""
        return np.resize(self.order(epoch), self.steps() * self.batch)

    def rows(self, at: int) -> np.ndarray:
        """The images of step `at`."""
        epoch, position = divmod(at, self.steps())
        return self.padded(epoch)[position * self.batch :][: self.size(at)]


def dispatcher(
    config: Mapping[str, Any], split: Split, devices: Sequence[jax.Device], take: Callable[..., Any], *,
    keys: tuple[Array, Array],
) -> Dispatcher:  # fmt: skip
    """The loop's dispatch of pre-training.

    Args:
      config: a whole config.
      split: the train split.
      devices: those of the run.
      take: `pretrain.train_step` with its options.
      keys: of the order of images and of augmentation.

    Raises:
      ConfigError: an epoch's last batch cannot be spread over the devices.
    """
    order_key, key = keys
    found = epochs(config, split, len(devices), order_key)
    look = viewer(config, split, found.batch)

    def learn(size, number, axis, state, images, labels, key):
        views, labels, dropout_key = look(key, state.step, number, images, labels)
        return take(state, views, labels, dropout_key, axis_name=axis)

    run = _from_devices if build.is_on_device(config, split) else _from_host
    return run(config, split, devices, found, learn, parallel.replicate(key, devices))


def epochs(config: Mapping[str, Any], split: Split, devices: int, key: Array) -> Epochs:
    """How pre-training cuts a split into batches; `key` is that of the order of images."""
    group, count = config["pretrain"], len(split.labels)

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        number = 0 if group["shuffle"] == "once" else epoch
        return np.asarray(pretrain.epoch_order(key, number, count))

    return Epochs(count, group["batch_size"], _last_batch(config, count, devices), order)


def viewer(config: Mapping[str, Any], split: Split, batch: int) -> Callable[..., tuple[Array, Array, Array]]:
    """(key, step, device's number, images, labels) -> (views, labels, key of dropout): what a step makes of them."""
    group = config["pretrain"]
    view = build.augmentation(config["data"], group["augment"])

    def look(key, step, number, images, labels):
        each = len(images)
        step_key = jax.random.fold_in(key, step)
        image_keys = numbered_keys(step_key, number * each + jnp.arange(each))
        views = view(image_keys, images)
        if group["mixup"]:
            # The view's own keys are 0, 1 and 2 of an image's.
            keys = jax.vmap(jax.random.fold_in, (0, None))(image_keys, 3)
            views, labels = augment.mixup(keys, views, labels, alpha=group["mixup"], classes=len(split.class_names))
        return views, labels, jax.random.fold_in(step_key, batch + number)

    return look


def _compile(step, devices, epochs, **options) -> dict[int, parallel.Step]:
    """`step(size, ...)` by each size that a batch of an epoch has; options as in `parallel.compile_step`."""
    sizes = {epochs.batch, epochs.rest or epochs.batch}
    return {size: parallel.compile_step(functools.partial(step, size), devices, **options) for size in sizes}


def _from_devices(config, split, devices, epochs, learn, key) -> Dispatcher:
    def step(size, number, axis, state, images, labels, order, first, key):
        each = size // len(devices)
        position = (state.step - first) * epochs.batch + number * each
        rows = jax.lax.dynamic_slice(order, (position,), (each,))
        return learn(size, number, axis, state, images[rows], labels[rows], key)

    compiled = _compile(step, devices, epochs, arguments=5, repeat=config["runtime"]["steps_per_dispatch"])
    images, labels = parallel.replicate((split.images, split.labels), devices)
    # A dispatch that starts at an epoch's last step reaches the furthest.
    spanned = 1 + -(-(config["runtime"]["steps_per_dispatch"] - 1) // epochs.steps())

    @functools.lru_cache(maxsize=1)
    def orders(epoch):
        joined = np.concatenate([epochs.padded(number) for number in range(epoch, epoch + spanned)])
        return parallel.replicate((joined, np.int32(epoch * epochs.steps())), devices)

    def dispatch(state, at):
        return compiled[epochs.size(at)](state, images, labels, *orders(at // epochs.steps()), key)

    return Dispatcher(dispatch, lambda: None)


def _from_host(config, split, devices, epochs, learn, key) -> Dispatcher:
    repeat, steps = config["runtime"]["steps_per_dispatch"], config["pretrain"]["steps"]
    own = parallel.own_numbers(devices)

    def step(size, number, axis, state, key, first, images, labels):
        return learn(size, number, axis, state, images[state.step - first], labels[state.step - first], key)

    compiled = _compile(step, devices, epochs, arguments=4, apart=2, repeat=repeat)

    def batches(at: int) -> Iterator[np.ndarray]:
        # [own devices, steps of the dispatch, images of a device]
        for first in range(at, steps, repeat):
            rows = np.stack([epochs.rows(first + i) for i in range(repeat)])
            yield rows.reshape(repeat, len(devices), -1).swapaxes(0, 1)[own]

    ahead = Ahead(split.images, batches, steps=repeat)

    def dispatch(state, at):
        rows, images = ahead.get(at)
        placed = parallel.spread((images, split.labels[rows]), devices)
        return compiled[epochs.size(at)](state, key, np.int32(at), *placed)

    return Dispatcher(dispatch, ahead.close)


def _last_batch(config: Mapping[str, Any], count: int, devices: int) -> int:
    """The size of an epoch's last, partial batch; 0 where there is none or it is left out."""
    batch = config["pretrain"]["batch_size"]
    rest = 0 if config["pretrain"]["drop_last"] or count < batch else count % batch
    if rest and (config["runtime"]["steps_per_dispatch"] > 1 or rest % devices):
        raise ConfigError(
            f"config.pretrain.drop_last is false, but an epoch's last batch of {rest} images cannot be spread over "
            f"{devices} devices or be part of a dispatch of several steps; set it to true, or change "
            "pretrain.batch_size, runtime.devices or runtime.steps_per_dispatch"
        )
    return rest

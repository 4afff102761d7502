"""Row c: one step of pre-training on a batch of uint8 images, augmentation on device included."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from mtl_jax.configs import miniimagenet

from benchmarks import accelerator
from benchmarks.worker import Measured, Work, queued
from mtl_jax import parallel, pretrain
from mtl_jax.config import build
from mtl_jax.episodes import numbered_keys
from mtl_jax.train import cost
from mtl_jax.workdir.named_arrays import flatten

CLASSES = 64
CHECKED = 8  # images of the step that both sides must agree on


def config(quick: bool):
    """`resnet12` without a variant, on mini-ImageNet at 84 pixels: random resized crop, centre crop, flip; SGD."""
    found = miniimagenet.get_config("resnet12,5shot")
    found.data.crop = 84
    found.pretrain.batch_size = 64
    if quick:
        found.backbone.width = 0.1
        found.pretrain.batch_size = 8
        found.data.update({"image_size": 40, "crop": 32})
        found.pretrain.augment.resized_crop = 36
    found.pretrain.batch_size *= accelerator.times()
    return found


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """mtl_jax's side; leaves the weights and images for the other in `inputs.npz`."""
    settings, rng = config(quick), np.random.default_rng(0)
    group, side = settings.pretrain, settings.data.image_size
    images = rng.integers(0, 256, (group.batch_size, side, side, 3), np.uint8)
    labels = rng.integers(0, CLASSES, group.batch_size).astype(np.int32)
    module, classifier = build.backbone(settings.backbone), pretrain.Classifier(CLASSES)
    optimizer = build.optimizer(group, group.lr)
    first = pretrain.init_state(
        jax.random.key(0), module, classifier, build.image_shape(settings.data, images), optimizer
    )
    view = build.augmentation(settings.data, group.augment)
    options = {"classifier": classifier, "label_smoothing": group.label_smoothing}
    computing = build.backbone(settings.backbone, accelerator.dtype())

    def step(state, images, labels, key):
        key = jax.random.fold_in(key, state.step)
        images = view(numbered_keys(key, jnp.arange(len(images))), images)
        return pretrain.train_step(state, images, labels, key, optimizer=optimizer, backbone=computing, **options)

    weights = flatten({"params": first.params["backbone"], "batch_stats": first.batch_stats})
    head = {f"classifier/{name}": np.asarray(value) for name, value in first.params["classifier"]["output"].items()}
    np.savez(folder / "inputs.npz", images=images, labels=labels, **weights, **head)
    compiled, placed = jax.jit(step, donate_argnums=0), jax.device_put((images, labels, jax.random.key(1)))
    state = [jax.tree.map(lambda a: jnp.array(np.asarray(a)), first)]

    def run() -> Measured:
        return queued(
            lambda: state.append(compiled(state.pop(), *placed)[0]),
            lambda: jax.block_until_ready(state),
            on_cpu=parallel.on_cpu(),
        )

    flops = cost.estimate(step, first, *placed).flops
    return Work({"": run}, lambda: _numbers(settings, first, images, labels, options), facts={"flops": flops})


def _numbers(settings, first, images, labels, options) -> dict[str, np.ndarray]:
    """Loss and gradients of a few images without what is random: augmentation and dropout."""
    module = build.backbone({**settings.backbone.to_dict(), "dropout": 0.0})
    loss = functools.partial(pretrain.classification_loss, backbone=module, **options)
    inputs = build.prepare(settings.data)(images[:CHECKED])
    gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, _), grads = gradients(first.params, first.batch_stats, inputs, labels[:CHECKED], jax.random.key(0))
    kept = {"params": grads["backbone"], "classifier": grads["classifier"]["output"]}
    return {"loss": np.asarray(value), **flatten(kept)}

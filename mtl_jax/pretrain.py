"""Pre-training: plain classification of all base classes, whose classifier is thrown away afterwards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mtl_jax.augment import all_rotations
from mtl_jax.backend import vary_like
from mtl_jax.meta import keep_if_finite
from mtl_jax.metrics import accuracy, cross_entropy
from mtl_jax.types import Array, Params


class Classifier(nn.Module):
    """The pre-training head: linear, or linear - ReLU - linear with `hidden` units (1000 in the PyTorch code).

    uniform: weights and biases U(+-1 / sqrt(fan_in)), as PyTorch's linear layer; otherwise Xavier-uniform and 0.
    """

    classes: int
    hidden: int = 0
    uniform: bool = True

    @nn.compact
    def __call__(self, features: Array) -> Array:
        if self.hidden:
            features = nn.relu(self._dense(features, self.hidden, "hidden"))
        return self._dense(features, self.classes, "output")

    def _dense(self, x: Array, width: int, name: str) -> Array:
        if not self.uniform:
            return nn.Dense(width, kernel_init=nn.initializers.xavier_uniform(), name=name)(x)
        bound = x.shape[-1] ** -0.5

        def init(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return nn.Dense(width, kernel_init=init, bias_init=init, name=name)(x)


ROTATIONS = Classifier(4)  # tells by how many right angles an image was turned


class PretrainState(NamedTuple):
    """What a pre-training step changes.

    `params` has the groups 'backbone' and 'classifier', and 'rotation' where rotations are told apart as well.
    """

    step: Array
    params: Params
    batch_stats: Params
    opt_state: optax.OptState


def init_state(
    key: Array, backbone: nn.Module, classifier: Classifier, image_shape: tuple[int, ...], optimizer: Any, *,
    rotation: bool = False,
) -> PretrainState:  # fmt: skip
    """Random parameters for images of `image_shape` [H, W, C]; with `rotation` for a classifier of rotations, too."""
    backbone_key, classifier_key = jax.random.split(key)
    variables = init_backbone(backbone_key, backbone, image_shape)
    features = jax.eval_shape(backbone.apply, variables, jnp.zeros((1, *image_shape)))
    head = classifier.init(classifier_key, jnp.zeros(features.shape))["params"]
    params = {"backbone": variables["params"], "classifier": head}
    if rotation:
        turns_key = jax.random.fold_in(classifier_key, 1)
        params["rotation"] = ROTATIONS.init(turns_key, jnp.zeros(features.shape))["params"]
    return PretrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], optimizer.init(params))


def init_backbone(key: Array, backbone: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Params]:
    """A backbone's {'params', 'batch_stats'} for images [H, W, C]; 'batch_stats' is empty without batch norm."""
    variables = jax.jit(backbone.init)(key, jnp.zeros((1, *image_shape)))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def training_features(
    params: Params, batch_stats: Params, images: Array, key: Array, *, backbone: nn.Module, batch_statistics: str
) -> tuple[Array, Params]:
    """Features [B, F] of a training batch [B, H, W, C], by a backbone's params, and its new batch_stats."""
    features, new = backbone.apply(
        {"params": params, "batch_stats": batch_stats}, images,
        train=True, batch_statistics=batch_statistics, mutable=["batch_stats"], rngs={"dropout": key},
    )  # fmt: skip
    return features, new.get("batch_stats", batch_stats)


def classification_loss(
    params: Params, batch_stats: Params, images: Array, labels: Array, key: Array, *,
    backbone: nn.Module, classifier: Classifier, batch_statistics: str = "train", label_smoothing: float = 0.0,
    rotation: float = 0.0,
) -> tuple[Array, tuple[Array, Params]]:  # fmt: skip
    """Mean cross-entropy of a batch.

    Args:
      params, batch_stats: of a `PretrainState`.
      images: [B, H, W, C].
      labels: int [B], or the classes' shares, float [B, classes], of mixed images.
      key: for dropout.
      backbone, classifier, batch_statistics: the network.
      label_smoothing: what part of a label is spread over all classes.
      rotation: the weight of self-supervision by rotations (Gidaris et al., 2019), 0 for none: the batch in all four
        rotations, each with the image's own label, plus `rotation` times the cross-entropy of telling the angle.

    Returns:
      (loss [], (accuracy [], new batch_stats)).
    """
    if rotation:
        turns = jnp.repeat(jnp.arange(4), len(images))
        images, labels = all_rotations(images), jnp.concatenate([labels] * 4)
    features, batch_stats = training_features(
        params["backbone"], batch_stats, images, key, backbone=backbone, batch_statistics=batch_statistics
    )
    logits = classifier.apply({"params": params["classifier"]}, features)
    mixed = labels.ndim == 2
    loss = (optax.softmax_cross_entropy if mixed else cross_entropy)(logits, labels).mean()
    if label_smoothing:
        uniform = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform.mean()
    if rotation:
        loss += rotation * cross_entropy(ROTATIONS.apply({"params": params["rotation"]}, features), turns).mean()
    return loss, (accuracy(logits, labels.argmax(-1) if mixed else labels), batch_stats)


def train_step(
    state: PretrainState, images: Array, labels: Array, key: Array, *,
    optimizer: optax.GradientTransformation, axis_name: str | None = None, **options: Any,
) -> tuple[PretrainState, dict[str, Array]]:  # fmt: skip
    """One step of pre-training; `options` as in `classification_loss`.

    With `axis_name`, the batch is spread over that mapped axis. A backbone that knows its name too normalises by the
    statistics of the whole batch; with one that does not, BN's new averages are the means of the devices' own.

    Returns:
      (new state, {'loss', 'accuracy', 'finite'}); a step whose loss or gradient is not finite changes only `step`.
    """
    value_and_grad = jax.value_and_grad(classification_loss, has_aux=True)
    own = vary_like(state.params, (images, labels, key))
    (loss, (correct, stats)), grads = value_and_grad(own, state.batch_stats, images, labels, key, **options)
    if axis_name:
        grads, loss, correct = jax.lax.pmean((grads, loss, correct), axis_name)
        if options.get("batch_statistics", "train") == "train":  # others stand still, and would move by rounding
            stats = jax.lax.pmean(stats, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = PretrainState(state.step + 1, optax.apply_updates(state.params, updates), stats, opt_state)
    kept, finite = keep_if_finite(new, state, (loss, grads))
    return kept._replace(step=new.step), {"loss": loss, "accuracy": correct, "finite": finite}


def epoch_order(key: Array, epoch: int | Array, count: int) -> Array:
    """The order of `count` images in an epoch, int32 [count]: stateless, a function of key and epoch."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), count).astype(jnp.int32)

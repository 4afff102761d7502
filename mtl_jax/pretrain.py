"""Pre-training: plain classification of all base classes. Its classifier is not used afterwards."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mtl_jax.augment import all_rotations, turned
from mtl_jax.embed import mode_options, training_options
from mtl_jax.meta import keep_if_finite
from mtl_jax.metrics import accuracy, cross_entropy
from mtl_jax.parallel import vary_like
from mtl_jax.types import Array, Params


class Classifier(nn.Module):
    """The pre-training head: linear, or linear - ReLU - linear with `hidden` units (1000 in the PyTorch code).

    uniform: weights and biases U(+-1 / sqrt(fan_in)), as PyTorch's linear layer; otherwise Xavier-uniform weights and
    biases 0.
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


ROTATIONS = Classifier(4)  # predicts by how many right angles an image was rotated
ROTATION_VIEWS = ("all", "quarter")
ROTATION_HEADS = ("features", "logits")


class PretrainState(NamedTuple):
    """What a pre-training step changes.

    params: groups 'backbone', 'classifier' and, with rotation prediction, 'rotation'. teacher: a teacher's variables,
    which no step changes, or None. average: moving averages of 'params' and 'batch_stats', or None.
    """

    step: Array
    params: Params
    batch_stats: Params
    opt_state: optax.OptState
    teacher: Params | None = None
    average: Params | None = None


class Distillation(NamedTuple):
    """Knowledge distillation from a teacher (Hinton et al., 2015).

    logits: (the teacher's variables, images [B, H, W, C]) -> its logits [B, classes]. weight: of the divergence from
    the teacher; the loss of the labels has weight 1 - `weight`. temperature: divides both networks' logits.
    """

    logits: Callable[[Params, Array], Array]
    weight: float = 0.5
    temperature: float = 4.0


def init_state(
    key: Array, backbone: nn.Module, classifier: Classifier, image_shape: tuple[int, ...], optimizer: Any, *,
    rotation: bool = False, rotation_head: str = "features", teacher: Params | None = None, average: bool = False,
) -> PretrainState:  # fmt: skip
    """The state before the first step, with random parameters.

    Args:
      key: a JAX key.
      backbone, classifier: the modules.
      image_shape: (H, W, C).
      optimizer: an optax transformation of the parameters.
      rotation: whether rotations are predicted as well.
      rotation_head: from what, as in `classification_loss`.
      teacher: a teacher's variables.
      average: whether to keep a moving average of the weights.
    """
    backbone_key, classifier_key = jax.random.split(key)
    variables = init_backbone(backbone_key, backbone, image_shape)
    features = jax.eval_shape(
        lambda v, x: backbone.apply(v, x, **mode_options(backbone, "running")), variables, jnp.zeros((1, *image_shape))
    )
    head = classifier.init(classifier_key, jnp.zeros(features.shape))["params"]
    params = {"backbone": variables["params"], "classifier": head}
    if rotation:
        turns_key = jax.random.fold_in(classifier_key, 1)
        inputs = classifier.classes if rotation_head == "logits" else features.shape[-1]
        params["rotation"] = ROTATIONS.init(turns_key, jnp.zeros((1, inputs)))["params"]
    stats = variables["batch_stats"]
    # A copy, since a step may overwrite the memory of the state that it is given.
    copy = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if average else None
    return PretrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), teacher, copy)


def init_backbone(key: Array, backbone: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Params]:
    """A backbone's {'params', 'batch_stats'} for images [H, W, C]; 'batch_stats' is empty without batch norm."""
    init = functools.partial(backbone.init, **mode_options(backbone, "running"))
    variables = jax.jit(init)(key, jnp.zeros((1, *image_shape)))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def training_features(
    params: Params, batch_stats: Params, images: Array, key: Array, *, backbone: nn.Module, batch_statistics: str,
    **options: Any,
) -> tuple[Array, Params]:  # fmt: skip
    """Features [B, F] of a training batch [B, H, W, C], and the backbone's new batch_stats.

    options: further arguments of the backbone: `dropblock_share`.
    """
    features, new = backbone.apply(
        {"params": params, "batch_stats": batch_stats}, images, **options,
        **training_options(backbone, batch_statistics), mutable=["batch_stats"], rngs={"dropout": key},
    )  # fmt: skip
    return features, new.get("batch_stats", batch_stats) if batch_statistics == "train" else batch_stats


def classification_loss(
    params: Params, batch_stats: Params, images: Array, labels: Array, key: Array, *,
    backbone: nn.Module, classifier: Classifier, batch_statistics: str = "train", label_smoothing: float = 0.0,
    rotation: float = 0.0, rotation_views: str = "all", rotation_head: str = "features", axis_name: str | None = None,
    distillation: Distillation | None = None, teacher: Params | None = None, **options: Array,
) -> tuple[Array, tuple[Array, Params]]:  # fmt: skip
    """Mean cross-entropy of a batch.

    Args:
      params, batch_stats: of a `PretrainState`.
      images: float [B, H, W, C].
      labels: int [B], or probabilities, float [B, classes], of mixed images.
      key: for dropout.
      backbone, classifier, batch_statistics: the network.
      label_smoothing: part of each label that is spread over all classes.
      rotation: weight of the rotation-prediction loss (Gidaris et al., 2019); 0: images are not rotated. A rotated
        image keeps its label.
      rotation_views: 'all': each image is used at 0, 90, 180 and 270 degrees; 'quarter': at one of them, by its
        position in the batch.
      rotation_head: what the rotation is predicted from: 'features', or the class 'logits'.
      axis_name: the mapped axis that the batch is spread over, if any.
      distillation: from a teacher that sees the same images, as in RFS (arXiv 2003.11539).
      teacher: the teacher's variables.
      **options: as in `training_features`.

    SKD's code (arXiv 2006.09785) uses all views, the logits, and twice the mean binary cross-entropy of the four
    outputs. Once their biases have learned that one rotation in four is right, its gradient is that of `rotation` 0.5.
    EASY's code (arXiv 2201.09699) uses quarters, the features, and half of what the sum is here with `rotation` 1.

    Returns:
      (loss [], (accuracy [], new batch_stats)).
    """
    if rotation:
        images, labels, turns = _rotated(images, labels, rotation_views, axis_name)
    features, batch_stats = training_features(
        params["backbone"], batch_stats, images, key, backbone=backbone, batch_statistics=batch_statistics, **options
    )
    logits: Array = classifier.apply({"params": params["classifier"]}, features)  # type: ignore[assignment]
    mixed = labels.ndim == 2
    if label_smoothing:
        targets = labels if mixed else jax.nn.one_hot(labels, logits.shape[-1])
        loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing)).mean()
    else:
        loss = (optax.softmax_cross_entropy if mixed else cross_entropy)(logits, labels).mean()
    if distillation:
        distance = divergence(distillation.logits(teacher, images), logits, distillation.temperature)
        loss = (1 - distillation.weight) * loss + distillation.weight * distance
    if rotation:
        inputs = logits if rotation_head == "logits" else features
        angles: Array = ROTATIONS.apply({"params": params["rotation"]}, inputs)  # type: ignore[assignment]
        loss += rotation * cross_entropy(angles, turns).mean()
    return loss, (accuracy(logits, labels.argmax(-1) if mixed else labels), batch_stats)


def ramped(step: Array, ramp: int) -> dict[str, Array]:
    """{'dropblock_share': from 1 / ramp at step 0 to 1 at step ramp - 1 and later}; {} if `ramp` is 0."""
    return {"dropblock_share": jnp.minimum((step + 1) / ramp, 1)} if ramp else {}


def divergence(teacher: Array, student: Array, temperature: float) -> Array:
    """T^2 KL(teacher || student) at temperature T, the mean over images: logits [B, classes] -> []."""
    log_p, log_q = (jax.nn.log_softmax(logits / temperature) for logits in (teacher, student))
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


def _rotated(images: Array, labels: Array, views: str, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Rotated images, their labels, and by how many right angles each was rotated."""
    count = len(images)
    if views == "all":
        return all_rotations(images), jnp.concatenate([labels] * 4), jnp.repeat(jnp.arange(4), count)
    first = jax.lax.axis_index(axis_name) * count if axis_name else 0
    turns = (first + jnp.arange(count)) % 4
    return turned(images, turns), labels, turns


def train_step(
    state: PretrainState, images: Array, labels: Array, key: Array, *,
    optimizer: optax.GradientTransformation, axis_name: str | None = None, dropblock_ramp: int = 0,
    average: float = 0.0, **options: Any,
) -> tuple[PretrainState, dict[str, Array]]:  # fmt: skip
    """One step of pre-training.

    Args:
      state: parameters, BN's averages, the optimiser's state.
      images: float [B, H, W, C], or this device's part of the batch.
      labels: int [B], or probabilities [B, classes].
      key: for dropout.
      optimizer: an optax transformation of `state.params`.
      axis_name: the mapped axis that the batch is spread over, if any. A backbone with the same `axis_name` normalises
        by the whole batch; otherwise BN's new averages are the means of the devices' own.
      dropblock_ramp: see `ramped`.
      average: decay, see `moved_average`; 0: none.
      **options: as in `classification_loss`.

    Returns:
      (new state, {'loss', 'accuracy', 'finite'}). If the loss or a gradient is not finite, only `step` changes.
    """
    options |= ramped(state.step, dropblock_ramp)
    value_and_grad = jax.value_and_grad(classification_loss, has_aux=True)
    own = vary_like(state.params, (images, labels, key))
    (loss, (correct, stats)), grads = value_and_grad(
        own, state.batch_stats, images, labels, key, axis_name=axis_name, teacher=state.teacher, **options
    )  # fmt: skip
    if axis_name:
        grads, loss, correct = jax.lax.pmean((grads, loss, correct), axis_name)
        if options.get("batch_statistics", "train") == "train":  # otherwise they stay, and rounding would change them
            stats = jax.lax.pmean(stats, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = state._replace(step=state.step + 1, params=params, batch_stats=stats, opt_state=opt_state)
    if average:
        latest = {"params": params, "batch_stats": stats}
        new = new._replace(average=moved_average(state.average, latest, state.step, average))
    kept, finite = keep_if_finite(new, state, (loss, grads))
    return kept._replace(step=new.step), {"loss": loss, "accuracy": correct, "finite": finite}


def moved_average(average: Params, latest: Params, step: Array, decay: float) -> Params:
    """The exponential moving average after step number `step` (from 0): d average + (1 - d) latest.

    d is the smaller of `decay` and (1 + step) / (10 + step), so that the random start is soon forgotten.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: (d * old + (1 - d) * new).astype(old.dtype), average, latest)


def epoch_order(key: Array, epoch: int | Array, count: int) -> Array:
    """The order of `count` images in an epoch, int32 [count]. It depends on key and epoch alone."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), count).astype(jnp.int32)

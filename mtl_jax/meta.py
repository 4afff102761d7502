"""Meta-training: the loss of one task, of a meta-batch, and the step that learns Φ and θ from it.

The learned parameters are a tree of groups, `learned`: 'head' (the initial θ), 'ss' (Φ), and 'params' (the backbone's
own parameters that are meta-learned: BN's affine ones in the PyTorch preset, all weights in fine-tuning). Everything
else is in `Frozen`. Gradients are taken with respect to `learned` alone.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax import base_learner, feature_transform, scale_shift
from mtl_jax.errors import ConfigError
from mtl_jax.metrics import class_accuracy, cross_entropy
from mtl_jax.parallel import on_cpu, vary_like
from mtl_jax.types import Array, Episode, Params

ADAPT = ("head", "last_block", "all")
LOSS_SCALES = ("mean", "per_shot")


class Frozen(NamedTuple):
    """What a step's gradient leaves alone: the pre-trained backbone's parameters Θ and BN's running averages."""

    params: Params
    batch_stats: Params


class Inner(NamedTuple):
    """The inner loop.

    steps: number of updates. lr: β, or a tuple with one for each step. first_order: treat inner gradients as constants.
    loss_scale: 'mean' over the support rows, or 'per_shot': their sum divided by K, which is N times as large.
    adapt: what moves: 'head' (MTL); 'last_block' or 'all': the head and that part of the backbone (fine-tuning, MAML).
    remat: recompute activations of steps that move the backbone. features: how they are normalised before the head,
    see `feature_transform`; 'plain' unless only the head moves.
    """

    steps: int
    lr: float | tuple[float, ...]
    first_order: bool = True
    loss_scale: str = "mean"
    adapt: str = "head"
    remat: bool = False
    features: str = "plain"


class Embed(NamedTuple):
    """A backbone in one of BN's three modes: (params, batch_stats, images) -> (features, new batch_stats).

    module: from `create_backbone`. batch_statistics: 'running', 'batch' or 'train'. prepare: applied to the images
    first, e.g. normalisation of uint8 images.
    """

    module: Any
    batch_statistics: str = "running"
    prepare: Callable[[Array], Array] = lambda images: images

    def __call__(self, params: Params, batch_stats: Params, images: Array) -> tuple[Array, Params]:
        """images [B, H, W, C] -> (features [B, F], averages, which change in mode 'train' only)."""
        variables = {"params": params, "batch_stats": batch_stats}
        inputs, mode = self.prepare(images), self.batch_statistics
        if mode != "train":
            return self.module.apply(variables, inputs, batch_statistics=mode), batch_stats
        features, new = self.module.apply(variables, inputs, batch_statistics=mode, mutable=["batch_stats"])
        return features, new.get("batch_stats", batch_stats)

    def width(self, params: Params, batch_stats: Params, image_shape: tuple[int, ...]) -> int:
        """The number of features F for stored images, uint8 [H, W, C], from shapes alone."""
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
        return jax.eval_shape(lambda *a: self(*a)[0], params, batch_stats, image).shape[-1]


class TaskResult(NamedTuple):
    """A task's result besides its loss: query accuracy [], accuracy by class [N], BN's averages afterwards."""

    accuracy: Array
    class_accuracy: Array
    batch_stats: Params


class MetaState(NamedTuple):
    """What a meta-training step changes. pool: of `hard_tasks`, int32 [C], or None without hard tasks."""

    step: Array
    learned: Params
    batch_stats: Params
    opt_state: optax.OptState
    pool: Array | None = None


def overlay(tree: Params, part: Params) -> Params:
    """`tree` with some leaves replaced by those of `part`, a tree with some of the same keys."""
    if not isinstance(part, Mapping):
        return part
    return {**tree, **{name: overlay(tree[name], inner) for name, inner in part.items()}}


def backbone_params(learned: Params, frozen: Frozen) -> Params:
    """The backbone's parameters with the learned groups in them: fine-tuned leaves replaced, then SS applied."""
    params = overlay(frozen.params, learned.get("params", {}))
    return scale_shift.apply(params, learned["ss"]) if "ss" in learned else params


def loss_weights(labels: Array, way: int, loss_scale: str, shot: int | None = None) -> Array:
    """The weight of each row's cross-entropy: 1 / rows ('mean') or 1 / K ('per_shot'), [rows].

    Args:
      labels: int [rows].
      way: N.
      loss_scale: 'mean' or 'per_shot'.
      shot: K; None: rows / N.

    Raises:
      ConfigError: an unknown `loss_scale`, or rows that are not K of each class.
    """
    rows = labels.shape[0]
    if loss_scale not in LOSS_SCALES:
        raise ConfigError(f"loss_scale is {loss_scale!r}, expected one of {', '.join(LOSS_SCALES)}")
    if loss_scale == "per_shot" and not shot and (rows == 0 or rows % way):
        raise ConfigError(f"loss_scale is 'per_shot', but {rows} support rows are not as many of each of {way} classes")
    return jnp.full(rows, 1 / rows if loss_scale == "mean" else 1 / (shot or rows // way))


def episode_logits(
    learned: Params, frozen: Frozen, episode: Episode, *, embed: Embed, inner: Inner
) -> tuple[Array, Params]:
    """Query logits [N Q, N] of one task after the inner loop, and BN's averages afterwards.

    Args:
      learned: the learned groups; must have 'head'.
      frozen: the rest.
      episode: one task.
      embed: the backbone in its BN mode. Under batch statistics each set is normalised by its own, query first.
      inner: the inner loop.

    Raises:
      ConfigError: an unknown or contradictory value in `inner`, or labels that do not fit the head.
    """
    check_inner(inner)
    params, head = backbone_params(learned, frozen), learned["head"]
    weights = loss_weights(episode.support_labels, head["bias"].shape[-1], inner.loss_scale)
    if inner.adapt != "head":
        return _adapted_backbone_logits(params, head, frozen.batch_stats, episode, weights, embed, inner)
    support, query, stats = _embed_both(params, frozen.batch_stats, episode, embed, inner.first_order)
    support, query = feature_transform.transform(inner.features, support, query)
    logits = base_learner.adapted_logits(
        head, support, episode.support_labels, query,
        steps=inner.steps, lr=inner.lr, first_order=inner.first_order, weights=weights,
    )  # fmt: skip
    return logits, stats


def check_inner(inner: Inner) -> None:
    """Raises ConfigError if an inner loop's values are unknown or contradict each other."""
    if inner.adapt not in ADAPT:
        raise ConfigError(f"adapt is {inner.adapt!r}, expected one of {', '.join(ADAPT)}")
    if inner.features != "plain" and inner.adapt != "head":
        raise ConfigError(f"features is {inner.features!r}, expected 'plain': adapt {inner.adapt!r} reads no other")


def _embed_both(
    params: Params, stats: Params, episode: Episode, embed: Embed, first_order: bool
) -> tuple[Array, Array, Params]:
    """Features of both sets. In first order the support set needs no backward pass, so it is embedded separately."""
    if embed.batch_statistics == "running" and not first_order:
        both, _ = embed(params, stats, jnp.concatenate([episode.support, episode.query]))
        return *jnp.split(both, [len(episode.support)]), stats
    query, stats = embed(params, stats, episode.query)
    if first_order:
        params = jax.lax.stop_gradient(params)
    support, stats = embed(params, stats, episode.support)
    return support, query, stats


def fast_weights(params: Params, head: Params, adapt: str) -> Params:
    """The parameters that an inner loop with `adapt` 'last_block' or 'all' moves: {'params': backbone's, 'head': θ}."""
    moved = params if adapt == "all" else {name: params[name] for name in [scale_shift.last_block(params)]}
    return {"params": moved, "head": head}


def fast_logits(fast: Params, params: Params, batch_stats: Params, images: Array, embed: Embed) -> tuple[Array, Params]:
    """Logits [B, N] of images [B, ...] with fast weights in place of some of `params`, and BN's averages afterwards."""
    features, batch_stats = embed(overlay(params, fast["params"]), batch_stats, images)
    return base_learner.logits(fast["head"], features), batch_stats


def support_loss(
    fast: Params, params: Params, batch_stats: Params, episode: Episode, weights: Array, embed: Embed
) -> Array:
    """The inner loss of fast weights: the sum of the support rows' cross-entropies times `weights` [S]."""
    logits, _ = fast_logits(fast, params, batch_stats, episode.support, embed)
    return (weights * cross_entropy(logits, episode.support_labels)).sum()


def _adapted_backbone_logits(
    params: Params, head: Params, stats: Params, episode: Episode, weights: Array, embed: Embed, inner: Inner
) -> tuple[Array, Params]:
    fast = base_learner.adapt(
        lambda fast: support_loss(fast, params, stats, episode, weights, embed),
        fast_weights(params, head, inner.adapt),
        steps=inner.steps, lr=inner.lr, first_order=inner.first_order, remat=inner.remat,
    )  # fmt: skip
    return fast_logits(fast, params, stats, episode.query, embed)


def episode_loss(
    learned: Params, frozen: Frozen, episode: Episode, *, embed: Embed, inner: Inner
) -> tuple[Array, TaskResult]:
    """L_query(Θ, Φ, θ') of one task: the query cross-entropy after the inner loop, scaled like the support's.

    Returns:
      (loss [], TaskResult).
    """
    logits, stats = episode_logits(learned, frozen, episode, embed=embed, inner=inner)
    weights = loss_weights(episode.query_labels, logits.shape[-1], inner.loss_scale, _shot(episode, logits))
    loss = (weights * cross_entropy(logits, episode.query_labels)).sum()
    correct = class_accuracy(logits, episode.query_labels)
    return loss, TaskResult(correct.mean(), correct, stats)


def _shot(episode: Episode, logits: Array) -> int:
    return episode.support_labels.shape[0] // logits.shape[-1]


def batch_loss(
    learned: Params, frozen: Frozen, episodes: Episode, *, embed: Embed, inner: Inner
) -> tuple[Array, TaskResult]:
    """The mean of `episode_loss` over a meta-batch (every array of `episodes` has a leading axis T).

    Tasks are under `vmap`. On a CPU, tasks that move the backbone are a Python loop instead: `vmap` makes convolutions
    with a kernel for each task into grouped ones, whose gradients are nine times slower there.

    Returns:
      (loss [], TaskResult with a leading axis T).
    """
    loss = functools.partial(episode_loss, learned, frozen, embed=embed, inner=inner)
    if inner.adapt == "head" or not on_cpu():
        losses, result = jax.vmap(loss)(episodes)
    else:
        tasks = [loss(jax.tree.map(lambda a, t=t: a[t], episodes)) for t in range(len(episodes.support_labels))]
        losses, result = jax.tree.map(lambda *parts: jnp.stack(parts), *tasks)
    return losses.mean(), result


def init_state(learned: Params, batch_stats: Params, optimizer: optax.GradientTransformation) -> MetaState:
    """The state before the first step."""
    return MetaState(jnp.zeros((), jnp.int32), learned, batch_stats, optimizer.init(learned))


def gradients(
    learned: Params, frozen: Frozen, episodes: Episode, *, embed: Embed, inner: Inner, axis_name: str | None = None
) -> tuple[Params, tuple[Array, TaskResult]]:
    """The gradient of `batch_loss` by `learned`, and (loss, TaskResult), averaged over the mapped axis, if any.

    The TaskResult has means over all tasks of the meta-batch, but `class_accuracy` is [T, N] for this device's tasks.
    """
    value_and_grad = jax.value_and_grad(batch_loss, has_aux=True)
    own = vary_like(learned, episodes)
    (loss, result), grads = value_and_grad(own, frozen, episodes, embed=embed, inner=inner)
    # Averages that no task moves are not averaged again: rounding would change them.
    moved = result.batch_stats if embed.batch_statistics == "train" else {}
    means = (grads, loss, result.accuracy.mean(), jax.tree.map(lambda a: a.mean(0), moved))
    if axis_name:
        means = jax.lax.pmean(means, axis_name)
    grads, loss, accuracy, stats = means
    stats = stats if moved else frozen.batch_stats
    return grads, (loss, TaskResult(accuracy, result.class_accuracy, stats))


def apply_gradients(
    state: MetaState,
    grads: Params,
    loss: Array,
    batch_stats: Params,
    optimizer: optax.GradientTransformation,
) -> tuple[MetaState, Array]:
    """One optimiser step. If the loss or a gradient is not finite, only the step number changes.

    It changes so that the next step draws other tasks.

    Returns:
      (new state, whether all was finite []).
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.learned)
    learned = optax.apply_updates(state.learned, updates)
    new = MetaState(state.step + 1, learned, batch_stats, opt_state, state.pool)
    kept, finite = keep_if_finite(new, state, (loss, grads))
    return kept._replace(step=new.step), finite


def keep_if_finite(new: Any, old: Any, values: Any) -> tuple[Any, Array]:
    """(`new` if all of `values` are finite, otherwise `old`; whether they are finite [])."""
    finite = jnp.array([jnp.isfinite(v).all() for v in jax.tree.leaves(values)]).all()
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), finite


def train_step(
    state: MetaState,
    params: Params,
    episodes: Episode,
    *,
    embed: Embed,
    inner: Inner,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
) -> tuple[MetaState, dict[str, Array]]:
    """One meta-training step: Φ <- Φ - γ ∇Φ L_query(Θ, Φ, θ'), and the same for θ.

    Args:
      state: the learned groups, BN's averages, the optimiser's state.
      params: Θ.
      episodes: a meta-batch, or this device's part of it.
      embed, inner: see `episode_logits`.
      optimizer: an optax transformation of `state.learned`.
      axis_name: the mapped axis that the meta-batch is spread over.

    Returns:
      (new state, {'loss', 'accuracy', 'finite': [], 'class_accuracy': [T, N]}).
    """
    frozen = Frozen(params, state.batch_stats)
    grads, (loss, result) = gradients(state.learned, frozen, episodes, embed=embed, inner=inner, axis_name=axis_name)
    state, finite = apply_gradients(state, grads, loss, result.batch_stats, optimizer)
    metrics = {"loss": loss, "accuracy": result.accuracy, "finite": finite, "class_accuracy": result.class_accuracy}
    return state, metrics

"""Meta-training: the loss of one task, of a meta-batch, and the step that learns Φ and θ from it.

What is learned is a tree of groups, `learned`: 'head' (the initial θ), 'ss' (Φ), 'params' (those of the backbone's own
parameters that are meta-learned: BN's affine ones in the PyTorch preset, all weights in fine-tuning). What is not is in
`Frozen`. The loss differentiates with respect to `learned` alone.
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
from mtl_jax.parallel import vary_like
from mtl_jax.types import Array, Episode, Params

ADAPT = ("head", "last_block", "all")
LOSS_SCALES = ("mean", "per_shot")


class Frozen(NamedTuple):
    """What stands still in a step: the pre-trained backbone's parameters Θ and BN's running averages."""

    params: Params
    batch_stats: Params


class Inner(NamedTuple):
    """The inner loop.

    steps: number of updates. lr: β, or a tuple of one a step. first_order: whether inner gradients are constants.
    loss_scale: 'mean' over the support rows, or 'per_shot': their sum divided by K, N times as large. adapt: what
    moves: 'head' (MTL), 'last_block' or 'all' the backbone's weights with it (fine-tuning, MAML). remat: recompute
    activations of such steps. features: what is done to them before the head, where that alone moves; see
    `feature_transform`.
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

    module: what `create_backbone` returns. batch_statistics: 'running', 'batch' or 'train'. prepare: applied to the
    images first, e.g. normalisation of uint8 images.
    """

    module: Any
    batch_statistics: str = "running"
    prepare: Callable[[Array], Array] = lambda images: images

    def __call__(self, params: Params, batch_stats: Params, images: Array) -> tuple[Array, Params]:
        """images [B, H, W, C] -> features [B, F]; the averages change in mode 'train' only."""
        variables = {"params": params, "batch_stats": batch_stats}
        inputs, mode = self.prepare(images), self.batch_statistics
        if mode != "train":
            return self.module.apply(variables, inputs, batch_statistics=mode), batch_stats
        features, new = self.module.apply(variables, inputs, batch_statistics=mode, mutable=["batch_stats"])
        return features, new.get("batch_stats", batch_stats)

    def width(self, params: Params, batch_stats: Params, image_shape: tuple[int, ...]) -> int:
        """The number of features F of stored images, uint8 [H, W, C]. Computes nothing."""
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
        return jax.eval_shape(lambda *a: self(*a)[0], params, batch_stats, image).shape[-1]


class TaskResult(NamedTuple):
    """What a task tells besides its loss: query accuracy [], accuracy by class [N], and BN's averages after it."""

    accuracy: Array
    class_accuracy: Array
    batch_stats: Params


class MetaState(NamedTuple):
    """What a meta-training step changes, and the pool of `hard_tasks`, int32 [C], where there is one."""

    step: Array
    learned: Params
    batch_stats: Params
    opt_state: optax.OptState
    pool: Array | None = None


def overlay(tree: Params, part: Params) -> Params:
    """`tree` with the leaves of `part`, a tree of some of the same keys, put in place of its own."""
    if not isinstance(part, Mapping):
        return part
    return {**tree, **{name: overlay(tree[name], inner) for name, inner in part.items()}}


def backbone_params(learned: Params, frozen: Frozen) -> Params:
    """The backbone's parameters as the learned groups make them: fine-tuned leaves overlaid, then SS applied."""
    params = overlay(frozen.params, learned.get("params", {}))
    return scale_shift.apply(params, learned["ss"]) if "ss" in learned else params


def loss_weights(labels: Array, way: int, loss_scale: str, shot: int | None = None) -> Array:
    """The weight of each row's cross-entropy: 1 / rows ('mean'), or 1 / K ('per_shot'), K = rows / way unless given.

    Raises:
      ConfigError: another `loss_scale`, or rows that are not K of each class.
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
    """Query logits [N Q, N] of one task after the inner loop, and BN's averages after it.

    Args:
      learned: the learned groups; must have 'head'.
      frozen: the rest.
      episode: one task.
      embed: the backbone in its BN mode. Under batch statistics the two sets are normalised apart, query first.
      inner: the inner loop.

    Raises:
      ConfigError: a value of `inner` that there is not, or that its `adapt` does not read; labels that do not fit.
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
    """Whether an inner loop's values go together. Raises ConfigError."""
    if inner.adapt not in ADAPT:
        raise ConfigError(f"adapt is {inner.adapt!r}, expected one of {', '.join(ADAPT)}")
    if inner.features != "plain" and inner.adapt != "head":
        raise ConfigError(f"features is {inner.features!r}, expected 'plain': adapt {inner.adapt!r} reads no other")


def _embed_both(params, stats, episode, embed, first_order):
    """Features of both sets. In first order the support set needs no backward pass, so it is embedded apart."""
    if embed.batch_statistics == "running" and not first_order:
        both, _ = embed(params, stats, jnp.concatenate([episode.support, episode.query]))
        return *jnp.split(both, [len(episode.support)]), stats
    query, stats = embed(params, stats, episode.query)
    if first_order:
        params = jax.lax.stop_gradient(params)
    support, stats = embed(params, stats, episode.support)
    return support, query, stats


def fast_weights(params: Params, head: Params, adapt: str) -> Params:
    """What an inner loop with `adapt` 'last_block' or 'all' moves: {'params': of the backbone, 'head': θ}."""
    moved = params if adapt == "all" else {name: params[name] for name in [scale_shift.last_block(params)]}
    return {"params": moved, "head": head}


def fast_logits(fast: Params, params: Params, batch_stats: Params, images: Array, embed: Embed) -> tuple[Array, Params]:
    """Logits [B, N] of images [B, ...] by fast weights over the backbone's `params`, and BN's averages after them."""
    features, batch_stats = embed(overlay(params, fast["params"]), batch_stats, images)
    return base_learner.logits(fast["head"], features), batch_stats


def support_loss(
    fast: Params, params: Params, batch_stats: Params, episode: Episode, weights: Array, embed: Embed
) -> Array:
    """The inner loss of fast weights: the cross-entropies of the support rows weighted by `weights` [S], summed."""
    logits, _ = fast_logits(fast, params, batch_stats, episode.support, embed)
    return (weights * cross_entropy(logits, episode.support_labels)).sum()


def _adapted_backbone_logits(params, head, stats, episode, weights, embed, inner):
    fast = base_learner.adapt(
        lambda fast: support_loss(fast, params, stats, episode, weights, embed),
        fast_weights(params, head, inner.adapt),
        steps=inner.steps, lr=inner.lr, first_order=inner.first_order, remat=inner.remat,
    )  # fmt: skip
    return fast_logits(fast, params, stats, episode.query, embed)


def episode_loss(
    learned: Params, frozen: Frozen, episode: Episode, *, embed: Embed, inner: Inner
) -> tuple[Array, TaskResult]:
    """L_query(Θ, Φ, θ') of one task: the query cross-entropy after the inner loop, scaled as the support's.

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

    By `vmap`; where the inner loop moves the backbone by a Python loop, since convolutions with a kernel a task would
    be grouped ones, whose gradients are nine times slower on a CPU.

    Returns:
      (loss [], TaskResult with a leading axis T).
    """
    loss = functools.partial(episode_loss, learned, frozen, embed=embed, inner=inner)
    if inner.adapt == "head":
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
    """The gradient of `batch_loss` by `learned`, with (loss, TaskResult), averaged over the mapped axis, if any.

    The TaskResult has means over all tasks of the meta-batch, except `class_accuracy`, [T, N] of this device's tasks.
    """
    value_and_grad = jax.value_and_grad(batch_loss, has_aux=True)
    own = vary_like(learned, episodes)
    (loss, result), grads = value_and_grad(own, frozen, episodes, embed=embed, inner=inner)
    # Averages that no task moves are not averaged again, or they would move by rounding.
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
    """One optimiser step, unless the loss or a gradient is not finite: then all but the count of steps stays as it was.

    The count goes on, so that the next step draws other tasks.

    Returns:
      (new state, whether the step was taken []).
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.learned)
    learned = optax.apply_updates(state.learned, updates)
    new = MetaState(state.step + 1, learned, batch_stats, opt_state, state.pool)
    kept, finite = keep_if_finite(new, state, (loss, grads))
    return kept._replace(step=new.step), finite


def keep_if_finite(new: Any, old: Any, values: Any) -> tuple[Any, Array]:
    """(`new` where all of `values` are finite and `old` otherwise, whether they are)."""
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
      optimizer: an optax transformation over `state.learned`.
      axis_name: the mapped axis that the meta-batch is spread over.

    Returns:
      (new state, {'loss', 'accuracy', 'finite': [], 'class_accuracy': [T, N]}).
    """
    frozen = Frozen(params, state.batch_stats)
    grads, (loss, result) = gradients(
        state.learned, frozen, episodes, embed=embed, inner=inner, axis_name=axis_name
    )  # fmt: skip
    state, finite = apply_gradients(state, grads, loss, result.batch_stats, optimizer)
    metrics = {"loss": loss, "accuracy": result.accuracy, "finite": finite, "class_accuracy": result.class_accuracy}
    return state, metrics

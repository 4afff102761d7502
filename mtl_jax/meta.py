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

from mtl_jax import base_learner, scale_shift
from mtl_jax.embed import Embed as Embed
from mtl_jax.embed import Embedder, check_unchanged, statistics_of
from mtl_jax.learners import BaseLearner, Inner, check_inner, loss_weights, moved_part
from mtl_jax.metrics import class_accuracy, cross_entropy
from mtl_jax.parallel import on_cpu, vary_like
from mtl_jax.types import Array, Episode, Params


class Frozen(NamedTuple):
    """What a step's gradient leaves alone: the pre-trained backbone's parameters Θ and BN's running averages."""

    params: Params
    batch_stats: Params


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


def episode_logits(
    learned: Params, frozen: Frozen, episode: Episode, *, embed: Embedder, inner: BaseLearner
) -> tuple[Array, Params]:
    """Query logits [N Q, N] of one task after the inner loop, and BN's averages afterwards.

    Args:
      learned: the learned groups; 'head' is what the base-learner takes, and may be left out if it takes nothing.
      frozen: the rest.
      episode: one task.
      embed: an `Embed`, or any function (params, batch_stats, images [B, ...]) -> (features [B, F], batch_stats). Under
        batch statistics each set is normalised by its own, query first.
      inner: the base-learner: an `Inner`, or any other (see `learners`).

    Raises:
      ConfigError: an unknown or contradictory value in `inner`, labels that do not fit the head, or a function that
        changes `batch_stats` without saying so (see `embed`).
    """
    check_inner(inner)
    params, head = backbone_params(learned, frozen), learned.get("head", {})
    if moved_part(inner) != "head":
        descent: Any = inner  # has an Inner's options
        weights = loss_weights(episode.support_labels, head["bias"].shape[-1], descent.loss_scale)
        return _adapted_backbone_logits(params, head, frozen.batch_stats, episode, weights, embed, descent)
    constant = getattr(inner, "is_support_constant", False)
    support, query, stats = _embed_both(params, frozen.batch_stats, episode, embed, constant)
    return inner(head, support, episode.support_labels, query), stats


def _embed_both(
    params: Params, stats: Params, episode: Episode, embed: Embedder, is_support_constant: bool
) -> tuple[Array, Array, Params]:
    """Features of both sets. A constant support set needs no backward pass, so it is embedded separately."""
    before = stats
    if statistics_of(embed) == "running" and not is_support_constant:
        both, stats = embed(params, stats, jnp.concatenate([episode.support, episode.query]))
        check_unchanged(embed, before, stats)
        return *jnp.split(both, [len(episode.support)]), stats
    query, stats = embed(params, stats, episode.query)
    if is_support_constant:
        params = jax.lax.stop_gradient(params)
    support, stats = embed(params, stats, episode.support)
    check_unchanged(embed, before, stats)
    return support, query, stats


def fast_weights(params: Params, head: Params, adapt: str) -> Params:
    """The parameters that an inner loop with `adapt` 'last_block' or 'all' moves: {'params': backbone's, 'head': θ}."""
    moved = params if adapt == "all" else {name: params[name] for name in [scale_shift.last_block(params)]}
    return {"params": moved, "head": {name: head[name] for name in ("kernel", "bias")}}


def fast_logits(
    fast: Params, params: Params, batch_stats: Params, images: Array, embed: Embedder
) -> tuple[Array, Params]:
    """Logits [B, N] of images [B, ...] with fast weights in place of some of `params`, and BN's averages afterwards."""
    features, batch_stats = embed(overlay(params, fast["params"]), batch_stats, images)
    return base_learner.logits(fast["head"], features), batch_stats


def support_loss(
    fast: Params, params: Params, batch_stats: Params, episode: Episode, weights: Array, embed: Embedder
) -> Array:
    """The inner loss of fast weights: the sum of the support rows' cross-entropies times `weights` [S]."""
    logits, _ = fast_logits(fast, params, batch_stats, episode.support, embed)
    return (weights * cross_entropy(logits, episode.support_labels)).sum()


def _adapted_backbone_logits(
    params: Params, head: Params, stats: Params, episode: Episode, weights: Array, embed: Embedder, inner: Inner
) -> tuple[Array, Params]:
    fast = base_learner.adapt(
        lambda fast: support_loss(fast, params, stats, episode, weights, embed),
        fast_weights(params, head, inner.adapt),
        steps=inner.steps, lr=inner.rates(head), first_order=inner.first_order, remat=inner.remat,
    )  # fmt: skip
    return fast_logits(fast, params, stats, episode.query, embed)


def episode_loss(
    learned: Params, frozen: Frozen, episode: Episode, *, embed: Embedder, inner: BaseLearner
) -> tuple[Array, TaskResult]:
    """L_query(Θ, Φ, θ') of one task: the query cross-entropy after the inner loop, scaled like the support's.

    Returns:
      (loss [], TaskResult).
    """
    logits, stats = episode_logits(learned, frozen, episode, embed=embed, inner=inner)
    loss_scale = getattr(inner, "loss_scale", "mean")
    weights = loss_weights(episode.query_labels, logits.shape[-1], loss_scale, _shot(episode, logits))
    loss = (weights * cross_entropy(logits, episode.query_labels)).sum()
    correct = class_accuracy(logits, episode.query_labels)
    return loss, TaskResult(correct.mean(), correct, stats)


def _shot(episode: Episode, logits: Array) -> int:
    return episode.support_labels.shape[0] // logits.shape[-1]


Loss = Callable[..., tuple[Array, TaskResult]]
"""The loss of a task, called as `episode_loss` is, and its TaskResult."""


def batch_loss(
    learned: Params, frozen: Frozen, episodes: Episode, *, embed: Embedder, inner: BaseLearner,
    loss: Loss = episode_loss,
) -> tuple[Array, TaskResult]:  # fmt: skip
    """The mean of `loss` over a meta-batch (every array of `episodes` has a leading axis T).

    Tasks are under `vmap`. On a CPU, tasks that move the backbone are a Python loop instead: `vmap` makes convolutions
    with a kernel for each task into grouped ones, whose gradients are nine times slower there.

    Returns:
      (loss [], TaskResult with a leading axis T).
    """
    loss_of_task = functools.partial(loss, learned, frozen, embed=embed, inner=inner)
    if moved_part(inner) == "head" or not on_cpu():
        losses, result = jax.vmap(loss_of_task)(episodes)
    else:
        tasks = [loss_of_task(jax.tree.map(lambda a, t=t: a[t], episodes)) for t in range(len(episodes.support_labels))]
        losses, result = jax.tree.map(lambda *parts: jnp.stack(parts), *tasks)
    return losses.mean(), result


def init_state(learned: Params, batch_stats: Params, optimizer: optax.GradientTransformation) -> MetaState:
    """The state before the first step."""
    return MetaState(jnp.zeros((), jnp.int32), learned, batch_stats, optimizer.init(learned))


def gradients(
    learned: Params,
    frozen: Frozen,
    episodes: Episode,
    *,
    embed: Embedder,
    inner: BaseLearner,
    loss: Loss = episode_loss,
    axis_name: str | None = None,
) -> tuple[Params, tuple[Array, TaskResult]]:
    """The gradient of `batch_loss` by `learned`, and (loss, TaskResult), averaged over the mapped axis, if any.

    The TaskResult has means over all tasks of the meta-batch, but `class_accuracy` is [T, N] for this device's tasks.
    """
    value_and_grad = jax.value_and_grad(batch_loss, has_aux=True)
    own = vary_like(learned, episodes)
    (value, result), grads = value_and_grad(own, frozen, episodes, embed=embed, inner=inner, loss=loss)
    # Averages that no task moves are not averaged again: rounding would change them.
    moved = result.batch_stats if statistics_of(embed) == "train" else {}
    means = (grads, value, result.accuracy.mean(), jax.tree.map(lambda a: a.mean(0), moved))
    if axis_name:
        means = jax.lax.pmean(means, axis_name)
    grads, value, accuracy, stats = means
    stats = stats if moved else frozen.batch_stats
    return grads, (value, TaskResult(accuracy, result.class_accuracy, stats))


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
    embed: Embedder,
    inner: BaseLearner,
    optimizer: optax.GradientTransformation,
    loss: Loss = episode_loss,
    axis_name: str | None = None,
) -> tuple[MetaState, dict[str, Array]]:
    """One meta-training step: Φ <- Φ - γ ∇Φ L_query(Θ, Φ, θ'), and the same for θ.

    Args:
      state: the learned groups, BN's averages, the optimiser's state.
      params: Θ.
      episodes: a meta-batch, or this device's part of it.
      embed, inner: see `episode_logits`.
      optimizer: an optax transformation of `state.learned`.
      loss: the loss of a task, called as `episode_loss(learned, frozen, episode, embed=..., inner=...)`; returns what
        that returns.
      axis_name: the mapped axis that the meta-batch is spread over.

    Returns:
      (new state, {'loss', 'accuracy', 'finite': [], 'class_accuracy': [T, N]}).
    """
    frozen = Frozen(params, state.batch_stats)
    grads, (value, result) = gradients(
        state.learned, frozen, episodes, embed=embed, inner=inner, loss=loss, axis_name=axis_name
    )
    state, finite = apply_gradients(state, grads, value, result.batch_stats, optimizer)
    metrics = {"loss": value, "accuracy": result.accuracy, "finite": finite, "class_accuracy": result.class_accuracy}
    return state, metrics

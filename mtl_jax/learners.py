"""Base-learners as values: how a task's classifier comes from its support set.

A base-learner is any hashable callable `(learned, support_features, support_labels, query_features) -> query_logits`.
`learned` is what meta-training learns of it, the group 'head'. `Inner` is gradient descent on a head, such as MTL's;
`solved_learners` has those with a solution in closed form or at convergence. A function of your own does as well.
"""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from mtl_jax import base_learner, cosine_head, feature_transform
from mtl_jax.errors import ConfigError
from mtl_jax.types import Array, Params

ADAPT = ("head", "last_block", "all")
LOSS_SCALES = ("mean", "per_shot")
HEADS = ("linear", "cosine")
STARTS = ("learned", "zero", "prototypes")
SCALE = 10.0  # of cosines, at the start


class BaseLearner(Protocol):
    """What `train.py` asks of a base-learner. It must be hashable: arrays belong into `learned`."""

    def init(self, key: Array, features: int) -> Params:
        """What is meta-learned, at its start, for features of width F. Not needed where you make `learned` yourself."""

    def __call__(self, learned: Params, support: Array, labels: Array, query: Array) -> Array:
        """(learned, support features [S, F], labels int [S], query features [Q, F]) -> query logits [Q, N]."""


class Inner(NamedTuple):
    """Gradient descent on a head: MTL's base-learner, and with other options E3BM's or ProtoMAML's.

    steps: number of updates. lr: β, or a tuple with one for each step. first_order: treat inner gradients as constants.
    loss_scale: 'mean' over the support rows, or 'per_shot': their sum divided by K, which is N times as large.
    adapt: what moves: 'head' (MTL); 'last_block' or 'all': the head and that part of the backbone (fine-tuning, MAML).
    remat: recompute activations of steps that move the backbone. features: how they are normalised before the head,
    see `feature_transform`; 'plain' unless only the head moves.
    head: 'linear', or 'cosine' with a learned scale. start: where the head starts: 'learned'; 'zero'; 'prototypes': of
    a cosine head the means of each class's support features c, of a linear one kernel 2 c and bias -|c|², so that it
    starts as nearest centroid (ProtoMAML). learn_lr: meta-learn a rate for each step, which starts at `lr`.
    ensemble: the logits are a sum of those after every step, with meta-learned weights, equal at first (E3BM).
    way: N; needed by `init`, and where the start is not learned. head_init: see `base_learner.init_head`.
    """

    steps: int
    lr: float | tuple[float, ...]
    first_order: bool = True
    loss_scale: str = "mean"
    adapt: str = "head"
    remat: bool = False
    features: str = "plain"
    head: str = "linear"
    start: str = "learned"
    learn_lr: bool = False
    ensemble: bool = False
    way: int = 0
    head_init: str = "zero"

    def init(self, key: Array, features: int) -> Params:
        """What is meta-learned, as far as the options ask for it.

        {'kernel': [F, N], 'bias': [N], 'scale': [], 'lr': [steps], 'ensemble': [steps]}.

        Raises:
          ConfigError: `way` is missing, or a cosine head is to start from zeros.
        """
        learned: Params = {}
        if self.start == "learned":
            check_way(self.way)
            learned = base_learner.init_head(key, features, self.way, init=self.head_init)
        if self.head == "cosine":
            if self.start == "zero" or (self.start == "learned" and self.head_init == "zero"):
                raise ConfigError(
                    "a cosine head cannot start from zeros, which have no direction: set inner.head_init to 'he', or "
                    "inner.start to 'prototypes'"
                )
            learned.pop("bias", None)
            learned["scale"] = jnp.asarray(SCALE)
        if self.learn_lr:
            learned["lr"] = jnp.broadcast_to(jnp.asarray(self.lr, float), self.steps)
        if self.ensemble:
            learned["ensemble"] = jnp.full(self.steps, 1 / max(self.steps, 1))
        return learned

    def __call__(
        self, learned: Params, support: Array, labels: Array, query: Array, *, shot: int | None = None,
        weights: Array | None = None, trajectory: bool = False,
    ) -> Array:  # fmt: skip
        """Query logits [Q, N] after the inner loop on features, in the span form.

        Args:
          learned: from `init`, possibly trained.
          support, labels, query: [S, F], int [S], [Q, F].
          shot: K for `loss_scale`, where S has further views of the images; None: S / N.
          weights: of each row's cross-entropy, [S]; None: as `loss_scale` says.
          trajectory: return the logits after each of 0, 1, ..., `steps` updates, [steps + 1, Q, N].

        Raises:
          ConfigError: an unknown or contradictory option, or labels that do not fit the head.
        """
        check_inner(self)
        support, query = feature_transform.transform(self.features, support, query)
        head = self.starting_head(learned, support, labels)
        way = head["kernel"].shape[-1]
        weights = loss_weights(labels, way, self.loss_scale, shot) if weights is None else weights
        adapted = cosine_head.adapted_logits if self.head == "cosine" else base_learner.adapted_logits
        rates: Any = self.rates(learned)
        logits = adapted(
            head, support, labels, query, steps=self.steps, lr=rates, first_order=self.first_order,
            weights=weights, trajectory=trajectory or self.ensemble,
        )  # fmt: skip
        if not self.ensemble:
            return logits
        sums = (learned["ensemble"][:, None, None] * logits[1:]).cumsum(0)
        return jnp.concatenate([logits[:1], sums]) if trajectory else sums[-1]

    def rates(self, learned: Params) -> float | tuple[float, ...] | Array:
        """β, or a rate for each step."""
        return learned["lr"] if self.learn_lr else self.lr

    def starting_head(self, learned: Params, support: Array, labels: Array) -> Params:
        """The head before the first step: {'kernel': [F, N], 'bias': [N]}, or {'kernel', 'scale'} of cosines."""
        if self.start == "learned":
            return {name: learned[name] for name in ("kernel", "bias", "scale") if name in learned}
        way = check_way(self.way)
        if self.start == "zero":
            return {"kernel": jnp.zeros((support.shape[-1], way), support.dtype), "bias": jnp.zeros(way, support.dtype)}
        kernel = prototypes(support, labels, way).T
        if self.head == "cosine":
            return {"kernel": kernel, "scale": learned["scale"]}
        return {"kernel": 2 * kernel, "bias": -(kernel * kernel).sum(0)}

    @property
    def is_support_constant(self) -> bool:
        """Whether the support features have no derivative: in first order, unless the head starts from them."""
        return self.first_order and self.start != "prototypes"


def prototypes(features: Array, labels: Array, way: int) -> Array:
    """The mean of each class's features: [S, F] and int [S] -> [N, F]; zeros of a class without any."""
    one_hot = (labels[:, None] == jnp.arange(way)).astype(features.dtype)
    return one_hot.T @ features / jnp.maximum(one_hot.sum(0), 1)[:, None]


def check_way(way: int) -> int:
    """`way`, if it is a number of classes. Raises ConfigError."""
    if way < 2:
        raise ConfigError(f"way of the base-learner is {way}, expected the number of classes of a task, 2 or more")
    return way


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


def check_inner(inner: Any) -> None:
    """Raises ConfigError if a base-learner cannot be called, or an `Inner`'s values are unknown or contradictory."""
    if not isinstance(inner, Inner):
        if not callable(inner):
            raise ConfigError(f"inner is {inner!r}, expected an Inner or another base-learner, see mtl_jax.learners")
        return
    for name, allowed in (("adapt", ADAPT), ("head", HEADS), ("start", STARTS)):
        if getattr(inner, name) not in allowed:
            raise ConfigError(f"{name} is {getattr(inner, name)!r}, expected one of {', '.join(allowed)}")
    if inner.adapt == "head":
        return
    if inner.features != "plain":
        raise ConfigError(f"features is {inner.features!r}, expected 'plain': adapt {inner.adapt!r} reads no other")
    if inner.head != "linear" or inner.start != "learned" or inner.ensemble:
        raise ConfigError(
            f"adapt is {inner.adapt!r}, which moves a linear head with a learned start and makes no ensemble; head is "
            f"{inner.head!r}, start {inner.start!r}, ensemble {inner.ensemble}"
        )


def moved_part(inner: BaseLearner) -> str:
    """What the inner loop moves: 'head', or 'last_block' or 'all' of the backbone as well."""
    return getattr(inner, "adapt", "head")


def with_way(inner: BaseLearner, way: int) -> BaseLearner:
    """A base-learner for tasks of `way` classes, if it says for how many it is."""
    return inner._replace(way=way) if hasattr(inner, "way") and hasattr(inner, "_replace") else inner


def has_learned_classes(inner: BaseLearner) -> bool:
    """Whether a base-learner meta-learns something for each of N classes, which fits no other number of classes."""
    return isinstance(inner, Inner) and inner.start == "learned"

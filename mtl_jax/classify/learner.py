"""Any base-learner as the classifier of a support set: its logits, those of held-out rows, what a run's becomes.

Those of the package are compiled. A function of your own is called as it is, so it may use NumPy or any library.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import learners
from mtl_jax.classify import head
from mtl_jax.errors import ConfigError
from mtl_jax.learners import BaseLearner, Inner
from mtl_jax.solved_learners import Logistic, Prototypes, Ridge
from mtl_jax.types import Array, Params

NAMED = {kind.__name__: kind for kind in (Inner, Logistic, Prototypes, Ridge)}
_OF_NO_CLASS = ("scale", "lr", "ensemble")  # what an `Inner` learns that fits any number of classes


def of_run(inner: BaseLearner, learned: Params) -> dict[str, Any]:
    """The parameters of a FewShotClassifier for the base-learner of a run and what the run has learned of it.

    Columns that were learned for the classes of training tasks mean nothing for others, so a linear head starts from
    zero instead, and a cosine head, which cannot, from prototypes.
    """
    if isinstance(inner, Inner) and inner.start != "prototypes" and _options(inner) == _options(Inner(1, 1.0)):
        return {"steps": inner.steps, "lr": inner.lr}
    if learners.has_learned_classes(inner):
        inner = inner._replace(start="zero" if inner.head == "linear" else "prototypes")
        learned = {name: learned[name] for name in _OF_NO_CLASS if name in learned}
    return {"base_learner": inner, "learned": jax.tree.map(np.asarray, learned)}


def _options(inner: Inner) -> tuple[Any, ...]:
    return inner.head, inner.features, inner.learn_lr, inner.ensemble


def is_of_package(learner: BaseLearner) -> bool:
    """Whether a base-learner is a value of the package: name and numbers, without code of its own."""
    return type(learner) in NAMED.values()


def check(learner: Any) -> None:
    """Raises ConfigError for what is no base-learner, or one that moves the backbone."""
    if not isinstance(learner, Callable) or isinstance(learner, type):
        raise ConfigError(
            f"base_learner is {learner!r}, expected None, a value of {', '.join(NAMED)}, such as Ridge(way=5), or a "
            "function (learned, support, labels, query) -> logits"
        )
    if isinstance(learner, Inner):
        learners.check_inner(learner)
        if not isinstance(learner.lr, int | float | tuple):
            raise ConfigError(f"base_learner.lr is {learner.lr!r}, expected a number or a tuple with one for each step")
    if learners.moved_part(learner) != "head":
        raise ConfigError(f"base_learner adapts the backbone too (adapt={learner.adapt!r}): give adapt='head'")


def fitted(
    learner: BaseLearner, learned: Params | None, features: np.ndarray, labels: np.ndarray, way: int, *,
    temperature: float | None,
) -> dict[str, Any]:  # fmt: skip
    """The base-learner for `way` classes, what it takes first, and the temperature: {'base_learner', 'learned', ...}.

    Arguments as of FewShotClassifier.

    Raises:
      ConfigError: as `logits`.
    """
    learner = learners.with_way(learner, way)
    if learned is None:
        init = getattr(learner, "init", None)
        learned = init(jax.random.key(0), features.shape[1]) if init and way > 1 else {}
    try:
        logits(learner, learned, features, labels, features[:1], way)  # so that `fit` already says what is wrong
    except KeyError as error:
        if not is_of_package(learner):
            raise
        raise ConfigError(
            f"learned has no {error}, which {type(learner).__name__} takes; give learned=None for what its init makes"
        ) from error
    if temperature is None:
        temperature = calibrated(learner, learned, features, labels, way)
    return {"base_learner": learner, "learned": learned, "temperature": temperature}


def logits(
    learner: BaseLearner, learned: Params, support: np.ndarray, labels: np.ndarray, query: np.ndarray, way: int
) -> np.ndarray:
    """Query logits, float64 [Q, N].

    Args:
      learner, learned: from `fitted`.
      support, labels: [S, F], int [S], with rows of every class.
      query: [Q, F].
      way: N. With one class they are zero, and the base-learner is not asked.

    Raises:
      ConfigError: the base-learner gives something else than finite numbers [Q, N], or refuses what it is given.
    """
    if way == 1:
        return np.zeros((len(query), 1))
    arrays = jnp.asarray(support, jnp.float32), jnp.asarray(labels, jnp.int32)
    if is_of_package(learner):
        result = _compiled(learner, learned, *arrays, _pad(query))[: len(query)]
    else:
        result = learner(learned, *arrays, jnp.asarray(query, jnp.float32))
    return _checked(result, (len(query), way))


def check_fits(learner: BaseLearner, learned: Params, features: np.ndarray, labels: np.ndarray, way: int) -> None:
    """Raises an error, of which kind is not said, if a base-learner of the package cannot take such arrays."""
    if way > 1:
        shape = jax.eval_shape(functools.partial(_logits, learner), learned, features, labels, features[:1]).shape
        if shape != (1, way):
            raise ConfigError(f"a base-learner for {shape[-1]} classes, not {way}")


def held_out_logits(
    learner: BaseLearner, learned: Params, features: np.ndarray, labels: np.ndarray, way: int
) -> tuple[np.ndarray, np.ndarray]:
    """The logits of rows from a classifier that was fitted without them, and which rows: [R, N] and int [R].

    Rows are left out as in `head.held_out_logits`; only a class's single row never is.
    """
    rows = np.flatnonzero(np.bincount(labels, minlength=way)[labels] > 1)
    if way == 1 or not len(rows):
        return np.zeros((0, way)), rows[:0]
    folds = head.folds(labels[rows])
    sizes = np.bincount(folds)
    left_out, result = [], []
    for size in np.unique(sizes):
        out = np.stack([rows[folds == fold] for fold in np.flatnonzero(sizes == size)])
        kept = np.stack([np.setdiff1d(np.arange(len(labels)), each) for each in out])
        if is_of_package(learner):
            arrays = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
            result.append(_checked(_compiled_folds(learner, learned, *arrays, kept, out), (*out.shape, way)))
        else:
            pairs = zip(kept, out, strict=True)
            result.append([logits(learner, learned, features[k], labels[k], features[o], way) for k, o in pairs])
        left_out.append(out.ravel())
    return np.concatenate([np.reshape(each, (-1, way)) for each in result]), np.concatenate(left_out)


def calibrated(learner: BaseLearner, learned: Params, features: np.ndarray, labels: np.ndarray, way: int) -> float:
    """The temperature that suits the held-out rows, see `head.calibrate`; looked for around the size of the logits."""
    held_out, rows = held_out_logits(learner, learned, features, labels, way)
    size = float(np.std(held_out - held_out.mean(1, keepdims=True))) if len(rows) else 0.0
    return size * head.calibrate(held_out / size, labels[rows]) if size > 0 else 1.0


def to_plain(learner: BaseLearner) -> dict[str, Any]:
    """A base-learner of the package as plain JSON. Raises ConfigError for one of your own."""
    if not is_of_package(learner):
        raise ConfigError(
            f"base_learner is {getattr(learner, '__name__', repr(learner))}, code of your own, which no file can hold; "
            f"keep the support set and fit again, or use one of {', '.join(NAMED)}"
        )
    return {"name": type(learner).__name__, **learner._asdict()}


def from_plain(content: Mapping[str, Any]) -> BaseLearner:
    """The inverse of `to_plain`. Raises KeyError, TypeError or ConfigError for what is none."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    learner = NAMED[options.pop("name")](**options)
    check(learner)
    return learner


def _checked(result: Any, shape: tuple[int, ...]) -> np.ndarray:
    result = np.asarray(result, np.float64)
    if result.shape != shape:
        raise ConfigError(
            f"base_learner gives logits {list(result.shape)} for {shape[-2]} rows and {shape[-1]} classes, expected "
            f"{list(shape)}; if it has learned its classes (`learned`), they fit no other number of classes"
        )
    if not np.isfinite(result).all():
        raise ConfigError("base_learner gives logits that are not finite; give a smaller rate, or scaled features")
    return result


def _pad(query: np.ndarray) -> np.ndarray:
    """Adds rows of zeros up to the next power of two, so that few shapes are compiled."""
    missing = (1 << (len(query) - 1).bit_length()) - len(query)
    return np.pad(np.asarray(query, np.float32), ((0, missing), (0, 0)))


def _logits(learner: BaseLearner, learned: Params, support: Array, labels: Array, query: Array) -> Array:
    if not isinstance(learner, Inner):
        return learner(learned, support, labels, query)
    counts = (labels[:, None] == jnp.arange(learner.way)).sum(0)
    weights = 1 / counts[labels]  # every class counts the same
    return learner(learned, support, labels, query,
                   weights=weights if learner.loss_scale == "per_shot" else weights / learner.way)  # fmt: skip


@functools.partial(jax.jit, static_argnames="learner")
def _compiled(learner: BaseLearner, learned: Params, support: Array, labels: Array, query: Array) -> Array:
    return _logits(learner, learned, support, labels, query)


@functools.partial(jax.jit, static_argnames="learner")
def _compiled_folds(
    learner: BaseLearner, learned: Params, features: Array, labels: Array, kept: Array, left_out: Array
) -> Array:
    def one_fold(rows: tuple[Array, Array]) -> Array:
        kept, left_out = rows
        return _logits(learner, learned, features[kept], labels[kept], features[left_out])

    return jax.lax.map(one_fold, (kept, left_out))

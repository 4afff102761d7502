"""Heads that the field tests with, beside MTL's own: on features of length 1 of a network's images, task by task."""

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mtl_jax.data import Split
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation import Model, Tasks, embed_all

HEADS = ("logistic", "centroid")
JOBS = 2  # processes
_EACH = 250  # tasks that a process is given at once


def accuracies(model: Model, split: Split, tasks: Tasks, head: str) -> np.ndarray:
    """The accuracy of one of `HEADS` on every task.

    Args:
      model: a network whose batch norm has running averages, such as a `Kept`'s or that of `network.trained`.
      split: the images.
      tasks: frozen ones, or `evaluation.sample_all(split.table(), protocol)`; way and shot are theirs.
      head: 'logistic', RFS' (arXiv 2003.11539): scikit-learn's logistic regression with C = 1; 'centroid': the class
        whose support features have the nearest mean.

    Returns:
      float64 [tasks].

    Raises:
      ConfigError: another head; or the network runs by batch statistics, so that features depend on the task.
    """
    if model.embed.batch_statistics == "batch":
        raise ConfigError("meta.batch_norm is 'batch'; heads are tested on features by running averages")
    model = model._replace(embed=model.embed._replace(batch_statistics="running"))
    return of_features(np.asarray(embed_all(model, split.images)), tasks, head, JOBS)


def of_features(features: np.ndarray, tasks: Tasks, head: str, jobs: int) -> np.ndarray:
    """As `accuracies`, from the features [M, F] of the split's images, which are brought to length 1 here."""
    if head not in HEADS:
        raise ConfigError(f"head is {head!r}, expected one of {', '.join(HEADS)}")
    unit = features / np.sqrt((features * features).sum(1, keepdims=True) + 1e-12)
    parts = [Tasks(*(part[start : start + _EACH] for part in tasks)) for start in range(0, len(tasks.query), _EACH)]
    return np.concatenate(joblib.Parallel(jobs)(joblib.delayed(_test)(unit, part, head) for part in parts))


def _test(unit: np.ndarray, tasks: Tasks, head: str) -> np.ndarray:
    with threadpool_limits(1):  # a task's matrices are small: threads would wait for one another
        return np.array([_accuracy(unit, *task, head) for task in zip(*tasks, strict=True)])


def _accuracy(unit: np.ndarray, support: np.ndarray, query: np.ndarray, head: str) -> float:
    """Of one task: support [N, K] and query [N, Q], rows of `unit`."""
    labels, wanted = (np.repeat(np.arange(len(rows)), rows.shape[1]) for rows in (support, query))
    if head == "logistic":
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(unit[support.ravel()], labels)
        return float((fitted.predict(unit[query.ravel()]) == wanted).mean())
    centroids = unit[support].mean(1)
    distances = (centroids * centroids).sum(1) - 2 * unit[query.ravel()] @ centroids.T  # and |z|^2, alike for all
    return float((distances.argmin(1) == wanted).mean())

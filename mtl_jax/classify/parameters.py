"""The parameters of a FewShotClassifier, checked when it is fitted, as scikit-learn's estimators do."""

from numbers import Real
from typing import Any

import numpy as np

from mtl_jax.classify import head, learner, unknown
from mtl_jax.errors import ConfigError

UNKNOWN = "unknown"
UNKNOWN_NUMBER = -1


def check(classifier: Any, classes: np.ndarray) -> None:
    """Raises ConfigError for a parameter that cannot be, or an `unknown_label` that is one of the classes [N]."""
    steps, lr, temperature = classifier.steps, classifier.lr, classifier.temperature
    if not (isinstance(steps, int | np.integer) and steps > 0):
        raise ConfigError(f"steps is {steps!r}, expected a positive whole number")
    if lr != head.AUTO_LR and not (isinstance(lr, int | float) and lr > 0):
        raise ConfigError(f"lr is {lr!r}, expected a positive number or {head.AUTO_LR!r}")
    if classifier.base_learner is not None:
        learner.check(classifier.base_learner)
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"temperature is {temperature!r}, expected a positive number or None")
    if classifier.unknown_threshold is None:
        return
    threshold, false_alarms = classifier.unknown_threshold, classifier.false_alarms
    if threshold != unknown.AUTO and not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):
        raise ConfigError(f"unknown_threshold is {threshold!r}, expected a probability, {unknown.AUTO!r} or None")
    if not 0 <= false_alarms < 1:
        raise ConfigError(f"false_alarms is {false_alarms!r}, expected a share of images, such as 0.05")
    label = unknown_label(classifier, classes)
    if label in classes.tolist():
        raise ConfigError(f"{label!r} is a class of its own; give another unknown_label (--unknown-label)")


def unknown_label(classifier: Any, classes: np.ndarray) -> Any:
    """What a classifier answers below its threshold."""
    if classifier.unknown_label is not None:
        return classifier.unknown_label
    return UNKNOWN if classes.dtype.kind in "UO" else UNKNOWN_NUMBER

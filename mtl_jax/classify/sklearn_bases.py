"""scikit-learn's base classes where it is installed, and the little of them that is needed where it is not."""

import inspect
from typing import Any

import numpy as np

from mtl_jax.errors import MtlError

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import DataConversionWarning, NotFittedError
except ImportError:

    class NotFittedError(MtlError, AttributeError):
        """Something was asked of an estimator before `fit`."""

    class DataConversionWarning(UserWarning):
        """Labels came in another shape than asked for."""

    class ClassifierMixin:
        """What makes an estimator a classifier."""

        _estimator_type = "classifier"

        def score(self, X: Any, y: Any) -> float:
            """The fraction of right answers."""
            return float(np.mean(self.predict(X) == np.asarray(y)))

    class BaseEstimator:
        """Parameters are what `__init__` takes, kept under their own names."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """The parameters by name."""
            return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

        def set_params(self, **params: Any) -> "BaseEstimator":
            """Changes parameters. Raises ValueError for an unknown one."""
            for name, value in params.items():
                if name not in self.get_params():
                    raise ValueError(f"Invalid parameter {name!r} for estimator {self}")
                setattr(self, name, value)
            return self

        def __repr__(self) -> str:
            given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
            return f"{type(self).__name__}({given})"


__all__ = ["BaseEstimator", "ClassifierMixin", "DataConversionWarning", "NotFittedError"]

"""FewShotClassifier, a scikit-learn estimator: fit it on a few images of each class, then predict others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mtl_jax.classify import file, head, inputs
from mtl_jax.classify.inputs import UNKNOWN_SOURCE, Source
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.export import embedding

UNKNOWN = "unknown"
UNKNOWN_NUMBER = -1
PRETRAINED = "fc100-conv4"
FLOATS = [np.float64, np.float32]  # other dtypes become the first


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """MTL's meta-test for any number of classes and any number of images of each, equal or not.

    The head starts at zero and takes `steps` gradient steps on the class-balanced loss over the support images. The
    backbone does not change. X can be images or features. Images: a sequence of paths, Pillow images or arrays, uint8
    [H, W] or [H, W, C]; or one array, uint8 [B, H, W] or [B, H, W, C]. Features: a 2-D array [B, F].

    Args:
      embed: stored images uint8 [B, H, W, C] -> features [B, F], as `from_workdir` gives it. With None, X is features.
      steps: number of gradient steps.
      lr: step size. 'auto' centres the features and takes the largest step that never increases the loss.
      temperature: divides the logits. None: calibrated on the support set, by leaving images out.
      unknown_threshold: `predict` answers `unknown_label` if no class is at least this probable. None: never.
      unknown_label: None: 'unknown' if the classes are text, -1 if they are numbers.
      image_size: images are resized (shorter side, bilinear) and cropped to this square for `embed`; 0: left as they
        are.
      channels: 1 or 3; 0: as many as the image has.

    Attributes:
      classes_: sorted.
      coef_, intercept_: the head, [F, N] and [N].
      temperature_: the temperature in use.
      support_features_, support_labels_: [S, F], and positions in `classes_`, [S].
      support_images_: where each support row came from, [S] (see `inputs.Source`); not saved.
      n_features_in_: F.

    Example:
      classifier = FewShotClassifier.from_workdir('runs/glyphs').fit(['a1.png', 'a2.png', 'b1.png'], ['a', 'a', 'b'])
      classifier.predict(['x.png', 'y.png'])
    """

    def __init__(
        self,
        embed: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        steps: int = 100,
        lr: float | str = head.AUTO_LR,
        temperature: float | None = None,
        unknown_threshold: float | None = None,
        unknown_label: Any = None,
        image_size: int = 0,
        channels: int = 0,
    ) -> None:
        self.embed = embed
        self.steps = steps
        self.lr = lr
        self.temperature = temperature
        self.unknown_threshold = unknown_threshold
        self.unknown_label = unknown_label
        self.image_size = image_size
        self.channels = channels

    @classmethod
    def from_workdir(cls, path: str | Path, **parameters: Any) -> "FewShotClassifier":
        """A classifier with the network of a run of train.py, and the inner loop of that run's evaluation.

        Args:
          path: the workdir.
          **parameters: as for the class, e.g. unknown_threshold=0.5 or another number of steps.

        Raises:
          MtlError: no such run; or its features depend on other images (see `embedding.load`) or on the task, or its
            inner loop changes them before the head.
        """
        embed = embedding.load(path)
        if embed.inner.adapt != "head":
            raise ConfigError(
                f"{path}: its inner loop adapts the backbone too (inner.adapt={embed.inner.adapt!r}); "
                "a FewShotClassifier adapts the head alone: give a run with inner.adapt='head'"
            )
        if embed.inner.features != "plain":
            raise ConfigError(
                f"{path}: its head takes {embed.inner.features!r} features (inner.features), which a "
                "FewShotClassifier cannot make: give a run with inner.features='plain'"
            )
        return cls(embed, **{"steps": embed.inner.steps, "lr": embed.inner.lr, **parameters})

    @classmethod
    def from_pretrained(cls, name: str = PRETRAINED, **parameters: Any) -> "FewShotClassifier":
        """A classifier with a network that comes with the package, so that no training run is needed.

        Args:
          name: the network. 'fc100-conv4' was trained on 60 classes of CIFAR-100 at 32 x 32 pixels. It is a start: a
            network trained on images like yours will do better. docs/results.md has its measured accuracy.
          **parameters: as for the class. `lr` stays 'auto' unless given, since your images differ from its own.

        Raises:
          CheckpointError: no such network.
        """
        return cls(embedding.pretrained(name), **parameters)

    def fit(self, X: Any, y: Sequence[Any]) -> "FewShotClassifier":
        """Learns the classes of `y` from this support set alone, and forgets what was learned before.

        Args:
          X: images or features, see the class.
          y: one label per row: text or whole numbers.

        Raises:
          DataError: an image cannot be read, or has two labels.
          ValueError: labels or features that cannot be learned from.
        """
        return self._fit(*self._validated(X, y, reset=True))

    def partial_fit(self, X: Any, y: Sequence[Any], classes: Any = None) -> "FewShotClassifier":
        """Adds images of new or known classes to the support set and fits the head again.

        Images that were given before are not embedded again.

        Args:
          X, y: as for `fit`.
          classes: all labels that will ever come, as in scikit-learn's incremental learners. Only used to check `y`: a
            class without images is never predicted.
        """
        unexpected = [] if classes is None else np.setdiff1d(y, classes)
        if len(unexpected):
            raise ValueError(f"y has {unexpected[0]!r}, which is not in classes")
        if not hasattr(self, "classes_"):
            return self.fit(X, y)
        features, labels, sources = self._validated(X, y, reset=False)
        if labels.dtype.kind != self.classes_.dtype.kind and "U" in (labels.dtype.kind, self.classes_.dtype.kind):
            raise ValueError(f"y has labels like {labels[0]!r}, the classes so far are like {self.classes_[0]!r}")
        loaded_sources = [UNKNOWN_SOURCE] * len(self.support_labels_)  # a file has none
        return self._fit(
            np.concatenate([self.support_features_, features]),
            np.concatenate([self.classes_[self.support_labels_], labels]),
            [*getattr(self, "support_images_", loaded_sources), *sources],
        )

    def refit(self) -> "FewShotClassifier":
        """Fits the head again on the same support set: after `set_params`, or after `load`."""
        return self._fit_head(self.support_features_, self.classes_, self.support_labels_)

    def _fit(self, features: np.ndarray, labels: np.ndarray, sources: list[Source]) -> "FewShotClassifier":
        inputs.check_copies(sources, labels)
        classes, positions = np.unique(labels, return_inverse=True)
        self._fit_head(features, classes, positions)
        self.support_images_ = sources
        return self

    def _fit_head(self, features: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> "FewShotClassifier":
        self._check_parameters(classes)
        self.classes_, self.support_features_, self.support_labels_ = classes, features, labels.astype(np.int32)
        way = len(classes)
        centre, lr = head.centre_and_rate(features, labels, way, self.lr)
        loop = {"steps": self.steps, "lr": lr}
        fitted = head.fit_head(features - centre, labels, way, **loop)
        self.coef_, self.intercept_ = fitted["kernel"], fitted["bias"] - centre @ fitted["kernel"]
        self.temperature_ = self.temperature
        if self.temperature is None:
            held_out = head.held_out_logits(features - centre, labels, way, **loop)
            self.temperature_ = head.calibrate(held_out, labels)
        return self

    def _check_parameters(self, classes: np.ndarray) -> None:
        if not (isinstance(self.steps, int | np.integer) and self.steps > 0):
            raise ConfigError(f"steps is {self.steps!r}, expected a positive whole number")
        if self.lr != head.AUTO_LR and not (isinstance(self.lr, int | float) and self.lr > 0):
            raise ConfigError(f"lr is {self.lr!r}, expected a positive number or {head.AUTO_LR!r}")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature!r}, expected a positive number or None")
        if self.unknown_threshold is None:
            return
        if not 0 <= self.unknown_threshold <= 1:
            raise ConfigError(f"unknown_threshold is {self.unknown_threshold!r}, expected a probability or None")
        if self._unknown(classes) in classes.tolist():
            raise ConfigError(f"{self._unknown(classes)!r} is a class of its own; give another unknown_label")

    def _unknown(self, classes: np.ndarray) -> Any:
        if self.unknown_label is not None:
            return self.unknown_label
        return UNKNOWN if classes.dtype.kind in "UO" else UNKNOWN_NUMBER

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, [B, N], with columns in the order of `classes_`."""
        check_is_fitted(self, "classes_")
        features, _ = self._embedded(X)
        logits = validate_data(self, features, reset=False, dtype=FLOATS) @ self.coef_ + self.intercept_
        return np.exp(head.log_softmax(logits / self.temperature_))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, or `unknown_label` if it is less probable than `unknown_threshold`."""
        return self.answers(self.predict_proba(X))

    def answers(self, probabilities: np.ndarray) -> np.ndarray:
        """What `predict` answers, [B], given the result of `predict_proba`, [B, N]."""
        likeliest = self.classes_[probabilities.argmax(1)]
        if self.unknown_threshold is None:
            return likeliest
        is_unknown = probabilities.max(1) < self.unknown_threshold
        label = np.array(self._unknown(self.classes_), object if likeliest.dtype == object else None)
        return np.where(is_unknown, label, likeliest)

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray, list[Source]]:
        """The features, labels and sources of a support set."""
        features, sources = self._embedded(X)
        features, labels = validate_data(self, features, y, reset=reset, dtype=FLOATS)
        inputs.check_labels(labels)
        return features, labels, sources or [UNKNOWN_SOURCE] * len(labels)

    def _embedded(self, X: Any) -> tuple[Any, list[Source] | None]:
        """The features of images and their sources; or X itself and None if it is features already."""
        inputs.refuse_single(X)
        if not inputs.is_images(X):
            return X, None
        if self.embed is None:
            raise DataError("X is images, but the classifier has no embed: make it by from_workdir, or give embed")
        images, sources = inputs.load_images(X, self.image_transform)
        return np.asarray(self.embed(images)), sources

    # Not named `transform`: scikit-learn takes what has one for a transformer.
    @property
    def image_transform(self) -> Transform:
        """How images are prepared for `embed`."""
        if self.image_size or self.channels:
            return Transform(self.image_size, channels=self.channels, convert=True)
        return getattr(self.embed, "transform", Transform(convert=True))

    def save(self, path: str | Path) -> None:
        """Writes the head, class names, support features and labels, and the backbone's fingerprint to one small file.

        The format is safetensors. The backbone is not in it: give it to `load` again.

        Raises:
          MtlError: the file cannot be written. NotFittedError: there is nothing to save.
        """
        file.write(self, path)

    @classmethod
    def load(cls, path: str | Path, embed: Any = None) -> "FewShotClassifier":
        """Reads a saved classifier.

        Args:
          path: the file.
          embed: the backbone it was fitted with: a workdir's path or a function. With None, it takes features only.

        Raises:
          CheckpointError: the file is missing or damaged, or `embed` is not the backbone that it was fitted with.
        """
        return file.read(cls, path, embed)

"""A few-shot classifier for use, as a scikit-learn estimator: fit on some images of each class, predict others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.classify import feature_input, few_shot_head, image_input, support_copies
from mtl_jax.classify.feature_input import check_labels
from mtl_jax.classify.sklearn_bases import BaseEstimator, ClassifierMixin, NotFittedError
from mtl_jax.classify.support_copies import Known
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import ConfigError, DataError

UNKNOWN = "unknown"
PRETRAINED = "fc100-conv4"
UNKNOWN_NUMBER = -1


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """MTL's meta-test for any number of classes and any, also unequal, numbers of images of each.

    The head starts at zero and takes `steps` gradient steps on the class-balanced loss over the given (support) images;
    the backbone stays as it is. Where X is wanted, these are taken: paths, Pillow images, arrays uint8 [H, W] or
    [H, W, C], sequences of them, arrays uint8 [B, H, W] or [B, H, W, C]; a 2-D X [B, F] is features already.

    Args:
      embed: stored images uint8 [B, H, W, C] -> features [B, F]; None takes features only. `from_workdir` gives one.
      steps: inner steps.
      lr: their size; 'auto': features are centred, and the step is the largest that never raises the loss.
      temperature: the logits are divided by it; None calibrates it on the support set by leave-one-out.
      unknown_threshold: where no class is at least as probable, `predict` answers `unknown_label`; None: never.
      unknown_label: None: 'unknown' where the classes are texts, -1 where they are numbers.
      image_size: images are resized (shorter side, bilinear) and cut to this square for `embed`; 0: not at all.
      channels: 1 or 3; 0: as they are.

    Attributes:
      classes_: sorted. coef_, intercept_: the head, [F, N] and [N]. temperature_: the one in use.
      support_features_ [S, F], support_labels_ [S] (positions in `classes_`), support_images_ [S] (digest and name of
      each, see `support_copies`; not saved). n_features_in_: F.

    Example:
      classifier = FewShotClassifier.from_workdir('runs/glyphs').fit(['a1.png', 'a2.png', 'b1.png'], ['a', 'a', 'b'])
      classifier.predict(['x.png', 'y.png'])
    """

    def __init__(
        self,
        embed: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        steps: int = 100,
        lr: float | str = few_shot_head.AUTO_LR,
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
        """A classifier with the network of a run of train.py, and with the inner loop of that run's evaluation.

        Args:
          path: the workdir.
          **parameters: as for the class, e.g. unknown_threshold=0.5, or another number of steps.

        Raises:
          MtlError: no such run, or one whose features depend on the images beside an image (see `embedding.load`).
        """
        from mtl_jax.export import embedding

        embed = embedding.load(path)
        if embed.inner.adapt != "head":
            raise ConfigError(
                f"{path}: its inner loop adapts the backbone as well (inner.adapt={embed.inner.adapt!r}); "
                "a FewShotClassifier adapts the head alone: give a run with inner.adapt='head'"
            )
        if embed.inner.features != "plain":
            raise ConfigError(
                f"{path}: its head stands on {embed.inner.features!r} features (inner.features), which a "
                "FewShotClassifier does not make: give a run with inner.features='plain'"
            )
        return cls(embed, **{"steps": embed.inner.steps, "lr": embed.inner.lr, **parameters})

    @classmethod
    def from_pretrained(cls, name: str = PRETRAINED, **parameters: Any) -> "FewShotClassifier":
        """A classifier with a network that comes with the package: photographs at once, without a training run.

        Args:
          name: of the network. 'fc100-conv4' was trained on 60 classes of CIFAR-100 at 32 x 32 pixels: a start, which
            a network trained on images like one's own will beat; docs/results.md has its measured accuracy.
          **parameters: as for the class. Unless given, lr='auto', since its images are of another kind than yours.

        Raises:
          CheckpointError: no such network.
        """
        from mtl_jax.export import embedding

        return cls(embedding.pretrained(name), **parameters)

    def fit(self, X: Any, y: Sequence[Any]) -> "FewShotClassifier":
        """Learns the classes of `y` from the support set alone; what was learned before is forgotten.

        Args:
          X: images or features, see the class.
          y: a label each: texts or whole numbers.

        Raises:
          DataError: an image that cannot be read, or that is there under two labels.
          ValueError: labels or features that cannot be learned from.
        """
        features, known = self._embedded(X, reset=True)
        y = check_labels(y, len(features))
        support_copies.check(known, y)
        self.support_images_ = known
        classes, labels = np.unique(y, return_inverse=True)
        return self._fit(features, classes, labels)

    def partial_fit(self, X: Any, y: Sequence[Any], classes: Any = None) -> "FewShotClassifier":
        """Adds images of new or known classes to the support set and fits the head again; nothing is embedded twice.

        Args:
          X, y: as `fit`.
          classes: all labels that will ever come, as scikit-learn's incremental learners want it at their first call.
            A class without images is not answered, so it is only checked that `y` has no others.
        """
        if not hasattr(self, "classes_"):
            self._check_known(y, classes)
            return self.fit(X, y)
        features, known = self._embedded(X, reset=False)
        new = self._check_known(check_labels(y, len(features)), classes)
        if new.dtype.kind != self.classes_.dtype.kind and "U" in (new.dtype.kind, self.classes_.dtype.kind):
            raise ValueError(f"y has labels like {new[0]!r}, the classes so far are like {self.classes_[0]!r}")
        every = np.concatenate([self.classes_[self.support_labels_], new])
        known = [
            *getattr(self, "support_images_", [Known(b"", "")] * len(self.support_labels_)),
            *known,
        ]  # `load` has none
        support_copies.check(known, every)
        self.support_images_ = known
        names, labels = np.unique(every, return_inverse=True)
        return self._fit(np.concatenate([self.support_features_, features]), names, labels)

    def refit(self) -> "FewShotClassifier":
        """Fits the head again on the same support set: after `set_params`, or on what `load` has read."""
        return self._fit(self.support_features_, self.classes_, self.support_labels_)

    @staticmethod
    def _check_known(y: Any, classes: Any) -> np.ndarray:
        surplus = [] if classes is None else np.setdiff1d(y, classes)
        if len(surplus):
            raise ValueError(f"y has {surplus[0]!r}, which is not in classes")
        return np.asarray(y)

    def _fit(self, features: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> "FewShotClassifier":
        self._check_parameters(classes)
        self.classes_, self.support_features_, self.support_labels_ = classes, features, labels.astype(np.int32)
        self.n_features_in_, way = features.shape[1], len(classes)
        centre, lr = few_shot_head.centre_and_rate(features, labels, way, self.lr)
        loop = {"steps": self.steps, "lr": lr}
        head = few_shot_head.fit_head(features - centre, labels, way, **loop)
        self.coef_, self.intercept_ = head["kernel"], head["bias"] - centre @ head["kernel"]
        self.temperature_ = self.temperature
        if self.temperature is None:
            held_out = few_shot_head.held_out_logits(features - centre, labels, way, **loop)
            self.temperature_ = few_shot_head.calibrate(held_out, labels)
        return self

    def _check_parameters(self, classes: np.ndarray) -> None:
        if not (isinstance(self.steps, int | np.integer) and self.steps > 0):
            raise ConfigError(f"steps is {self.steps!r}, expected a positive whole number")
        if self.lr != few_shot_head.AUTO_LR and not (isinstance(self.lr, int | float) and self.lr > 0):
            raise ConfigError(f"lr is {self.lr!r}, expected a positive number or {few_shot_head.AUTO_LR!r}")
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
        """Probabilities of the classes: [B, N], columns in the order of `classes_`."""
        if not hasattr(self, "classes_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        logits = self._features(X, reset=False) @ self.coef_ + self.intercept_
        return np.exp(few_shot_head.log_softmax(logits / self.temperature_))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, or `unknown_label` where that is less than `unknown_threshold`."""
        return self.answers(self.predict_proba(X))

    def answers(self, probabilities: np.ndarray) -> np.ndarray:
        """What `predict` answers for what `predict_proba` has returned: [B, N] -> [B]."""
        found = self.classes_[probabilities.argmax(1)]
        if self.unknown_threshold is None:
            return found
        unknown = probabilities.max(1) < self.unknown_threshold
        return np.where(unknown, np.array(self._unknown(self.classes_), found.dtype if found.dtype == object else None),
                        found)  # fmt: skip

    def _features(self, x: Any, *, reset: bool) -> np.ndarray:
        return self._embedded(x, reset=reset)[0]

    def _embedded(self, x: Any, *, reset: bool) -> tuple[np.ndarray, list[Known]]:
        """The features of X, and what is known of each of its images."""
        image_input.refuse_single(x)
        expected = None if reset else self.n_features_in_
        if not image_input.is_images(x):
            features = feature_input.check_features(x, expected, type(self).__name__)
            return features, [Known(b"", "")] * len(features)
        if self.embed is None:
            raise DataError("X is images, but the classifier has no embed: make it by from_workdir, or give embed")
        loaded = image_input.load_images(x, self.image_transform)
        features = np.asarray(self.embed(loaded.images))
        return feature_input.check_features(features, expected, type(self).__name__), loaded.known

    @property
    def image_transform(self) -> Transform:
        """How images are brought to what `embed` takes. (What has a `transform` is a transformer to scikit-learn.)"""
        if self.image_size or self.channels:
            return Transform(self.image_size, channels=self.channels, convert=True)
        return getattr(self.embed, "transform", Transform(convert=True))

    def save(self, path: str | Path) -> None:
        """Writes head, class names, support features and labels, and the backbone's fingerprint as one small file.

        The format is safetensors. The backbone itself is not in it: `load` is given it again.

        Raises:
          MtlError: the file cannot be written. NotFittedError: there is nothing to save.
        """
        from mtl_jax.classify import file

        file.write(self, path)

    @classmethod
    def load(cls, path: str | Path, embed: Any = None) -> "FewShotClassifier":
        """A classifier that was saved.

        Args:
          path: the file.
          embed: the backbone it was fitted with: the workdir's path, or the function; None takes features only.

        Raises:
          CheckpointError: the file is damaged or no such file, or `embed` is another backbone than that of `save`.
        """
        from mtl_jax.classify import file

        return file.read(cls, path, embed)

"""FewShotClassifier, a scikit-learn estimator: fit it on a few images of each class, then predict others."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mtl_jax.classify import file, folders, head, inputs, learner, measured, parameters, unknown
from mtl_jax.classify.inputs import UNKNOWN_SOURCE, Loaded, Source
from mtl_jax.data.transforms import MAX_PIXELS, Transform
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.export import embedding
from mtl_jax.learners import BaseLearner, moved_part
from mtl_jax.types import Params

PRETRAINED = "imagenet-lite0"
FITTED = ("coef_", "intercept_", "base_learner_", "learned_")  # the first two or the last two
FLOATS = [np.float64, np.float32]  # other dtypes become the first


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """MTL's meta-test for any number of classes and any number of images of each, equal or not.

    The head starts at zero and takes `steps` gradient steps on the class-balanced loss over the support images, unless
    `base_learner` says otherwise. The backbone does not change. X can be images or features. Images: a sequence of
    paths, Pillow images or arrays, uint8 [H, W] or [H, W, C]; or one array, uint8 [B, H, W] or [B, H, W, C]. Features:
    a 2-D array [B, F].

    Args:
      embed: stored images uint8 [B, H, W, C] -> features [B, F], as `from_workdir` gives it, or a network of
        `reference_weights.load_network`. With None, X is features.
      steps: number of gradient steps.
      lr: step size. 'auto' centres the features and takes the largest step that never increases the loss.
      temperature: divides the logits. None: calibrated on the support set, by leaving images out; for networks of the
        package, from what was measured on other classes too.
      unknown_threshold: `predict` answers `unknown_label` if no class is at least this probable. 'auto': if the image
        is less like the support set than nearly all of that is itself (see `false_alarms`). None: never.
      false_alarms: with 'auto', the share of the support images, each left out in turn, that would be unknown.
      unknown_label: None: 'unknown' if the classes are text, -1 if they are numbers.
      image_size: images are resized (shorter side, bilinear) and cropped to this square for `embed`; 0: left as they
        are.
      channels: 1 or 3; 0: as many as the image has.
      max_pixels: an image with more in its file is not read.
      base_learner: instead of `steps` and `lr`, any base-learner: `Prototypes`, `Ridge` or `Logistic` of
        `mtl_jax.solved_learners`, a `mtl_jax.learners.Inner`, or a function (learned, support features [S, F], labels
        int [S], query features [Q, F]) -> logits [Q, N]. Its `way` is replaced by the number of classes.
      learned: what the base-learner takes first. None: what its `init` makes; {} if it has none.

    Attributes:
      classes_: sorted.
      coef_, intercept_: the head, [F, N] and [N]; not with a `base_learner`.
      base_learner_, learned_: the `base_learner` for this number of classes, and what it takes first.
      temperature_: the temperature in use.
      is_calibrated_: False if nothing tells the temperature: one image a class, and none measured for the network.
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
        steps: int = head.STEPS,
        lr: float | str = head.AUTO_LR,
        temperature: float | None = None,
        unknown_threshold: float | str | None = None,
        false_alarms: float = 0.05,
        unknown_label: Any = None,
        image_size: int = 0,
        channels: int = 0,
        max_pixels: int = MAX_PIXELS,
        base_learner: BaseLearner | None = None,
        learned: Params | None = None,
    ) -> None:
        self.embed = embed
        self.steps = steps
        self.lr = lr
        self.temperature = temperature
        self.unknown_threshold = unknown_threshold
        self.false_alarms = false_alarms
        self.unknown_label = unknown_label
        self.image_size = image_size
        self.channels = channels
        self.max_pixels = max_pixels
        self.base_learner = base_learner
        self.learned = learned

    @classmethod
    def from_workdir(cls, path: str | Path, **parameters: Any) -> "FewShotClassifier":
        """A classifier with the network of a run of train.py, and the base-learner of that run's evaluation.

        What the run has learned of its base-learner is used, but for what belongs to its training classes: a linear
        head starts from zero, a cosine head from prototypes.

        Args:
          path: the workdir.
          **parameters: as for the class, e.g. unknown_threshold=0.5, another number of steps, or another base_learner.

        Raises:
          MtlError: no such run; or its features depend on other images (see `embedding.load`) or on the task; or
            `steps`, `lr` or `learned` is given, and its base-learner is more than a linear head.
        """
        embed = embedding.load(path)
        if moved_part(embed.inner) != "head":
            raise ConfigError(
                f"{path}: its inner loop adapts the backbone too (inner.adapt={embed.inner.adapt!r}); "
                "a FewShotClassifier adapts the head alone: give a run with inner.adapt='head'"
            )
        own = {} if "base_learner" in parameters else learner.of_run(embed.inner, embed.head)
        if "base_learner" in own and (ignored := {"steps", "lr", "learned"}.intersection(parameters)):
            raise ConfigError(
                f"{path}: its base-learner is {own['base_learner']}, to which {min(ignored)} does not apply; "
                "give another base_learner instead"
            )
        return cls(embed, **{**own, **parameters})

    @classmethod
    def from_pretrained(cls, name: str | Path = PRETRAINED, **parameters: Any) -> "FewShotClassifier":
        """A classifier with a network that others have trained, so that no training run is needed.

        Args:
          name: the network: one that comes with the package, or a weight file. 'imagenet-lite0' was trained on
            ImageNet's 1000 classes at 224 x 224 pixels, 'fc100-conv4' on 60 classes of CIFAR-100 at 32 x 32;
            docs/own_images.md has their measured accuracy. Files are a ResNet, vision transformer or MobileNetV2 of
            torchvision, timm, DINO or Hugging Face, or 'hf-hub:owner/name'; see `reference_weights.load_network`, whose
            result is an `embed` too, where it needs options.
          **parameters: as for the class. `lr` stays 'auto' unless given, since your images differ from its own.

        Raises:
          CheckpointError: no such network.
        """
        return cls(embedding.named(name), **parameters)

    def fit(self, X: Any, y: Sequence[Any], *, errors: str = "raise") -> "FewShotClassifier":
        """Learns the classes of `y` from this support set alone, and forgets what was learned before.

        Args:
          X: images or features, see the class.
          y: one label per row: text or whole numbers.
          errors: of images that cannot be read. 'raise', or 'skip': they are left out, and one warning names them.

        Raises:
          DataError: an image cannot be read or has two labels, or no image of a class can be read.
          ValueError: labels or features that cannot be learned from.
        """
        return self._fit(*self._validated(X, y, errors, reset=True))

    def fit_folder(self, folder: str | Path, *, errors: str = "raise") -> "FewShotClassifier":
        """As `fit`, on a folder that has one folder of images per class; classes are called after their folders.

        Which files are images is decided by what they hold, whatever their names. One warning names all others.

        Args:
          folder: its path.
          errors: as in `fit`.

        Raises:
          DataError: as `fit`; no such folder, an image in no class folder, or a class folder without images.
        """
        support = folders.find_support(Path(folder))
        inputs.warn_of_left_out(support.left_out)
        return self.fit(support.files, support.classes, errors=errors)

    def partial_fit(
        self, X: Any, y: Sequence[Any], classes: Any = None, *, errors: str = "raise"
    ) -> "FewShotClassifier":
        """Adds images of new or known classes to the support set and fits the head again.

        Images that were given before are not embedded again.

        Args:
          X, y, errors: as for `fit`.
          classes: all labels that will ever come, as in scikit-learn's incremental learners. Only used to check `y`: a
            class without images is never predicted.
        """
        unexpected = [] if classes is None else np.setdiff1d(y, classes)
        if len(unexpected):
            raise ValueError(f"y has {unexpected[0]!r}, which is not in classes")
        if not hasattr(self, "classes_"):
            return self.fit(X, y, errors=errors)
        features, labels, sources = self._validated(X, y, errors, reset=False)
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
        parameters.check(self, classes)
        way, labels = len(classes), labels.astype(np.int32)
        if self.base_learner is None:
            is_default = self.lr == head.AUTO_LR and self.steps == head.STEPS  # what temperatures were measured for
            network = getattr(self.embed, "name", "") if is_default else ""
            known = measured.temperature(network, features, labels, way)
            fitted = head.fitted(
                features, labels, way, steps=self.steps, lr=self.lr, temperature=self.temperature, measured=known
            )
        else:
            known = None
            fitted = learner.fitted(
                self.base_learner, self.learned, features, labels, way, temperature=self.temperature
            )
        self.is_calibrated_ = bool(self.temperature or known or np.bincount(labels).max() > 1)
        if self.unknown_threshold == unknown.AUTO:
            unknown.threshold(features, labels, way, self.false_alarms)  # `fit` already says if it cannot be chosen
        self.classes_, self.support_features_, self.support_labels_ = classes, features, labels
        for name in FITTED:
            vars(self).pop(name, None)
        vars(self).update({f"{name}_": value for name, value in fitted.items()})
        return self

    def predict_proba(self, X: Any, *, errors: str = "raise") -> np.ndarray:
        """Probabilities of the classes, [B, N], with columns in the order of `classes_`.

        Args:
          X: images or features, see the class.
          errors: of images that cannot be read. 'raise', or 'skip': their rows are NaN, and one warning names them.

        Raises:
          DataError: an image cannot be read.
        """
        return self._scored(X, errors)[0]

    def predict_with_proba(self, X: Any, *, errors: str = "raise") -> tuple[np.ndarray, np.ndarray]:
        """`predict` and `predict_proba` of images that are embedded once, [B] and [B, N]; arguments as theirs."""
        probabilities, likeness = self._scored(X, errors)
        return self.answers(probabilities, likeness), probabilities

    def _scored(self, X: Any, errors: str) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities, [B, N], and if needed how like the support set rows are, [B]; NaN for what is skipped."""
        check_is_fitted(self, "classes_")
        features, loaded = self._embedded(X, errors)
        if loaded is None or not loaded.left_out:
            return self._scores(features)
        probabilities, likeness = np.full((len(X), len(self.classes_)), np.nan), np.full(len(X), np.nan)
        if len(features):
            probabilities[loaded.positions], likeness[loaded.positions] = self._scores(features)
        return probabilities, likeness

    def _scores(self, features: Any) -> tuple[np.ndarray, np.ndarray]:
        features = validate_data(self, features, reset=False, dtype=FLOATS)
        likeness = np.full(len(features), np.nan)
        if self.unknown_threshold == unknown.AUTO:
            likeness = unknown.likeness(features, self.support_features_, self.support_labels_, len(self.classes_))
        return self._probabilities(features), likeness

    def _probabilities(self, features: np.ndarray) -> np.ndarray:
        if hasattr(self, "base_learner_"):
            support, labels, way = self.support_features_, self.support_labels_, len(self.classes_)
            logits = learner.logits(self.base_learner_, self.learned_, support, labels, features, way)
        else:
            logits = features @ self.coef_ + self.intercept_
        return np.exp(head.log_softmax(logits / self.temperature_))

    def predict(self, X: Any, *, errors: str = "raise") -> np.ndarray:
        """The most probable class of each row, or `unknown_label`; see `unknown_threshold`.

        Args:
          X: images or features, see the class.
          errors: of images that cannot be read. 'raise', or 'skip': their answers are None, and one warning names them.

        Returns:
          [B], one answer a row of X, also where images are skipped; then its dtype is object.

        Raises:
          DataError: an image cannot be read.
        """
        return self.predict_with_proba(X, errors=errors)[0]

    def answers(self, probabilities: np.ndarray, likeness: np.ndarray | None = None) -> np.ndarray:
        """What `predict` answers, [B], given the result of `predict_proba`, [B, N]; None for a row of NaN.

        Args:
          probabilities: [B, N].
          likeness: of `unknown.likeness`, [B]; needed with unknown_threshold='auto'.
        """
        likeliest = self.classes_[probabilities.argmax(1)]
        if self.unknown_threshold is not None:
            is_unknown = unknown.is_unknown(self, probabilities, likeness)
            label = np.array(
                parameters.unknown_label(self, self.classes_), object if likeliest.dtype == object else None
            )
            likeliest = np.where(is_unknown, label, likeliest)
        is_skipped = np.isnan(probabilities).any(1)
        return np.where(is_skipped, None, likeliest.astype(object)) if is_skipped.any() else likeliest

    def _validated(self, X: Any, y: Any, errors: str, *, reset: bool) -> tuple[np.ndarray, np.ndarray, list[Source]]:
        """The features, labels and sources of a support set."""
        features, loaded = self._embedded(X, errors)
        if loaded is not None and loaded.left_out:
            y = inputs.labels_of_loaded(loaded, X, y)
        features, labels = validate_data(self, features, y, reset=reset, dtype=FLOATS)
        inputs.check_labels(labels)
        return features, labels, loaded.sources if loaded else [UNKNOWN_SOURCE] * len(labels)

    def _embedded(self, X: Any, errors: str) -> tuple[Any, Loaded | None]:
        """The features of images, [K, F], and what was loaded; or X itself and None if it is features already."""
        inputs.check_errors(errors)
        inputs.refuse_no_batch(X)
        if not inputs.is_images(X):
            return X, None
        if self.embed is None:
            raise DataError("X is images, but the classifier has no embed: make it by from_workdir, or give embed")
        loaded = inputs.load_images(X, self.image_transform, errors)
        inputs.warn_of_left_out(loaded.left_out)
        return np.asarray(self.embed(loaded.images)) if loaded.sources else np.zeros((0, 0)), loaded

    # Not named `transform`: scikit-learn takes what has one for a transformer.
    @property
    def image_transform(self) -> Transform:
        """How images are prepared for `embed`."""
        if self.image_size or self.channels:
            transform = Transform(self.image_size, channels=self.channels, convert=True)
        else:
            transform = getattr(self.embed, "transform", Transform(convert=True))
        return dataclasses.replace(transform, max_pixels=self.max_pixels)

    def save(self, path: str | Path) -> None:
        """Writes the head, class names, support features and labels, and the backbone's fingerprint to one small file.

        With a `base_learner` its name and numbers stand in place of the head. The format is safetensors. The backbone
        is not in it: give it to `load` again, unless it is the package's.

        Raises:
          MtlError: the file cannot be written, or the base-learner is code of your own. NotFittedError: there is
            nothing to save.
        """
        file.write(self, path)

    @classmethod
    def load(cls, path: str | Path, embed: Any = None) -> "FewShotClassifier":
        """Reads a saved classifier.

        Args:
          path: the file.
          embed: the backbone it was fitted with: the path of a workdir or weight file, or a function. None: the network
            that comes with the package, if it was fitted with one; else it takes features only.

        Raises:
          CheckpointError: the file is missing or damaged, or `embed` is not the backbone that it was fitted with.
        """
        return file.read(cls, path, embed)

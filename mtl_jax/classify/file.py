"""The file of a fitted FewShotClassifier: safetensors with JSON metadata. Nothing in it can run code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from sklearn.utils.validation import check_is_fitted

from mtl_jax.classify import learner
from mtl_jax.errors import CheckpointError
from mtl_jax.export import embedding
from mtl_jax.export.embedding import Embedding
from mtl_jax.reference_weights import kept_networks
from mtl_jax.workdir import named_arrays, write_bytes_atomic, writing
from mtl_jax.workdir.workdir import plain

FORMAT, FORMAT_OF_LEARNERS = 1, 2  # the second with a base-learner in place of the head
HEAD, SUPPORT = ("coef", "intercept"), ("support_features", "support_labels")
LEARNED = "learned/"  # before the names of what a base-learner takes
PARAMETERS = ("steps", "lr", "temperature", "unknown_threshold", "false_alarms", "unknown_label", "image_size",
              "channels", "max_pixels")  # fmt: skip


def write(classifier: Any, path: str | Path) -> None:
    """Saves a fitted classifier; see `FewShotClassifier.save`."""
    check_is_fitted(classifier, "classes_", msg="nothing to save: this %(name)s is not fitted yet; call fit first")
    is_head = hasattr(classifier, "coef_")
    names = (*HEAD, *SUPPORT) if is_head else SUPPORT
    tensors = {name: np.ascontiguousarray(getattr(classifier, f"{name}_")) for name in names}
    content = {
        "format": FORMAT if is_head else FORMAT_OF_LEARNERS,
        "classes": classifier.classes_.tolist(),
        "classes_dtype": str(classifier.classes_.dtype),
        "temperature": float(classifier.temperature_),
        "is_calibrated": classifier.is_calibrated_,
        "parameters": {name: getattr(classifier, name) for name in PARAMETERS},
        "backbone": getattr(classifier.embed, "fingerprint", None),
    }
    if not is_head:
        content["base_learner"] = learner.to_plain(classifier.base_learner_)
        content["is_learned_given"] = classifier.learned is not None
        arrays = named_arrays.flatten(classifier.learned_)
        tensors |= {LEARNED + name: np.require(array, requirements="C") for name, array in arrays.items()}
    data = save(tensors, metadata={"mtl_jax": json.dumps(content, default=plain)})
    with writing(path):
        write_bytes_atomic(Path(path), data)


def read(cls: type, path: str | Path, embed: Any) -> Any:
    """Loads a classifier; see `FewShotClassifier.load`."""
    tensors, content = _open(path)
    if isinstance(embed, str | Path):
        embed = embedding.of_place(embed)
    elif embed is None:
        embed = _packaged(content.get("backbone"))
    try:
        classifier = cls(embed, **content["parameters"])
        _check_backbone(path, content["backbone"], embed)
        classifier.classes_ = np.array(content["classes"], np.dtype(content["classes_dtype"]))
        classifier.temperature_ = float(content["temperature"])
        classifier.is_calibrated_ = bool(content.get("is_calibrated", True))  # older files do not say
        for name in (*HEAD, *SUPPORT):
            if name in tensors:
                setattr(classifier, f"{name}_", tensors[name])
        if content["format"] == FORMAT_OF_LEARNERS:
            _read_learner(classifier, content, tensors)
        _check_shapes(classifier)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged classifier file: {error}; save it again") from error
    classifier.n_features_in_ = classifier.support_features_.shape[1]
    return classifier


def _read_learner(classifier: Any, content: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    arrays = {name.removeprefix(LEARNED): array for name, array in tensors.items() if name.startswith(LEARNED)}
    classifier.base_learner_ = classifier.base_learner = learner.from_plain(content["base_learner"])
    classifier.learned_ = named_arrays.nest(arrays)
    classifier.learned = classifier.learned_ if content["is_learned_given"] else None


def _open(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="np") as file:
            content = json.loads((file.metadata() or {})["mtl_jax"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; give one that FewShotClassifier.save wrote") from error
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole file of FewShotClassifier.save ({error}); save it again") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version not in (FORMAT, FORMAT_OF_LEARNERS):
        known = f"formats {FORMAT} and {FORMAT_OF_LEARNERS}"
        raise CheckpointError(f"{path}: format {version}, this version reads {known}; save it again")
    if missing := {*SUPPORT, *(HEAD if version == FORMAT else ())}.difference(tensors):
        raise CheckpointError(f"{path}: not a whole file of FewShotClassifier.save ({min(missing)}); save it again")
    return tensors, content


def _packaged(fingerprint: str | None) -> Embedding | None:
    """The network of the package that has a fingerprint, None if there is none."""
    names = kept_networks.packaged_names() if fingerprint else []
    return next((each for each in map(embedding.pretrained, names) if each.fingerprint == fingerprint), None)


def _check_backbone(path: str | Path, saved: str | None, embed: Any) -> None:
    current = getattr(embed, "fingerprint", None)
    if embed is not None and saved != current:
        raise CheckpointError(
            f"{path}: was fitted on features of backbone {(saved or 'without a fingerprint')[:12]}, this one is "
            f"{(current or 'without a fingerprint')[:12]}; "
            "give the workdir, weight file or function that it was fitted with"
        )


def _check_shapes(classifier: Any) -> None:
    way, (rows, features) = len(classifier.classes_), classifier.support_features_.shape
    labels = classifier.support_labels_
    if classifier.classes_.shape != (way,) or labels.shape != (rows,):
        raise ValueError(f"{rows} support rows with labels {labels.shape} and classes {classifier.classes_.shape}")
    if not rows or labels.min() < 0 or labels.max() >= way or labels.dtype.kind != "i":
        raise ValueError("support labels that are no positions in its classes")
    if hasattr(classifier, "base_learner_"):
        learner.check_fits(classifier.base_learner_, classifier.learned_, classifier.support_features_, labels, way)
    elif (classifier.coef_.shape, classifier.intercept_.shape) != ((features, way), (way,)):
        raise ValueError(f"a head {classifier.coef_.shape} for {features} features and {way} classes")

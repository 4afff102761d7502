"""The file of a fitted FewShotClassifier: safetensors with JSON metadata. Nothing in it can run code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from sklearn.utils.validation import check_is_fitted

from mtl_jax.errors import CheckpointError, MtlError
from mtl_jax.export import embedding
from mtl_jax.workdir import write_bytes_atomic, writing
from mtl_jax.workdir.workdir import plain

FORMAT = 1
TENSORS = ("coef", "intercept", "support_features", "support_labels")
PARAMETERS = ("steps", "lr", "temperature", "unknown_threshold", "unknown_label", "image_size", "channels")


def write(classifier: Any, path: str | Path) -> None:
    """Saves a fitted classifier; see `FewShotClassifier.save`."""
    check_is_fitted(classifier, "classes_", msg="nothing to save: this %(name)s is not fitted yet; call fit first")
    tensors = {name: np.ascontiguousarray(getattr(classifier, f"{name}_")) for name in TENSORS}
    content = {
        "format": FORMAT,
        "classes": classifier.classes_.tolist(),
        "classes_dtype": str(classifier.classes_.dtype),
        "temperature": float(classifier.temperature_),
        "parameters": {name: getattr(classifier, name) for name in PARAMETERS},
        "backbone": getattr(classifier.embed, "fingerprint", None),
    }
    data = save(tensors, metadata={"mtl_jax": json.dumps(content, default=plain)})
    with writing(path):
        write_bytes_atomic(Path(path), data)


def read(cls: type, path: str | Path, embed: Any) -> Any:
    """Loads a classifier; see `FewShotClassifier.load`."""
    tensors, content = _open(path)
    if isinstance(embed, str | Path):
        embed = embedding.load(embed)
    try:
        classifier = cls(embed, **content["parameters"])
        _check_backbone(path, content["backbone"], embed)
        classifier.classes_ = np.array(content["classes"], np.dtype(content["classes_dtype"]))
        classifier.temperature_ = float(content["temperature"])
        for name in TENSORS:
            setattr(classifier, f"{name}_", tensors[name])
        _check_shapes(classifier)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, MtlError):
            raise
        raise CheckpointError(f"{path}: damaged classifier file: {error}; save it again") from error
    classifier.n_features_in_ = classifier.coef_.shape[0]
    return classifier


def _open(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="np") as file:
            content = json.loads((file.metadata() or {})["mtl_jax"])
            tensors = {name: file.get_tensor(name) for name in TENSORS}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; give one that FewShotClassifier.save wrote") from error
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole file of FewShotClassifier.save ({error}); save it again") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise CheckpointError(f"{path}: format {version}, this version reads format {FORMAT}; save it again")
    return tensors, content


def _check_backbone(path: str | Path, saved: str | None, embed: Any) -> None:
    current = getattr(embed, "fingerprint", None)
    if embed is not None and saved != current:
        raise CheckpointError(
            f"{path}: was fitted on features of backbone {(saved or 'without a fingerprint')[:12]}, this one is "
            f"{(current or 'without a fingerprint')[:12]}; give the workdir or function that it was fitted with"
        )


def _check_shapes(classifier: Any) -> None:
    features, way = classifier.coef_.shape
    rows = len(classifier.support_labels_)
    shapes = [classifier.intercept_.shape, classifier.classes_.shape, classifier.support_features_.shape]
    if shapes != [(way,), (way,), (rows, features)]:
        raise ValueError(f"a head [{features}, {way}] with {shapes}")
    labels = classifier.support_labels_
    if labels.ndim != 1 or not rows or labels.min() < 0 or labels.max() >= way or labels.dtype.kind != "i":
        raise ValueError("support labels that are no positions in its classes")

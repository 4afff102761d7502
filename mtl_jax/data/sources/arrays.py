"""Arrays of images and their labels, in the forms that circulate as pickles and .npz files, as classes of images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.data import facts
from mtl_jax.data.files.names import class_name
from mtl_jax.data.source import Encoded, Images, Rows
from mtl_jax.errors import DataError
from mtl_jax.words import counted

IMAGE_KEYS = ("images", "data", "image_data", "features", "image", "x")
LABEL_KEYS = ("labels", "targets", "label_specific", "fine_labels", "label", "y")
NAME_KEYS = ("class_names", "label_specific_str")


def text_keys(held: Any) -> Any:
    """Returns a dict with its keys of bytes as strings, and anything else as it is."""
    if not isinstance(held, Mapping):
        return held
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in held.items()}


def pick(held: Mapping[str, Any], keys: Sequence[str], path: str) -> Any:
    """Returns the value of the first key that is there; raises DataError where none is."""
    for key in keys:
        if key in held:
            return held[key]
    raise DataError(f"{path}: has {', '.join(map(str, held)) or 'nothing'}; one of {', '.join(keys)} is needed")


def classes_of(images: Any, labels: Any, path: str, names: Any = None) -> Mapping[str, Images]:
    """Returns class name -> images, sorted by name.

    Args:
        images: uint8 [N, H, W], [N, H, W, C], [N, C, H, W] or [N, 3072], or N encoded images.
        labels: [N] integers or strings.
        path: the file, for messages.
        names: the name of each integer label. Without names a class is called by its label, padded with zeros.

    Raises:
        DataError: the numbers of images and labels differ, or one of them is of a wrong type, shape or range.
    """
    names = None if names is None else [as_text(name) for name in names]
    class_of_image = label_names(labels, len(images), path, names)
    order = np.argsort(class_of_image, kind="stable")
    class_names, starts = np.unique(class_of_image[order], return_index=True)
    groups = np.split(order, starts[1:])
    images_at = _images_at(images, path)
    return {str(name): images_at(rows) for name, rows in zip(class_names, groups, strict=True)}


def _images_at(images: Any, path: str) -> Callable[[np.ndarray], Images]:
    """Returns a function from positions to the images there, whatever the images are kept in."""
    if isinstance(images, np.ndarray) and images.dtype != object:
        array = image_array(images, path)
        return lambda rows: Rows(array, rows, path)
    if isinstance(images, np.ndarray):
        images = list(images)
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise DataError(
            f"{path}: the images are {type(images).__name__}; expected an array or a list of encoded images"
        )
    if images and isinstance(images[0], np.ndarray) and images[0].squeeze().ndim == 1:
        images = [np.asarray(blob, np.uint8).reshape(-1) for blob in images]
    elif images and isinstance(images[0], np.ndarray):
        return lambda rows: Rows(images, rows, path)
    elif images and isinstance(images[0], str):
        images = [blob.encode("latin1") for blob in images]  # a pickle of Python 2
    return lambda rows: Encoded(images, rows, path)


def image_array(images: np.ndarray, path: str) -> np.ndarray:
    """Returns a view of images as [N, H, W] or [N, H, W, C]; they may be rows as CIFAR has them, or channels first."""
    if images.dtype != np.uint8:
        raise DataError(f"{path}: the images are {images.dtype}; they must be uint8, 0 to 255")
    if images.ndim == 2 and images.shape[1] == 3072:
        images = images.reshape(-1, 3, 32, 32)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{path}: the images have the shape {list(images.shape)}; expected [N, H, W] or [N, H, W, 1 or 3]"
        )
    return images


def label_names(labels: Any, count: int, path: str, names: Sequence[str] | None) -> np.ndarray:
    """Returns the class name of every image, str [count]; see `classes_of`."""
    if len(labels) != count:
        raise DataError(f"{path}: {counted(count, 'image')} but {counted(len(labels), 'label')}; each image needs one")
    array = np.asarray(labels)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.dtype.kind in "OSU":
        return np.asarray([as_text(label) for label in array])
    whole = array.ndim == 1 and (array.dtype.kind in "iu" or (array.dtype.kind == "f" and np.all(array == array // 1)))
    if not whole:
        raise DataError(
            f"{path}: the labels are {array.dtype} {list(array.shape)}; expected one integer or name an image"
        )
    array = array.astype(np.int64)
    end = len(names) if names is not None else None
    bad = np.flatnonzero((array < 0) | (array >= end if end is not None else False))
    if len(bad):
        limit = "0 or more" if end is None else f"from 0 to {end - 1}"
        raise DataError(f"{path}: label {array[bad[0]]} of image {bad[0]} is out of range; labels must be {limit}")
    if names is not None:
        return np.asarray(names)[array]
    width = max(3, len(str(array.max(initial=0))))
    return np.asarray([f"{label:0{width}d}" for label in array])


def as_text(value: Any) -> str:
    """Returns a label or name as a string, in the normal form that names of classes have."""
    return class_name(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def classes_of_dict(held: Mapping[str, Any], path: str) -> Mapping[str, Images]:
    """Returns the classes in a dict that has images and either labels or a `class_dict`."""
    images = pick(held, IMAGE_KEYS, path)
    if "class_dict" in held:
        return by_class_dict(images, held["class_dict"], path)
    return classes_of(images, pick(held, LABEL_KEYS, path), path, names_in(held))


def names_in(held: Mapping[str, Any]) -> Sequence[Any] | None:
    """Returns the name of each label where a dict has them, as a list or as `catname2label`, name -> label."""
    if isinstance(held.get("catname2label"), Mapping):
        by_label = {int(label): name for name, label in held["catname2label"].items()}
        return [by_label.get(label, f"{label:03d}") for label in range(max(by_label, default=-1) + 1)]
    return next((held[key] for key in NAME_KEYS if key in held), None)


def by_class_dict(images: Any, class_dict: Mapping[Any, Sequence[int]], path: str) -> Mapping[str, Images]:
    """Returns the classes in a mini-ImageNet cache pickle, whose `class_dict` has the positions of each class."""
    labels: list[str | None] = [None] * len(images)
    for name, rows in class_dict.items():
        for row in rows:
            if not 0 <= row < len(images):
                raise DataError(f"{path}: class_dict has image {row} of {as_text(name)!r}, but there are {len(images)}")
            if labels[row] is not None:
                raise DataError(
                    f"{path}: class_dict has image {row} in two classes, {labels[row]!r} and {as_text(name)!r}"
                )
            labels[row] = as_text(name)
    without = next((row for row, label in enumerate(labels) if label is None), None)
    if without is not None:
        raise DataError(f"{path}: class_dict leaves image {without} without a class")
    return classes_of(images, labels, path)


def name_cifar_classes(name: str, contents: Mapping[str, Mapping[str, Images]]) -> Mapping[str, Mapping[str, Images]]:
    """Returns FC100's or CIFAR-FS's classes by name where they are called by CIFAR-100's labels, others as they are."""
    splits = facts.class_splits(name) if name in ("fc100", "cifar_fs") else None
    if splits is None:
        return contents
    names = facts.cifar100_names()
    renamed = {}
    for split, classes in contents.items():
        if not all(label.isdecimal() and int(label) < len(names) for label in classes):
            return contents
        renamed[split] = {names[int(label)]: images for label, images in sorted(classes.items())}
        if sorted(renamed[split]) != sorted(splits[split]):
            return contents
    return renamed

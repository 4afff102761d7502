"""Photographs in, a table, a contact sheet and sorted folders out."""

import argparse
import csv
import io
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from mtl_jax.data import decode, transforms
from mtl_jax.data.sources import trees
from mtl_jax.data.sources.class_folders import IMAGE_SUFFIXES
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError, MtlError
from mtl_jax.workdir import write_bytes_atomic

COLUMNS = ("file", "class", "probability", "runner_up", "runner_up_probability")
THUMBNAIL = 96  # pixels


class Photo(NamedTuple):
    """A decoded file: as the network wants it, uint8 [H, W, C]; small, for people; the digest of its pixels."""

    file: str
    stored: np.ndarray
    thumbnail: np.ndarray
    digest: bytes


class Prediction(NamedTuple):
    """What is said of a file. `probability` is the most probable class's, of which the runner-up is the next.

    Where the answer is 'unknown', the runner-up is the most probable class; where there is one class, it is ''.
    """

    file: str
    answer: str
    probability: float
    runner_up: str
    runner_up_probability: float


def find_images(folder: Path) -> list[str]:
    """The image files under a folder, relative to it and sorted; or [''] where `folder` is one file.

    Raises:
      DataError: no such folder, or no image in it.
    """
    if folder.is_file():
        return [""]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with images")
    found = [file for file in trees.folder_tree(folder).files if file.lower().endswith(IMAGE_SUFFIXES)]
    if not found:
        raise DataError(f"{folder}: has no images; known are {' '.join(IMAGE_SUFFIXES)}")
    return found


def find_support(folder: Path) -> tuple[list[str], list[str]]:
    """The images of a folder of class folders, and the class of each: the folder that it is in.

    Raises:
      DataError: an image in no class folder, or a class folder without an image.
    """
    if folder.is_file():
        raise DataError(f"{folder}: a file; --support is a folder with a folder a class")
    files = find_images(folder)
    classes = [str(PurePosixPath(file).parent) for file in files]
    if "." in classes:
        raise DataError(f"{folder / files[classes.index('.')]}: in no class folder; put it in one or remove it")
    tops = {name.split("/", 1)[0] for name in classes}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in tops and not trees.ignored(path.name):
            raise DataError(f"{path}: a class without images; put some in or remove the folder")
    return files, classes


def read_photos(folder: Path, files: Sequence[str], transform: Transform) -> list[Photo | MtlError]:
    """Decodes files; one that cannot be read is given as the error that says why."""

    def read(file: str) -> Photo | MtlError:
        path = folder / file
        try:
            pixels = decode.decode(path.read_bytes(), str(path), transform)
        except OSError as error:
            return DataError(f"{path}: cannot be read: {error.strerror}")
        except decode.CorruptImage as error:
            return DataError(decode.reason(error))
        except MtlError as error:
            return error
        small = transforms.store(pixels, Transform(THUMBNAIL))
        return Photo(file or path.name, transforms.store(pixels, transform), small, decode.digest(pixels))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(read, files))


def fit(flags: argparse.Namespace) -> object:
    """The classifier: fitted on the support folder, or read from its file."""
    from mtl_jax.classify.classifier import PRETRAINED, FewShotClassifier
    from mtl_jax.export import embedding

    if (flags.support is None) == (flags.classifier is None):
        raise DataError("give either --support=DIR or --classifier=FILE")
    given = {"unknown_threshold": flags.unknown, "temperature": flags.temperature}
    if flags.classifier:
        classifier = FewShotClassifier.load(flags.classifier, flags.workdir or embedding.pretrained(PRETRAINED))
        classifier.set_params(**{name: value for name, value in given.items() if value is not None})
        return classifier.refit()
    if flags.workdir:
        classifier = FewShotClassifier.from_workdir(flags.workdir, **given)
    else:
        classifier = FewShotClassifier.from_pretrained(**given)
    files, classes = find_support(flags.support)
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as said:
        classifier.fit([flags.support / file for file in files], classes)
    for warning in said:
        print(f"warning: {warning.message}", file=sys.stderr)
    return classifier


def warn_of_copies(classifier: object, photos: Sequence[Photo]) -> None:
    """Says which of the images to sort are support images too: their answer is no prediction."""
    support = {image.digest for image in getattr(classifier, "support_images_", ())}  # a saved classifier has none
    copies = [photo.file for photo in photos if photo.digest in support]
    if copies:
        more = f" (and {len(copies) - 1} more)" if len(copies) > 1 else ""
        print(f"warning: {copies[0]}{more} is in --support too: its answer is no prediction", file=sys.stderr)


def predict(classifier: object, photos: Sequence[Photo]) -> list[Prediction]:
    """What the classifier says of each photograph."""
    if not photos:
        return []
    probabilities = classifier.predict_proba([photo.stored for photo in photos])
    names = [*map(str, classifier.classes_), ""]
    rows = []
    for photo, answer, values in zip(photos, classifier.answers(probabilities), probabilities, strict=True):
        first, second = np.argsort(-np.append(values, 0), kind="stable")[:2]
        other = second if str(answer) == names[first] else first  # of an unknown image the most probable class
        ends = str(answer), float(values[first]), names[other], float(np.append(values, 0)[other])
        rows.append(Prediction(photo.file, *ends))
    return rows


def write_table(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes the predictions as CSV, the least certain last digits rounded away."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for p in predictions:
        rows.writerow([p.file, p.answer, f"{p.probability:.4f}", p.runner_up, f"{p.runner_up_probability:.4f}"])
    try:
        write_bytes_atomic(path, text.getvalue().encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def sort_files(folder: Path, predictions: Sequence[Prediction], into: Path, *, link: bool) -> None:
    """Copies, or links, each image to into/CLASS/FILE.

    Raises:
      DataError: such a file is there already, or cannot be written; nothing is ever overwritten.
    """
    sources = [folder if folder.is_file() else folder / p.file for p in predictions]
    targets = [into / p.answer / p.file for p in predictions]
    for target in targets:
        if target.exists() or target.is_symlink():
            raise DataError(f"{target}: there already; give another folder, nothing is overwritten")
    try:
        for source, target in zip(sources, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            if link:
                target.symlink_to(source.resolve())
            else:
                shutil.copy2(source, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}") from error


def describe_support(classifier: object) -> str:
    """'5 classes of 3 images each', or '5 classes of 2 to 7 images'."""
    shots, way = np.bincount(classifier.support_labels_), len(classifier.classes_)
    each = f"{shots.min()} to {shots.max()} images" if shots.min() < shots.max() else f"{shots.min()} images each"
    return f"{way} {'class' if way == 1 else 'classes'} of {each}".replace(" 1 images", " 1 image")

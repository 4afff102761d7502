"""What `python -m mtl_jax.classify` does: reads photographs, predicts, writes the table and the sorted folders."""

import csv
import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtl_jax.classify.classifier import PRETRAINED, FewShotClassifier
from mtl_jax.classify.folders import Support
from mtl_jax.data import decode, transforms
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError, MtlError
from mtl_jax.export import embedding
from mtl_jax.words import counted
from mtl_jax.workdir import write_bytes_atomic, writing

COLUMNS = ("file", "class", "probability", "runner_up", "runner_up_probability")
THUMBNAIL = 96  # pixels


class Photo(NamedTuple):
    """A decoded file: uint8 [H, W, C] as the network takes it, a thumbnail, and the digest of its pixels."""

    file: str
    stored: np.ndarray
    thumbnail: np.ndarray
    digest: bytes


class Prediction(NamedTuple):
    """The answer for a file. `probability` is that of the most probable class; the runner-up is the second.

    If the answer is 'unknown', the runner-up is the most probable class. With a single class it is ''.
    """

    file: str
    answer: str
    probability: float
    runner_up: str
    runner_up_probability: float


def read_photos(folder: Path, files: Sequence[str], transform: Transform) -> list[Photo | MtlError]:
    """Decodes files. For one that cannot be read, the list has the error that says why."""

    def read(file: str) -> Photo | MtlError:
        path = folder / file
        try:
            pixels = decode.read_image(path, transform)
        except decode.CorruptImage as error:
            return DataError(decode.reason(error))
        except MtlError as error:
            return error
        thumbnail = transforms.store(pixels, Transform(THUMBNAIL))
        return Photo(file or path.name, transforms.store(pixels, transform), thumbnail, decode.digest(pixels))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(read, files))


def make_classifier(
    support: Support | None,
    saved: Path | None,
    workdir: Path | None,
    backbone: str | None = None,
    *,
    unknown: float | str | None = None,
    false_alarms: float | None = None,
    unknown_label: str | None = None,
    temperature: float | None = None,
    max_pixels: int | None = None,
) -> FewShotClassifier:
    """A classifier fitted on the photographs of `support`, or read from the file `saved`, where `support` is None.

    Args:
      support: photographs of each class.
      saved: a file of `FewShotClassifier.save`.
      workdir: the run whose network is used.
      backbone: instead of `workdir`: a network of the package, a weight file, or 'hf-hub:owner/name'. None: the
        default network, or as `saved` was fitted with.
      unknown: the `unknown_threshold`. None: never 'unknown', or as saved.
      false_alarms: with 'auto', the share of support images that would be unknown. None: the default, or as saved.
      unknown_label: the answer below that. None: 'unknown', or as saved.
      temperature: of the probabilities. None: calibrated, or as saved.
      max_pixels: images with more are not read. None: the class's default, or as saved.
    """
    options = {
        "unknown_threshold": unknown, "false_alarms": false_alarms, "unknown_label": unknown_label,
        "temperature": temperature, "max_pixels": max_pixels,
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    if support is None:
        classifier = FewShotClassifier.load(saved, workdir or (embedding.named(backbone) if backbone else None))
        if classifier.embed is None:
            raise DataError(
                f"{saved}: was not fitted with a network of the package; give its own, --workdir=DIR or --backbone=FILE"
            )
        classifier.set_params(**options)
        return classifier.refit()
    if workdir:
        classifier = FewShotClassifier.from_workdir(workdir, **options)
    else:
        classifier = FewShotClassifier.from_pretrained(backbone or PRETRAINED, **options)
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
        classifier.fit(support.files, support.classes)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return classifier


def warn_of_copies(classifier: FewShotClassifier, photos: Sequence[Photo]) -> None:
    """Warns of photographs that are also support images: their answers are not predictions."""
    support = {source.digest for source in getattr(classifier, "support_images_", ())}  # a saved classifier has none
    copies = [photo.file for photo in photos if photo.digest in support]
    if copies:
        more = f" (and {len(copies) - 1} more)" if len(copies) > 1 else ""
        print(f"warning: {copies[0]}{more} is in --support too: its answer is not a prediction", file=sys.stderr)


def predict(classifier: FewShotClassifier, photos: Sequence[Photo]) -> list[Prediction]:
    """The classifier's answer for each photograph."""
    if not photos:
        return []
    answers, probabilities = classifier.predict_with_proba([photo.stored for photo in photos])
    names = [*map(str, classifier.classes_), ""]
    predictions = []
    for photo, answer, row in zip(photos, answers, probabilities, strict=True):
        values = np.append(row, 0)
        first, second = np.argsort(-values, kind="stable")[:2]
        other = second if str(answer) == names[first] else first  # for 'unknown', the most probable class
        predictions.append(
            Prediction(photo.file, str(answer), float(values[first]), names[other], float(values[other]))
        )
    return predictions


def refuse_overwriting(written: Mapping[str, Path | None], photographs: Iterable[Path]) -> None:
    """Raises DataError where two outputs are one file, or one is a photograph that is read, or a folder.

    Args:
      written: by what each is, the files that are to be written.
      photographs: the files that are to be read.
    """
    taken = {_identity(path): "a photograph" for path in photographs}
    for what, path in written.items():
        if path is None:
            continue
        if path.is_dir():
            raise DataError(f"{path}: a folder; the {what} is a file: give its name")
        other = taken.setdefault(_identity(path), f"the {what}")
        if other != f"the {what}":
            raise DataError(f"{path}: the {what} would overwrite {other}; give it another name")


def _identity(path: Path) -> str:
    return str(path.resolve()).casefold()  # Windows and macOS do not tell X.PNG from x.png


def write_table(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes the predictions as CSV, with probabilities rounded to four decimals."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for p in predictions:
        rows.writerow([p.file, p.answer, f"{p.probability:.4f}", p.runner_up, f"{p.runner_up_probability:.4f}"])
    with writing(path, error_type=DataError):
        write_bytes_atomic(path, text.getvalue().encode())


def sort_files(folder: Path, predictions: Sequence[Prediction], into: Path, *, link: bool) -> None:
    """Copies or links each image to into/CLASS/FILE. Nothing is overwritten.

    Raises:
      DataError: such a file exists already, or cannot be written.
    """
    sources = [folder if folder.is_file() else folder / p.file for p in predictions]
    targets = [into / p.answer / p.file for p in predictions]
    for target in targets:
        if target.exists() or target.is_symlink():
            raise DataError(f"{target}: exists already; give another folder, nothing is overwritten")
    for source, target in zip(sources, targets, strict=True):
        with writing(target, error_type=DataError):
            target.parent.mkdir(parents=True, exist_ok=True)
            if link:
                target.symlink_to(source.resolve())
            else:
                shutil.copy2(source, target)


def describe_support(classifier: FewShotClassifier) -> str:
    """'5 classes of 3 images each', or '5 classes of 2 to 7 images'."""
    shots, way = np.bincount(classifier.support_labels_), len(classifier.classes_)
    each = (
        f"{shots.min()} to {shots.max()} images"
        if shots.min() < shots.max()
        else f"{counted(shots.min(), 'image')} each"
    )
    return f"{counted(way, 'class')} of {each}"

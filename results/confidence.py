"""`python -m results confidence`: how far a FewShotClassifier's probabilities and its 'unknown' can be trusted.

    python -m results confidence --data=D --calibrate        # writes mtl_jax/export/temperatures.json
    python -m results confidence --data=D                    # calibration errors, and 'unknown', on test classes
    python -m results confidence --data=D --scores           # scores of 'unknown' that were compared, on val classes

`D` holds miniimagenet and fc100. A draw is five classes, 1 to 10 photographs of each to learn from, 15 of each to be
sorted, and as many of the split's other classes. Each class has 150 photographs, chosen once, whose features are
kept in `--features=DIR`.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from mtl_jax import FewShotClassifier, data
from mtl_jax.classify import head, inputs, measured, unknown
from mtl_jax.export import embedding
from mtl_jax.reference_weights import kept_networks

DATA = ("miniimagenet", "fc100")
WAY, QUERY, PER_CLASS, BINS = 5, 15, 150, 15
SHOTS, WAYS, TEST_SHOTS = (1, 2, 3, 5, 10), (2, 3, 5, 8, 16), (1, 3, 5, 10)
SLOPES = [float(slope) for slope in range(-4, 13)]  # of a temperature's logarithm by how alike classes are
CHUNK = 256  # photographs prepared at once


class Photos(NamedTuple):
    """Features of photographs, [M, F], and their classes, int [M]."""

    features: np.ndarray
    labels: np.ndarray


class Draw(NamedTuple):
    """Features of support photographs [N * K, F] and of queries [N * Q, F], their labels, and others of no class."""

    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray
    others: np.ndarray


class Answer(NamedTuple):
    """Logits of queries, [B, N], their labels, int [B], and how alike the classes are."""

    logits: np.ndarray
    labels: np.ndarray
    likeness: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--data", type=Path, required=True, help="a folder with miniimagenet and fc100")
    parser.add_argument("--features", type=Path, help="a folder to keep features in")
    parser.add_argument("--draws", type=int, default=100, help="of seeds 0, 1, ... (%(default)s)")
    parser.add_argument("--network", action="append", help="networks of the package (all)")
    parser.add_argument("--calibrate", action="store_true", help="write the table of temperatures")
    parser.add_argument("--scores", action="store_true", help="compare scores of 'unknown' on val classes")


def main(flags: argparse.Namespace) -> int:
    """Writes temperatures, or prints figures."""
    tables = {}
    for network in flags.network or kept_networks.packaged_names():
        if flags.calibrate:
            tables[network] = temperatures(*(photos_of(flags, name, "val", network) for name in DATA), flags.draws)
            print(network, tables[network], flush=True)
            continue
        for name in DATA[:1] if flags.scores else DATA:
            split = "val" if flags.scores else "test"
            photos = photos_of(flags, name, split, network)
            for line in (compared if flags.scores else figures)(photos, network, flags.draws):
                print(f"{name}, {split}: {network}, {line}", flush=True)
    if flags.calibrate:
        rows = ",\n".join(f'  "{name}": {json.dumps(table)}' for name, table in tables.items())
        measured.TABLE.write_text(f"{{\n{rows}\n}}\n")
    return 0


def photos_of(flags: argparse.Namespace, name: str, split_name: str, network: str) -> Photos:
    """The photographs of a split: as kept, or else embedded."""
    path = flags.features / f"{name}-{split_name}-{network}.npz" if flags.features else None
    if path and path.exists():
        return Photos(**np.load(path))
    split, rng = data.load(name, str(flags.data / name), channels=3).splits[split_name], np.random.default_rng(0)
    classes = [rng.permutation(np.flatnonzero(split.labels == c))[:PER_CLASS] for c in range(len(split.class_names))]
    rows, embed = np.sort(np.concatenate(classes)), embedding.pretrained(network)
    parts = [split.images[rows[start : start + CHUNK]] for start in range(0, len(rows), CHUNK)]
    features = [embed(inputs.load_images(part, embed.transform).images) for part in parts]
    photos = Photos(np.concatenate(features), split.labels[rows])
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **photos._asdict())
    return photos


def draws_of(photos: Photos, way: int, shot: int, count: int) -> Iterator[Draw]:
    """Draws of the seeds 0, 1, ..."""
    rows = [np.flatnonzero(photos.labels == label) for label in np.unique(photos.labels)]
    labels = np.arange(way)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        classes = rng.permutation(len(rows))
        own = np.stack([rng.permutation(rows[label])[: shot + QUERY] for label in classes[:way]])
        rest = np.concatenate([rows[label] for label in classes[way:]] or [np.zeros(0, int)])
        others = rng.permutation(rest)[: way * QUERY]
        support, query, others = (photos.features[part.ravel()] for part in (own[:, :shot], own[:, shot:], others))
        yield Draw(support, labels.repeat(shot), query, labels.repeat(QUERY), others)


def temperatures(photos: Photos, other: Photos, count: int) -> dict[str, Any]:
    """The temperature that suits all draws of a number of classes and of photographs, by both, and its dependence on
    how alike the classes are, from the photographs of two data sets.
    """
    answers = [list(answers_of(each, WAY, 1, count)) for each in (photos, other)]
    likeness = [np.array([answer.likeness for answer in each]) for each in answers]
    centre, both = float(likeness[0].mean()), np.concatenate(likeness)
    losses = {slope: best_temperature([*answers[0], *answers[1]], slope, centre)[1] for slope in SLOPES}
    slope = min(losses, key=losses.__getitem__)
    rows = [
        [best_temperature(list(answers_of(photos, way, shot, count)), slope, centre)[0] for shot in SHOTS]
        for way in WAYS
    ]
    ends = [round(float(end), 3) for end in (both.min(), both.max())]
    return {
        "likeness": round(centre, 3), "slope": slope, "range": ends,
        "ways": WAYS, "shots": SHOTS, "temperatures": [[round(t, 3) for t in row] for row in rows],
    }  # fmt: skip


def answers_of(photos: Photos, way: int, shot: int, count: int) -> Iterator[Answer]:
    """What a classifier of temperature 1 answers in each draw."""
    for draw in draws_of(photos, way, shot, count):
        classifier = FewShotClassifier(temperature=1.0).fit(draw.support, draw.support_labels)
        logs = np.log(np.maximum(classifier.predict_proba(draw.query), 1e-300))
        yield Answer(logs, draw.query_labels, measured.likeness_of_classes(draw.support, draw.support_labels, way))


def best_temperature(answers: Sequence[Answer], slope: float, centre: float) -> tuple[float, float]:
    """The temperature, where classes are as alike as `centre`, that makes all labels most likely, and their loss."""
    logits = np.concatenate([each.logits / np.exp(slope * (each.likeness - centre)) for each in answers])
    labels = np.concatenate([each.labels for each in answers])
    rows = np.arange(len(labels))
    losses = [-head.log_softmax(logits / t)[rows, labels].mean() for t in head.TEMPERATURES]
    best = int(np.argmin(losses))
    return float(head.TEMPERATURES[best]), float(losses[best])


def figures(photos: Photos, network: str, count: int) -> Iterator[str]:
    """A line a number of photographs: accuracy, confidence, calibration error, and how 'unknown' does."""
    embed = embedding.pretrained(network)
    for shot in TEST_SHOTS:
        parts, labels, areas, alarms, found = [], [], [], [], []
        for draw in draws_of(photos, WAY, shot, count):
            options = {"unknown_threshold": unknown.AUTO, "unknown_label": -1} if shot > 1 else {}
            classifier = FewShotClassifier(embed, **options).fit(draw.support, draw.support_labels)
            answers, probabilities = classifier.predict_with_proba(draw.query)
            parts.append(probabilities)
            labels.append(draw.query_labels)
            areas.append(area(*(_likeness(classifier, rows) for rows in (draw.query, draw.others))))
            alarms.append(np.mean(answers == -1))
            found.append(np.mean(classifier.predict(draw.others) == -1))
        known, wanted = np.concatenate(parts), np.concatenate(labels)
        right, confidence = np.mean(known.argmax(1) == wanted), known.max(1).mean()
        error, auroc = calibration_error(known, wanted), np.mean(areas)
        line = f"{shot} a class: accuracy {100 * right:.1f} %, mean confidence {100 * confidence:.1f} %"
        line += f", calibration error {100 * error:.1f} points; AUROC {100 * auroc:.1f}"
        if shot > 1:
            line += f"; 'unknown' for {100 * np.mean(alarms):.1f} % of known and {100 * np.mean(found):.1f} % of others"
        yield line


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error of [B, N] in 15 bins of equal width, by the most probable class."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return sum(abs(np.sum((right - confidence)[bins == number])) for number in range(BINS)) / len(labels)


def area(known: np.ndarray, others: np.ndarray) -> float:
    """The area under the ROC curve of a score that is larger for known photographs."""
    return float(roc_auc_score(np.repeat([1, 0], [len(known), len(others)]), np.concatenate([known, others])))


def compared(photos: Photos, network: str, count: int) -> Iterator[str]:
    """A line a number of photographs: the area of each of `SCORES`."""
    for shot in TEST_SHOTS:
        areas = []
        for draw in draws_of(photos, WAY, shot, count):
            classifier = FewShotClassifier.from_pretrained(network).fit(draw.support, draw.support_labels)
            areas.append(
                [area(score(classifier, draw.query), score(classifier, draw.others)) for score in SCORES.values()]
            )
        means = 100 * np.mean(areas, 0)
        yield f"{shot} a class: AUROC " + ", ".join(
            f"{name} {mean:.1f}" for name, mean in zip(SCORES, means, strict=True)
        )


def _logits(classifier: FewShotClassifier, rows: np.ndarray) -> np.ndarray:
    return (rows @ classifier.coef_ + classifier.intercept_) / classifier.temperature_


def _energy(classifier: FewShotClassifier, rows: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(_logits(classifier, rows), axis=1)


def _centroid(classifier: FewShotClassifier, rows: np.ndarray) -> np.ndarray:
    labels, support = classifier.support_labels_, classifier.support_features_
    centroids = np.stack([support[labels == label].mean(0) for label in range(len(classifier.classes_))])
    return -np.linalg.norm(rows[:, None] - centroids, axis=2).min(1)


def _photograph(classifier: FewShotClassifier, rows: np.ndarray) -> np.ndarray:
    support = classifier.support_features_
    return unknown.likeness(rows, support, np.arange(len(support)), len(support))


def _likeness(classifier: FewShotClassifier, rows: np.ndarray) -> np.ndarray:
    return unknown.likeness(rows, classifier.support_features_, classifier.support_labels_, len(classifier.classes_))


Score = Callable[[FewShotClassifier, np.ndarray], np.ndarray]
SCORES: dict[str, Score] = {
    "probability": lambda classifier, rows: classifier.predict_proba(rows).max(1),
    "energy": _energy,
    "distance to the nearest class mean": _centroid,
    "cosine with the nearest photograph": _photograph,
    "cosine with the nearest class mean": _likeness,
}

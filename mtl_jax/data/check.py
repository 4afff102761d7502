"""Checks a data set, every image of it, before anything is trained on it."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mtl_jax.data import decode, facts, overlaps
from mtl_jax.data.cache import build
from mtl_jax.data.dataset import SPLITS, fingerprint
from mtl_jax.data.source import Contents, Images
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError
from mtl_jax.words import counted

ADVICE = {
    "shared_classes": "keep it in one split only",
    "shared_images": "keep it in one split only",
    "repeated_images": "keep one copy",
}


@dataclasses.dataclass
class ClassReport:
    """What the images of one class are.

    sizes, modes: how many images have each (width, height) and each mode, 'array' for one that was not encoded.
    digests, places, names: of every image that could be read.
    problems: a line for each image that could not.
    """

    sizes: Counter = dataclasses.field(default_factory=Counter)
    modes: Counter = dataclasses.field(default_factory=Counter)
    digests: list[bytes] = dataclasses.field(default_factory=list)
    places: list[str] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def images(self) -> overlaps.ClassImages:
        """Returns them in the form that overlaps are found in."""
        digests = np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, 16)
        return overlaps.ClassImages(digests, self.places.__getitem__, self.names.__getitem__)


@dataclasses.dataclass
class Report:
    """What a check has found, as lines of text.

    lines: a description of each split, and notes.
    classes: split, name and number of images of each class.
    problems: what to fix.
    fingerprint: see `Dataset`; '' if an image could not be read.
    """

    lines: list[str]
    classes: list[str]
    problems: list[str]
    fingerprint: str = ""


Reports = Mapping[str, Mapping[str, ClassReport]]  # split -> class -> report


def check(
    name: str,
    contents: Contents,
    path: str,
    transform: Transform,
    *,
    format: str = "",
    allowed: Sequence[str] = (),
    way: int = 5,
    shot: int = 5,
    query: int = 15,
    workers: int = 0,
) -> Report:
    """Decodes every image of a data set and reports on what it has found. Raises nothing for faults of the data.

    Args:
        name: of the data set.
        contents: what its source reads.
        path: where it is, for messages.
        transform: how to store images.
        format: see `Source`.
        allowed: kinds of overlap to accept.
        way: classes of a task.
        shot: support images of a class.
        query: query images of a class.
        workers: see `build`.
    """
    reports = examine(contents, transform, workers)
    images = {split: {key: report.images() for key, report in classes.items()} for split, classes in reports.items()}
    problems = shortened([problem for _, _, report in each(reports) for problem in report.problems])
    digests = {split: [one.digests for one in classes.values()] for split, classes in images.items()}
    content = "" if problems else fingerprint(digests)
    try:
        build.check_contents(contents, path)
    except DataError as error:
        problems.append(str(error))
    problems += different_sizes(reports, transform)
    problems += small_classes(reports, way, shot, query)
    misplaced, notes = compare_with_paper(name, reports)
    problems += shortened(misplaced)
    overlapping, published = compare_images(name, format, images, allowed)
    problems += overlapping
    notes += published
    if content:
        notes.append(f"fingerprint {content}: {facts.known_fingerprints().get(content) or 'not a known variant'}")
    classes = [f"{split}\t{key}\t{len(report.digests)}" for split, key, report in each(reports)]
    return Report(describe(reports) + notes, classes, problems, content)


def each(reports: Reports) -> Iterable[tuple[str, str, ClassReport]]:
    """Yields split, class and report."""
    for split, classes in reports.items():
        for name, report in classes.items():
            yield split, name, report


def shortened(lines: Sequence[str], count: int | None = None) -> list[str]:
    """Returns the first few of `count` lines, and how many more there are; `count` is len(lines) if not given."""
    shown = list(lines[: overlaps.SHOWN])
    more = (len(lines) if count is None else count) - len(shown)
    return [*shown, f"... and {more} more of this kind"] if more else shown


def examine(contents: Contents, transform: Transform, workers: int = 0) -> Reports:
    """Decodes every image; one that cannot be read is a problem of its class's report."""
    plain = dataclasses.replace(transform, image_size=0, resize=0)
    tasks = [(split, name, images) for split, classes in contents.items() for name, images in classes.items()]
    threads = workers or build.default_threads(contents)
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda task: examine_class(task[2], plain), tasks)
        reports: dict[str, dict[str, ClassReport]] = {split: {} for split in SPLITS if split in contents}
        for (split, name, _), report in zip(tasks, done, strict=True):
            reports[split][name] = report
    return reports


def examine_class(images: Images, transform: Transform) -> ClassReport:
    """Decodes the images of one class."""
    report = ClassReport()
    for index in range(len(images)):
        try:
            raw = images.read(index)
            pixels, digest = decode.load(images, index, transform)
            is_array = isinstance(raw, np.ndarray)
            mode = "array" if is_array else decode.open_image(raw, images.where(index), transform.max_pixels).mode
        except DataError as error:
            report.problems.append(str(error))
            continue
        report.modes[mode] += 1
        report.sizes[pixels.shape[1], pixels.shape[0]] += 1
        report.digests.append(digest)
        report.places.append(images.where(index))
        report.names.append(images.name(index))
    return report


def describe(reports: Reports) -> list[str]:
    """Returns a line for each split: classes, images, images a class, sizes, modes."""
    lines = []
    for split, classes in reports.items():
        counts = [len(report.digests) for report in classes.values()] or [0]
        sizes = sum((report.sizes for report in classes.values()), Counter())
        modes = sum((report.modes for report in classes.values()), Counter())
        lines.append(
            f"{split}: {counted(len(classes), 'class')}, {counted(sum(counts), 'image')}, {_range(counts)} a class, "
            f"sizes {_listed((f'{w}x{h}', n) for (w, h), n in sizes.most_common(4))}"
            f"{' and others' if len(sizes) > 4 else ''}, modes {_listed(modes.most_common())}"
        )
    return lines


def _range(counts: Collection[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counts) or "none"


def different_sizes(reports: Reports, transform: Transform) -> list[str]:
    """Returns a problem if images are of several sizes and nothing brings them to one."""
    sizes = {size for _, _, report in each(reports) for size in report.sizes}
    if transform.image_size or len(sizes) <= 1:
        return []
    return [f"images are of {len(sizes)} sizes; set --image-size to bring all to one"]


def small_classes(reports: Reports, way: int, shot: int, query: int) -> list[str]:
    """Returns what the splits lack for tasks of `way` classes with `shot + query` images each."""
    problems = []
    for split, classes in reports.items():
        if len(classes) < way:
            problems.append(f"split {split} has {counted(len(classes), 'class')}, fewer than --way={way}")
        small = {name: len(report.digests) for name, report in classes.items() if len(report.digests) < shot + query}
        if small:
            name = min(small, key=lambda key: (small[key], key))
            problems.append(
                f"split {split} has {counted(len(small), 'class')} with fewer images than --shot={shot} plus "
                f"--query={query}; {name!r} has {small[name]}"
            )
    return problems


def compare_images(
    name: str, format: str, classes: overlaps.Classes, allowed: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Returns the overlaps: as problems, and as notes those that are allowed or that a paper published so."""
    by_kind, problems, notes = overlaps.find(classes, format), [], []
    published = bool(by_kind) and overlaps.is_published(name, format, classes, by_kind)
    for kind, overlap in by_kind.items():
        if published or kind in allowed:
            why = "as in the published data" if published else f"allowed by --allow={kind}"
            notes += [f"note: {line} ({why})" for line in shortened(overlap.lines, overlap.count)]
        else:
            problems += shortened([f"{line}; {ADVICE[kind]}" for line in overlap.lines], overlap.count)
    return problems, notes


def compare_with_paper(name: str, reports: Reports) -> tuple[list[str], list[str]]:
    """Returns the classes that the paper has in another split, as problems, and other differences, as notes."""
    counts = [len(report.digests) for _, _, report in each(reports)]
    paper = facts.class_splits(name)
    if paper is None:
        own, wanted = counted(sum(counts), "image"), facts.IMAGES.get(name, sum(counts))
        return [], [f"note: {own}, the published {name} has {wanted}"] if wanted != sum(counts) else []
    split_of = {class_name: split for split, names in paper.items() for class_name in names}
    problems = [
        f"class {class_name!r} is in {split}; in the paper's {name} it is in {split_of[class_name]}"
        for split, class_name, _ in each(reports)
        if split_of.get(class_name, split) != split
    ]
    notes = []
    for split, classes in reports.items():
        if len(classes) != len(paper[split]):
            own = counted(len(classes), "class")
            notes.append(f"note: split {split} has {own}, the paper's {name} has {len(paper[split])}")
        elif set(classes) - set(split_of):
            notes.append(f"note: split {split} has class names other than the paper's, which were not compared")
    wanted = facts.IMAGES_PER_CLASS.get(name)
    if wanted and set(counts) - {wanted}:
        notes.append(f"note: {_range(counts)} images a class, the paper's {name} has {wanted}")
    if name == "miniimagenet":
        files = [file for _, _, report in each(reports) for file in report.names]
        own = counted(len(files), "image")
        notes.append(f"note: {facts.listed(files)} of {own} have names on Ravi and Larochelle's list of 60000")
    return problems, notes

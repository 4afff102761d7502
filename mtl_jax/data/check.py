"""Looking a data set over, every image of it, before anything is trained on it."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mtl_jax.data import admission, decode, facts, overlaps
from mtl_jax.data.cache import build, writer
from mtl_jax.data.dataset import SPLITS
from mtl_jax.data.source import Contents, Images
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

SHOWN = overlaps.SHOWN  # problems of one kind that are listed
ADVICE = {
    "shared_classes": "leave it in one split",
    "shared_images": "leave it in one split",
    "repeated_images": "leave it there once",
}


@dataclasses.dataclass
class ClassReport:
    """What the images of one class turned out to be."""

    sizes: Counter = dataclasses.field(default_factory=Counter)
    modes: Counter = dataclasses.field(default_factory=Counter)
    digests: list[bytes] = dataclasses.field(default_factory=list)
    places: list[str] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Report:
    """What was found.

    lines: to be read.
    classes: a line a class: split, name, images.
    problems: to be mended.
    fingerprint: of the content, '' where an image could not be read.
    """

    lines: list[str]
    classes: list[str]
    problems: list[str]
    fingerprint: str = ""


Reports = Mapping[str, Mapping[str, ClassReport]]  # split -> class -> report


def check(
    name: str,
    contents: Contents,
    place: str,
    transform: Transform,
    *,
    format: str = "",
    allowed: Sequence[str] = (),
    way: int = 5,
    shot: int = 5,
    query: int = 15,
    workers: int = 0,
) -> Report:
    """Decodes every image of a source and reports on what it found; raises nothing for what is wrong with the data."""
    reports = examine(contents, transform, workers)
    problems = shortened([problem for _, _, report in each(reports) for problem in report.problems])
    fingerprint = "" if problems else fingerprint_of(reports)
    known = facts.known_fingerprints().get(fingerprint)
    try:
        build.check_contents(contents, place)
    except DataError as error:
        problems.append(str(error))
    problems += sizes_differ(reports, transform)
    problems += small_classes(reports, way, shot, query)
    misplaced, notes = compare_with_paper(name, reports)
    problems += shortened(misplaced)
    standing_twice, published = overlapping(name, format, reports, allowed)
    problems += standing_twice
    notes += published
    if fingerprint:
        notes.append(f"fingerprint {fingerprint}: {known or 'not a known variant'}")
    return Report(describe(reports) + notes, per_class(reports), problems, fingerprint)


def each(reports: Reports) -> Iterable[tuple[str, str, ClassReport]]:
    """Yields split, class and report."""
    for split, classes in reports.items():
        for name, report in classes.items():
            yield split, name, report


def shortened(problems: list[str]) -> list[str]:
    """Returns the first few problems and how many more there are."""
    more = len(problems) - SHOWN
    return problems if more <= 0 else [*problems[:SHOWN], f"... and {more} more of this kind"]


def examine(contents: Contents, transform: Transform, workers: int = 0) -> Reports:
    """Decodes everything; what cannot be read is a line of its class's report."""
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
            mode = "array" if isinstance(raw, np.ndarray) else decode.open_image(raw, images.where(index)).mode
            pixels, digest = decode.load(images, index, transform)
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
    """Returns a line a split: classes, images, images a class, sizes, modes."""
    lines = []
    for split, classes in reports.items():
        counts = [len(report.digests) for report in classes.values()] or [0]
        sizes = sum((report.sizes for report in classes.values()), Counter())
        modes = sum((report.modes for report in classes.values()), Counter())
        each_class = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        lines.append(
            f"{split}: {len(classes)} classes, {sum(counts)} images, {each_class} a class, "
            f"sizes {_counted((f'{w}x{h}', n) for (w, h), n in sizes.most_common(4))}"
            f"{' and others' if len(sizes) > 4 else ''}, modes {_counted(modes.most_common())}"
        )
    return lines


def per_class(reports: Reports) -> list[str]:
    """Returns a line a class: split, name, images."""
    return [f"{split}\t{name}\t{len(report.digests)}" for split, name, report in each(reports)]


def _counted(pairs: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{what} ({count})" for what, count in pairs) or "none"


def sizes_differ(reports: Reports, transform: Transform) -> list[str]:
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
            problems.append(f"split {split} has {len(classes)} classes, fewer than --way={way}")
        small = {name: len(report.digests) for name, report in classes.items() if len(report.digests) < shot + query}
        if small:
            name = min(small, key=lambda key: (small[key], key))
            problems.append(
                f"{len(small)} classes of split {split} have fewer images than --shot={shot} plus --query={query}; "
                f"{name!r} has {small[name]}"
            )
    return problems


def overlapping(name: str, format: str, reports: Reports, allowed: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Returns what stands in two splits, or twice in one: as problems, or as notes where a paper published it so."""
    classes = {split: {name: _images(report) for name, report in found.items()} for split, found in reports.items()}
    found, problems, notes = overlaps.find(classes, format), [], []
    published = bool(found) and admission.is_published(name, format, classes, found)
    for kind, overlap in found.items():
        more = overlap.count - len(overlap.lines)
        lines = [*overlap.lines, *([f"... and {more} more of this kind"] if more else [])]
        if published or kind in allowed:
            why = "as in the published data" if published else f"let through by --allow={kind}"
            notes += [f"note: {line} ({why})" for line in lines]
        else:
            problems += [f"{line}; {ADVICE[kind]}" for line in overlap.lines] + lines[len(overlap.lines) :]
    return problems, notes


def _images(report: ClassReport) -> overlaps.ClassImages:
    digests = np.frombuffer(b"".join(report.digests), np.uint8).reshape(-1, 16)
    return overlaps.ClassImages(digests, report.places.__getitem__, report.names.__getitem__)


def compare_with_paper(name: str, reports: Reports) -> tuple[list[str], list[str]]:
    """Returns the classes that stand in another split than the paper has them (problems), and what else differs."""
    known = facts.class_splits(name)
    if known is None:
        return [], images_in_all(name, reports)
    belongs = {class_name: split for split, names in known.items() for class_name in names}
    wrong = [
        f"class {class_name!r} is in {split}; in the paper's {name} it is in {belongs[class_name]}"
        for split, class_name, _ in each(reports)
        if belongs.get(class_name, split) != split
    ]
    notes = []
    for split, classes in reports.items():
        if len(classes) != len(known[split]):
            notes.append(f"note: split {split} has {len(classes)} classes, the paper's {name} has {len(known[split])}")
        elif set(classes) - set(belongs):
            notes.append(f"note: split {split} has class names other than the paper's, which were not compared")
    wanted = facts.IMAGES_PER_CLASS.get(name)
    counts = {len(report.digests) for _, _, report in each(reports)}
    if wanted and counts - {wanted}:
        found = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
        notes.append(f"note: {found} images a class, the paper's {name} has {wanted}")
    if name == "miniimagenet":
        names = [name for _, _, report in each(reports) for name in report.names]
        notes.append(
            f"note: {facts.listed(names)} of {len(names)} images have names on Ravi and Larochelle's list of 60000"
        )
    return wrong, notes


def images_in_all(name: str, reports: Reports) -> list[str]:
    """Returns a note where a set, whose number of images is known, has another number."""
    wanted, count = facts.IMAGES.get(name), sum(len(report.digests) for _, _, report in each(reports))
    return [f"note: {count} images, the published {name} has {wanted}"] if wanted and count != wanted else []


def fingerprint_of(reports: Reports) -> str:
    """Returns the fingerprint that the data set would have in the cache."""
    rows = {
        split: [np.frombuffer(b"".join(report.digests), np.uint8).reshape(-1, 16) for report in classes.values()]
        for split, classes in reports.items()
    }
    return writer.fingerprint(rows)

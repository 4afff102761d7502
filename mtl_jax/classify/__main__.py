"""Sorts photographs: from a few examples of each class and a folder of unsorted images, a table and a contact sheet.

    python -m mtl_jax.classify --support=my_classes --query=unsorted
    python -m mtl_jax.classify --support=my_classes --query=unsorted --workdir=runs/mine --unknown=0.5

my_classes/ has one folder per class, with any number of images in each; unsorted/ has images at any depth. What a file
holds decides whether it is an image, not its name; every other file is named and left out. It writes
predictions.csv (file, class, probability, runner-up and its probability) and predictions.png, a contact sheet.
With --unknown, an image that is less like your images than these are like one another is 'unknown'; with --unknown=P,
one whose most probable class is less probable than P. The table then gives that class as the runner-up, and its
probability in both columns.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.classify import contact_sheet, folders, sort, unknown
from mtl_jax.classify.classifier import PRETRAINED
from mtl_jax.config import own_backbone
from mtl_jax.data.transforms import MAX_PIXELS
from mtl_jax.errors import ConfigError, DataError, MtlError
from mtl_jax.launch import program
from mtl_jax.reference_weights import kept_networks
from mtl_jax.words import counted

_UNCALIBRATED = (
    "warning: one image of each class, and no temperature was measured for this network: the probabilities are not "
    "calibrated; add a second image to a class, or give --temperature"
)


def parser() -> program.Parser:
    """The program's parser."""
    root = program.Parser("python -m mtl_jax.classify", description=__doc__)
    root.add_argument("--workdir", type=Path, help="the run of train.py whose network to use")
    names = ", ".join(kept_networks.packaged_names())
    about = (
        f"a network of the package: {names} ({PRETRAINED}); or a weight file of torchvision, timm, DINO or Hugging "
        f"Face, or {own_backbone.HUB}OWNER/NAME; {own_backbone.WITH_RUN}"
    )
    root.add_argument("--backbone", metavar="NAME|FILE", help=about)
    root.add_argument("--support", type=Path, help="a folder with one folder of images per class")
    root.add_argument("--classifier", type=Path, help="instead of --support: a file that --save wrote")
    root.add_argument("--query", type=Path, required=True, help="a folder of images to sort, or one image")
    root.add_argument("--output", type=Path, default=Path("predictions.csv"), help="the table (predictions.csv)")
    root.add_argument("--sheet", type=Path, help="the contact sheet (the table's name with .png)")
    about = "answer 'unknown' where an image is of none of the classes; with P, below this probability"
    root.add_argument("--unknown", nargs="?", const=unknown.AUTO, type=probability, metavar="P", help=about)
    about = "with --unknown alone: the share of your own images that may be taken for unknown (0.05)"
    root.add_argument("--false-alarms", type=float, metavar="R", help=about)
    root.add_argument("--unknown-label", metavar="NAME", help="that answer, where a class is called 'unknown'")
    root.add_argument("--temperature", type=float, help="of the probabilities (default: found by leaving images out)")
    root.add_argument("--max-pixels", type=int, metavar="N", help=f"leave out images with more ({MAX_PIXELS})")
    root.add_argument("--save", type=Path, help="write the fitted classifier to this file")
    target = root.add_mutually_exclusive_group()
    target.add_argument("--copy", type=Path, metavar="DIR", help="copy the images into class folders here")
    target.add_argument("--link", type=Path, metavar="DIR", help="link them there instead")
    return root


def probability(text: str) -> float | str:
    """The value of --unknown."""
    return text if text == unknown.AUTO else float(text)


def run(argv: Sequence[str]) -> int:
    """The program."""
    flags = parser().parse_args(argv[1:])
    if bool(flags.support) == bool(flags.classifier):
        raise ConfigError("give either --support=DIR or --classifier=FILE")
    if flags.false_alarms is not None and flags.unknown not in (None, unknown.AUTO):
        raise ConfigError("--false-alarms goes with --unknown alone, without a probability: leave one of them out")
    backbone = own_backbone.load_beside(flags.workdir, flags.backbone)
    query = folders.find_images(flags.query)
    support = folders.find_support(flags.support) if flags.support else None
    sheet = flags.sheet or flags.output.with_suffix(".png")
    sort.refuse_overwriting(
        {"table": flags.output, "contact sheet": sheet, "classifier": flags.save},
        [*(flags.query / file for file in query.files), *(support.files if support else [])],
    )
    if not query.files:
        _print_left_out(query.left_out)
        raise _nothing_to_read(flags.query, query.left_out)
    classifier = sort.make_classifier(
        support, flags.classifier, flags.workdir, backbone,
        unknown=flags.unknown, false_alarms=flags.false_alarms, unknown_label=flags.unknown_label,
        temperature=flags.temperature, max_pixels=flags.max_pixels,
    )  # fmt: skip
    if not classifier.is_calibrated_:
        print(_UNCALIBRATED, file=sys.stderr)
    read = sort.read_photos(flags.query, query.files, classifier.image_transform)
    photos = [photo for photo in read if isinstance(photo, sort.Photo)]
    left_out = [*query.left_out, *(str(error) for error in read if isinstance(error, MtlError))]
    _print_left_out([*(support.left_out if support else []), *left_out])
    if not photos:
        raise _nothing_to_read(flags.query, left_out)
    sort.warn_of_copies(classifier, photos)
    predictions = sort.predict(classifier, photos)
    sort.write_table(flags.output, predictions)
    contact_sheet.save(sheet, predictions, [photo.thumbnail for photo in photos])
    if flags.copy or flags.link:
        sort.sort_files(flags.query, predictions, flags.copy or flags.link, link=bool(flags.link))
    if flags.save:
        classifier.save(flags.save)
    of_support = f", {counted(len(support.left_out), 'file')} left out" if support and support.left_out else ""
    print(f"{sort.describe_support(classifier)}{of_support}; {counted(len(photos), 'image')} sorted, "
          f"{len(left_out)} left out: {flags.output}, {sheet}")  # fmt: skip
    return 0


def _print_left_out(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"left out: {line}", file=sys.stderr)


def _nothing_to_read(query: Path, left_out: Sequence[str]) -> DataError:
    files = counted(len(left_out), "file")
    return DataError(f"{query}: no image that can be read, {files} left out; nothing is written")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Sorts photographs: from a few examples of each class and a folder of unsorted images, a table and a contact sheet.

    python -m mtl_jax.classify --support=my_classes --query=unsorted
    python -m mtl_jax.classify --support=my_classes --query=unsorted --workdir=runs/mine --unknown=0.5

my_classes/ has one folder per class, with any number of images in each; unsorted/ has images at any depth. It writes
predictions.csv (file, class, probability, runner-up and its probability) and predictions.png, a contact sheet.
With --unknown=P, an image whose most probable class is less probable than P is 'unknown'. The table then gives that
class as the runner-up, and its probability in both columns.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.classify import contact_sheet, sort
from mtl_jax.errors import MtlError
from mtl_jax.launch import program


def parser() -> program.Parser:
    """The program's parser."""
    root = program.Parser("python -m mtl_jax.classify", description=__doc__)
    root.add_argument("--workdir", type=Path, help="the run of train.py whose network to use (default: the package's)")
    root.add_argument("--support", type=Path, help="a folder with one folder of images per class")
    root.add_argument("--classifier", type=Path, help="instead of --support: a file that --save wrote")
    root.add_argument("--query", type=Path, required=True, help="a folder of images to sort, or one image")
    root.add_argument("--output", type=Path, default=Path("predictions.csv"), help="the table (predictions.csv)")
    root.add_argument("--sheet", type=Path, help="the contact sheet (the table's name with .png)")
    root.add_argument("--unknown", type=float, metavar="P", help="answer 'unknown' below this probability")
    root.add_argument("--temperature", type=float, help="of the probabilities (default: found by leaving images out)")
    root.add_argument("--save", type=Path, help="write the fitted classifier to this file")
    target = root.add_mutually_exclusive_group()
    target.add_argument("--copy", type=Path, metavar="DIR", help="copy the images into class folders here")
    target.add_argument("--link", type=Path, metavar="DIR", help="link them there instead")
    return root


def run(argv: Sequence[str]) -> int:
    """The program."""
    flags = parser().parse_args(argv[1:])
    files = sort.find_images(flags.query)
    classifier = sort.make_classifier(
        flags.support, flags.classifier, flags.workdir, unknown=flags.unknown, temperature=flags.temperature
    )
    read = sort.read_photos(flags.query, files, classifier.image_transform)
    photos = [photo for photo in read if isinstance(photo, sort.Photo)]
    errors = [error for error in read if isinstance(error, MtlError)]
    sort.warn_of_copies(classifier, photos)
    predictions = sort.predict(classifier, photos)
    sort.write_table(flags.output, predictions)
    sheet = flags.sheet or flags.output.with_suffix(".png")
    contact_sheet.save(sheet, predictions, [photo.thumbnail for photo in photos])
    if flags.copy or flags.link:
        sort.sort_files(flags.query, predictions, flags.copy or flags.link, link=bool(flags.link))
    if flags.save:
        classifier.save(flags.save)
    for error in errors:
        print(f"left out: {error}", file=sys.stderr)
    print(f"{sort.describe_support(classifier)}; {len(photos)} images sorted, {len(errors)} left out: "
          f"{flags.output}, {sheet}")  # fmt: skip
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

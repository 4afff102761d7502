"""Sorts photographs: class folders with some images each, and a folder of unsorted ones, into a table and a picture.

    python -m mtl_jax.classify --support=my_classes --query=unsorted
    python -m mtl_jax.classify --support=my_classes --query=unsorted --workdir=runs/mine --unknown=0.5

my_classes/ has a folder a class with any number of images; unsorted/ has images at any depth. It writes
predictions.csv (file, class, probability, runner-up and its probability) and predictions.png, a contact sheet.
Of an image that is 'unknown' (--unknown=0.5) the runner-up is the most probable class.
With --unknown=P an image whose most probable class is less probable than P is 'unknown'; that class is then its
runner-up, and the probability its.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.classify.sort import (
    Photo,
    describe_support,
    find_images,
    fit,
    predict,
    read_photos,
    sort_files,
    warn_of_copies,
    write_table,
)
from mtl_jax.errors import MtlError
from mtl_jax.launch import program


def parser() -> program.Parser:
    """The program's parser."""
    root = program.Parser("python -m mtl_jax.classify", description=__doc__)
    root.add_argument(
        "--workdir", type=Path, help="a run of train.py: the network (the one that comes with the package)"
    )
    root.add_argument("--support", type=Path, help="a folder of class folders: the classes")
    root.add_argument("--classifier", type=Path, help="instead of --support: what --save has written")
    root.add_argument("--query", type=Path, required=True, help="a folder of images to sort, or one image")
    root.add_argument("--output", type=Path, default=Path("predictions.csv"), help="the table (predictions.csv)")
    root.add_argument("--sheet", type=Path, help="the contact sheet (the table's name with .png)")
    root.add_argument("--unknown", type=float, metavar="P", help="answer 'unknown' below this probability")
    root.add_argument("--temperature", type=float, help="of the probabilities (found by leaving images out)")
    root.add_argument("--save", type=Path, help="keep the fitted classifier in this file")
    sort = root.add_mutually_exclusive_group()
    sort.add_argument("--copy", type=Path, metavar="DIR", help="copy the images into class folders here")
    sort.add_argument("--link", type=Path, metavar="DIR", help="link them there instead")
    return root


def run(argv: Sequence[str]) -> int:
    """The program."""
    from mtl_jax.classify import contact_sheet

    flags = parser().parse_args(argv[1:])
    files = find_images(flags.query)
    classifier = fit(flags)
    found = read_photos(flags.query, files, classifier.image_transform)
    photos = [photo for photo in found if isinstance(photo, Photo)]
    warn_of_copies(classifier, photos)
    predictions = predict(classifier, photos)
    write_table(flags.output, predictions)
    sheet = flags.sheet or flags.output.with_suffix(".png")
    contact_sheet.save(sheet, predictions, [photo.thumbnail for photo in photos])
    if flags.copy or flags.link:
        sort_files(flags.query, predictions, flags.copy or flags.link, link=bool(flags.link))
    if flags.save:
        classifier.save(flags.save)
    for error in found:
        if isinstance(error, MtlError):
            print(f"left out: {error}", file=sys.stderr)
    print(f"{describe_support(classifier)}; {len(photos)} images sorted, {len(found) - len(photos)} left out: "
          f"{flags.output}, {sheet}")  # fmt: skip
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; a user's error is one line and status 2."""
    return program.run(run, argv)


if __name__ == "__main__":
    sys.exit(main())

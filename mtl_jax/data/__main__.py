"""Prepares and checks data sets.

python -m mtl_jax.data prepare NAME [PATH]     decode it, from any format, into the cache
python -m mtl_jax.data check NAME [PATH]       report what it holds and what is wrong; status 0 only if all is well
python -m mtl_jax.data tfds NAME [DATA_DIR]    fc100 or cifar_fs as a TFDS data set, without TensorFlow

NAME is glyphs, omniglot, miniimagenet, fc100, cifar_fs, tieredimagenet, cub, folder or tfds:NAME.
"""

import argparse
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mtl_jax.data import check, overlaps, pictures
from mtl_jax.data.cache import reader
from mtl_jax.data.load import Options, load, locate
from mtl_jax.data.sources import find, tfds_source
from mtl_jax.data.transforms import INTERPOLATIONS, MAX_PIXELS
from mtl_jax.errors import DataError
from mtl_jax.launch import program
from mtl_jax.words import counted


def parser() -> program.Parser:
    """Returns the parser of all commands."""
    root = program.Parser("python -m mtl_jax.data", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="decode a data set into the cache")
    checking = commands.add_parser("check", help="decode a data set and report what is wrong with it")
    for command in (prepare, checking):
        add = command.add_argument
        add("name", metavar="NAME", help="one of: " + ", ".join((*find.NAMES, "tfds:NAME")))
        add("path", metavar="PATH", nargs="?", default="", help="its folder or file; not needed for glyphs")
        add("--image-size", type=int, default=0, help="side of the stored square images in pixels; 0: unchanged")
        add("--resize", type=int, default=0, help="shorter side before the centre crop; 0: the image size")
        add("--interpolation", choices=tuple(INTERPOLATIONS), default="bilinear", help="resize method (%(default)s)")
        add("--channels", type=int, default=0, help="1 or 3; 0: as in the source")
        add("--fractions", type=_fractions, default=(), help="share of the classes for train,val,test: 0.5,0.25,0.25")
        add("--lists", default="", help="class lists of the splits: a JSON file, or a folder with train.txt, ...")
        add("--split-seed", type=int, default=0, help="seed that assigns classes to the fractions")
        add("--rotations", action="store_true", help="add rotated training classes as classes")
        add("--convert", action="store_true", help="accept 16-bit, CMYK, palette, alpha, EXIF-rotated, animated images")
        add("--skip-corrupt", action="store_true", help="skip damaged files and files that are not images")
        add("--max-pixels", type=int, default=MAX_PIXELS, help=f"largest image to read, in pixels ({MAX_PIXELS})")
        add("--allow", default="", help="accept shared_classes, shared_images, repeated_images (comma-separated)")
        add("--cache-dir", default="", help="default: $MTL_JAX_CACHE, or ~/.cache/mtl_jax")
        add("--workers", type=int, default=0, help="decoding threads; 0: one per processor")
    add = checking.add_argument
    add("--way", type=int, default=5, help="classes per task (5)")
    add("--shot", type=int, default=5, help="support images per class (5)")
    add("--query", type=int, default=15, help="query images per class (15)")
    add("--classes", action="store_true", help="list every class with its number of images")
    add("--png", type=Path, help="save a picture of some classes here, and of one task as *-episode.png")
    add = commands.add_parser("tfds", help="prepare fc100 or cifar_fs for TFDS").add_argument
    add("name", metavar="NAME", choices=tfds_source.OWN, help=" or ".join(tfds_source.OWN))
    add("data_dir", metavar="DATA_DIR", nargs="?", default="", help="TFDS's data directory (~/tensorflow_datasets)")
    add("--manual-dir", default="", help="folder with cifar-100-python.tar.gz or its contents; default: download")
    return root


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}, expected three numbers: 0.5,0.25,0.25") from error


def options(flags: argparse.Namespace) -> Options:
    """Returns the options of `load` from the flags."""
    return Options(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(Options)})


def prepare(flags: argparse.Namespace) -> int:
    """Prepares a data set and prints what it has and where it is."""
    with tqdm(unit=" images", disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        dataset = load(flags.name, flags.path, **vars(options(flags)), progress=progress)
    for split in dataset.splits.values():
        print(f"{split.name}: {counted(len(split.class_names), 'class')}, {list(split.images.shape)} images")
    for line in dataset.skipped:
        print(f"left out: {line}")
    for caveat in dataset.caveats:
        print(f"let through: {caveat}")
    if dataset.skipped:
        print(f"{counted(len(dataset.skipped), 'image')} left out")
    print(f"{dataset.name} from {dataset.format}, fingerprint {dataset.fingerprint}, in {dataset.cache}")
    return 0


def check_data(flags: argparse.Namespace) -> int:
    """Checks a data set, prints what it has found, and returns 0 only if nothing is wrong with it."""
    located = locate(flags.name, flags.path, options(flags))
    source = located.source
    print(f"format: {source.format}")
    print(f"cache: {located.folder}{'' if located.folder.exists() else ' (not prepared yet)'}")
    task = {key: getattr(flags, key) for key in ("way", "shot", "query")}
    root = reader.directory(flags.cache_dir)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=root if root.is_dir() else None) as scratch:
        report = check.check(
            flags.name, source.read(Path(scratch)), source.path, source.settle(located.transform),
            format=source.format, allowed=overlaps.parse_allowed(flags.allow), workers=flags.workers, **task,
        )  # fmt: skip
    for line in report.lines + (report.classes if flags.classes else []):
        print(line)
    for problem in report.problems:
        print(f"problem: {problem}")
    if flags.png:
        draw(flags, task)
    print("all is well" if not report.problems else counted(len(report.problems), "problem"))
    return program.EXIT_USER_ERROR if report.problems else 0


def draw(flags: argparse.Namespace, task: dict[str, int]) -> None:
    """Saves the pictures of `--png`; overlaps do not stand in their way."""
    lenient = dataclasses.replace(options(flags), allow=",".join(overlaps.KINDS))
    dataset = load(flags.name, flags.path, **vars(lenient))
    pictures.class_grid(dataset).save(flags.png)
    episode = flags.png.with_name(f"{flags.png.stem}-episode.png")
    pictures.episode_grid(dataset.splits["test"], **task).save(episode)
    print(f"pictures: {flags.png}, {episode}")


def prepare_tfds(flags: argparse.Namespace) -> int:
    """Prepares one of this package's TFDS data sets."""
    tfds_source.require_array_record(flags.data_dir or flags.name)
    from mtl_jax.data.sources import tfds_builders

    print(tfds_builders.prepare(flags.name, flags.data_dir, flags.manual_dir))
    return 0


COMMANDS = {"prepare": prepare, "check": check_data, "tfds": prepare_tfds}


def run(argv: Sequence[str]) -> int:
    """The program."""
    logging.basicConfig(format="%(message)s")
    flags = parser().parse_args(argv[1:])
    try:
        return COMMANDS[flags.command](flags)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(str(error)) from error


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; a user's error is one line and status 2. `words` are those after the program's name."""
    return program.run(run, None if words is None else ["mtl_jax.data", *words])


if __name__ == "__main__":
    sys.exit(main())

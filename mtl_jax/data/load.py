"""Loading a data set: find it, prepare it into the cache once, open it from there."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.data import overlaps
from mtl_jax.data.cache import build, reader
from mtl_jax.data.dataset import Dataset
from mtl_jax.data.source import Contents, Source, Stamp
from mtl_jax.data.sources import trees
from mtl_jax.data.sources.find import find
from mtl_jax.data.sources.splitting import Lists, Splitting, read_lists
from mtl_jax.data.transforms import MAX_PIXELS, Transform

COLOUR = ("miniimagenet", "fc100", "cifar_fs", "tieredimagenet", "cub")
UNSAFE = str.maketrans(":/", "--")  # in the names of TFDS data sets


@dataclasses.dataclass(frozen=True)
class Options:
    """What `load` takes besides the name and the path; it explains them."""

    image_size: int = 0
    resize: int = 0
    interpolation: str = "bilinear"
    channels: int = 0
    fractions: Sequence[float] = ()
    lists: str | Lists = ""
    split_seed: int = 0
    rotations: bool = False
    convert: bool = False
    skip_corrupt: bool = False
    max_pixels: int = MAX_PIXELS
    allow: str = ""
    cache_dir: str = ""
    workers: int = 0


@dataclasses.dataclass(frozen=True)
class Located:
    """A data set that was found but not read: its source, its folder in the cache, the transform that was asked for."""

    source: Source
    folder: Path
    transform: Transform


def load(
    name: str = "glyphs",
    path: str = "",
    *,
    image_size: int = 0,
    resize: int = 0,
    interpolation: str = "bilinear",
    channels: int = 0,
    fractions: Sequence[float] = (),
    lists: str | Lists = "",
    split_seed: int = 0,
    rotations: bool = False,
    convert: bool = False,
    skip_corrupt: bool = False,
    max_pixels: int = MAX_PIXELS,
    allow: str = "",
    cache_dir: str = "",
    workers: int = 0,
    progress: build.Progress | None = None,
    inspect: build.Inspect | None = None,
) -> Dataset:
    """Returns a data set as memory maps of the cache, where the first call prepares it.

    Args:
        name: a name in `sources.find.NAMES`, or 'tfds:NAME'.
        path: the folder or file that holds it, in any format that `sources.find` lists; not needed for 'glyphs'.
        image_size, resize, interpolation, channels, convert: how images are stored; see `Transform`.
        fractions, lists, split_seed: the splits of classes that come without; see `Splitting` and `read_lists`.
        rotations: the train classes rotated by 90, 180 and 270 degrees are further train classes.
        skip_corrupt: skip files that are damaged or not images, instead of refusing the data set.
        max_pixels: images with more are refused, or skipped with `skip_corrupt`; see `Transform`.
        allow: comma-separated kinds of overlap (`overlaps.KINDS`) to accept; `Dataset.caveats` then says so.
        cache_dir: where the cache is; '' is $MTL_JAX_CACHE, or else ~/.cache/mtl_jax.
        workers, progress, inspect: for the first call; see `build`.

    Raises:
        DataError: in one line, what was found, where, and what to do.
    """
    options = Options(
        image_size=image_size, resize=resize, interpolation=interpolation, channels=channels, convert=convert,
        fractions=fractions, lists=lists, split_seed=split_seed,
        rotations=rotations, skip_corrupt=skip_corrupt, max_pixels=max_pixels, allow=allow, cache_dir=cache_dir,
        workers=workers,
    )  # fmt: skip
    allowed = overlaps.parse_allowed(allow)
    folder = folder_of_file(name, path, options)
    if folder is None or not folder.exists():
        located = locate(name, path, options)
        source, folder = located.source, located.folder
        if not folder.exists():
            build.build(
                source, folder, source.settle(located.transform),
                skip_corrupt=skip_corrupt, workers=workers, progress=progress, inspect=inspect,
            )  # fmt: skip
    return overlaps.admitted(reader.open_folder(folder, name), allowed, path)


def locate(name: str, path: str, options: Options) -> Located:
    """Finds a data set, and the folder that it has or will have in the cache, without reading images; see `load`."""
    source = find(name, path, splitting_of(options))
    if options.rotations:
        source = dataclasses.replace(source, read=lambda scratch, read=source.read: with_rotations(read(scratch)))
    return Located(source, folder_for(name, source.stamps, options), transform_of(name, options))


def folder_of_file(name: str, path: str, options: Options) -> Path | None:
    """Returns the cache's folder of a data set that is a single file, without opening it; None for anything else."""
    file = Path(path).expanduser()
    if not path or not file.is_file():
        return None
    return folder_for(name, [trees.stamp(file, file.parent)], options)


def folder_for(name: str, stamps: Sequence[Stamp], options: Options) -> Path:
    """Returns the cache's folder of a data set; its name depends on all that the content depends on."""
    transform = dict(vars(transform_of(name, options)))
    if transform["interpolation"] == "bilinear":  # as before there was a choice, so that caches stay valid
        del transform["interpolation"]
    state = {
        **transform,
        **vars(splitting_of(options)),
        "rotations": options.rotations,
        "skip_corrupt": options.skip_corrupt,
    }
    if options.max_pixels == MAX_PIXELS:
        del state["max_pixels"]  # caches that are older than the option stay valid
    return reader.directory(options.cache_dir) / f"{name.translate(UNSAFE)}-{reader.key(stamps, state)}"


def transform_of(name: str, options: Options) -> Transform:
    """Returns how to store images, before the source's own wishes (`Source.settle`)."""
    channels = options.channels or (3 if name in COLOUR else 0)
    return Transform(
        options.image_size, options.resize, channels, options.convert, max_pixels=int(options.max_pixels),
        interpolation=options.interpolation,
    )  # fmt: skip


def splitting_of(options: Options) -> Splitting:
    """Returns how to split classes that come without a split."""
    return Splitting(tuple(options.fractions), read_lists(options.lists), options.split_seed)


def with_rotations(contents: Contents) -> Contents:
    """Returns the contents with three more classes for each class of the train split, its images rotated."""
    train = dict(contents.get("train", {}))
    for name, images in contents.get("train", {}).items():
        for quarters, degrees in enumerate(overlaps.ROTATIONS, 1):
            train[f"{name}/{degrees}"] = dataclasses.replace(images, turns=quarters)
    return {**contents, "train": {name: train[name] for name in sorted(train)}} if train else contents

"""Loading a data set: find it, prepare it once into the cache, open it from there."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.data import admission
from mtl_jax.data.cache import build, reader
from mtl_jax.data.dataset import Dataset
from mtl_jax.data.source import Contents, Source, Stamp
from mtl_jax.data.sources import splitting, trees
from mtl_jax.data.sources.find import find
from mtl_jax.data.transforms import Transform

COLOUR = ("miniimagenet", "fc100", "cifar_fs", "tieredimagenet", "cub")
TURNS = (1, 2, 3)
UNSAFE = str.maketrans(":/", "--")  # in the names of TFDS data sets


@dataclasses.dataclass(frozen=True)
class Options:
    """What `load` takes besides the name and the path; see there."""

    image_size: int = 0
    resize: int = 0
    channels: int = 0
    fractions: Sequence[float] = ()
    lists: str | splitting.Lists = ""
    split_seed: int = 0
    rotations: bool = False
    convert: bool = False
    skip_corrupt: bool = False
    allow: str = ""
    cache_dir: str = ""
    workers: int = 0


@dataclasses.dataclass(frozen=True)
class Located:
    """A data set that was found but not read: its source, its folder of the cache, the transform that was asked for."""

    source: Source
    folder: Path
    transform: Transform


def load(
    name: str = "glyphs",
    path: str = "",
    *,
    image_size: int = 0,
    resize: int = 0,
    channels: int = 0,
    fractions: Sequence[float] = (),
    lists: str | splitting.Lists = "",
    split_seed: int = 0,
    rotations: bool = False,
    convert: bool = False,
    skip_corrupt: bool = False,
    allow: str = "",
    cache_dir: str = "",
    workers: int = 0,
    progress: build.Progress | None = None,
    inspect: build.Inspect | None = None,
) -> Dataset:
    """Returns a data set as memory maps of the cache, where it is prepared at the first call.

    Args:
        name: 'glyphs' (needs no path), 'omniglot', 'miniimagenet', 'fc100', 'cifar_fs', 'tieredimagenet', 'cub',
            'folder' or 'tfds:NAME'.
        path: the folder or archive that holds it, in any format that `find` knows.
        image_size: side of the stored square, in pixels; 0 keeps the native size, which must be the same for all.
        resize: the shorter side before the centre crop to `image_size`; 0 is the same as `image_size`.
        channels: 1 or 3; 0 is as the source has it (3 for the named colour data sets).
        fractions: of the classes for train, val and test, where they come without a split; (0, 0, 1) for evaluation.
        lists: the classes of each split instead: a mapping, a JSON file, or a folder with {train,val,test}.txt.
        split_seed: which classes the fractions pick.
        rotations: the train split's classes turned by 90, 180 and 270 degrees are classes of their own.
        convert: take images of unusual modes (16-bit, CMYK, palette, alpha, EXIF-rotated, animated), not refuse them.
        skip_corrupt: leave out damaged images instead of refusing the data set.
        allow: any of 'shared_classes', 'shared_images' and 'repeated_images', with commas between: classes or images
            that stand in two splits, and images that stand twice in one, are let through, not refused, and
            `Dataset.caveats` says so. What stands so in a published data set needs no leave.
        cache_dir: where the cache is; '' is $MTL_JAX_CACHE or else ~/.cache/mtl_jax.
        workers: threads that decode; 0 is one a processor.
        progress: called with the number of images done and of all.
        inspect: called with the images by split and class, before one is decoded; may raise. Not where the cache has
            the data set already.

    Raises:
        DataError: in one line, what was found, where, and what to do.
    """
    options = Options(
        image_size=image_size,
        resize=resize,
        channels=channels,
        fractions=fractions,
        lists=lists,
        split_seed=split_seed,
        rotations=rotations,
        convert=convert,
        skip_corrupt=skip_corrupt,
        allow=allow,
        cache_dir=cache_dir,
        workers=workers,
    )
    allowed = admission.parse(allow)
    folder = folder_of_file(name, path, options)
    if folder is None or not folder.exists():
        found = locate(name, path, options)
        folder = found.folder
        if not folder.exists():
            build.build(
                found.source,
                folder,
                found.source.settle(found.transform),
                skip_corrupt=skip_corrupt,
                workers=workers,
                progress=progress,
                inspect=inspect,
            )
    return admission.admitted(reader.open_folder(folder, name), allowed, path)


def locate(name: str, path: str, options: Options) -> Located:
    """Finds a data set and the folder of the cache that it has or will have, without reading images; see `load`."""
    source = find(name, path, splitting_of(options))
    if options.rotations:
        source = dataclasses.replace(source, read=lambda scratch, read=source.read: with_rotations(read(scratch)))
    return Located(source, folder_for(name, source.stamps, options), transform_of(name, options))


def folder_of_file(name: str, path: str, options: Options) -> Path | None:
    """Returns the cache's folder for a data set in a single file, which need not be opened for it; else None."""
    place = Path(path).expanduser()
    if not path or not place.is_file():
        return None
    return folder_for(name, [trees.stamp(place, place.parent)], options)


def folder_for(name: str, stamps: Sequence[Stamp], options: Options) -> Path:
    """Returns the cache's folder of a data set, by what its content depends on."""
    state = {
        **vars(transform_of(name, options)),
        **vars(splitting_of(options)),
        "rotations": options.rotations,
        "skip_corrupt": options.skip_corrupt,
    }
    return reader.directory(options.cache_dir) / f"{name.translate(UNSAFE)}-{reader.key(stamps, state)}"


def transform_of(name: str, options: Options) -> Transform:
    """Returns how images are to be stored, before the source has its say."""
    channels = options.channels or (3 if name in COLOUR else 0)
    return Transform(options.image_size, options.resize, channels, options.convert)


def splitting_of(options: Options) -> splitting.Splitting:
    """Returns how classes that come without a split are split."""
    return splitting.Splitting(tuple(options.fractions), splitting.read_lists(options.lists), options.split_seed)


def with_rotations(contents: Contents) -> Contents:
    """Returns the contents with three more classes for each class of the train split, its images turned."""
    train = dict(contents.get("train", {}))
    for name, images in contents.get("train", {}).items():
        for turns in TURNS:
            train[f"{name}/{90 * turns:03d}"] = dataclasses.replace(images, turns=turns)
    return {**contents, "train": {name: train[name] for name in sorted(train)}} if train else contents

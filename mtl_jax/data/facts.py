"""What is known of published data sets: the papers' splits, numbers of images, fingerprints."""

import functools
import gzip
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

IMAGES_PER_CLASS = {"miniimagenet": 600, "fc100": 600, "cifar_fs": 600, "omniglot": 20}
IMAGES = {"cub": 11788}  # in all; its classes have different numbers


@functools.cache
def _json(name: str) -> dict:
    raw = resources.files("mtl_jax.data").joinpath(name).read_bytes()
    return json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)


def class_splits(name: str) -> Mapping[str, Sequence[str]] | None:
    """Returns split -> class names of a published data set, None if its paper does not list them."""
    if name == "miniimagenet":
        return {split: sorted(classes) for split, classes in miniimagenet().items()}
    if name == "tieredimagenet":
        splits = _json("tieredimagenet.json")["splits"]
        return {split: sorted(itertools.chain(*classes.values())) for split, classes in splits.items()}
    if name == "cifar_fs":
        return _json("cifar100.json")["cifar_fs"]
    if name == "fc100":
        known = _json("cifar100.json")
        return {
            split: sorted(itertools.chain(*(known["coarse"][coarse] for coarse in superclasses)))
            for split, superclasses in known["fc100"].items()
        }
    return None


def fc100_superclasses() -> Mapping[str, Sequence[str]]:
    """Returns split -> super-classes of FC100 (Oreshkin et al., 2018)."""
    return _json("cifar100.json")["fc100"]


def cifar100_names() -> Sequence[str]:
    """Returns the 100 class names of CIFAR-100; a class's position is its fine label."""
    return sorted(itertools.chain(*_json("cifar100.json")["coarse"].values()))


@functools.cache
def miniimagenet() -> Mapping[str, Mapping[str, Sequence[int]]]:
    """Returns split -> class -> which of ILSVRC2012's images its 600 are, from 1 in the order of file names."""
    splits = _json("miniimagenet.json.gz")["splits"]
    return {
        split: {name: tuple(itertools.accumulate(steps)) for name, steps in classes.items()}
        for split, classes in splits.items()
    }


def stem(file: str) -> str:
    """Returns a file's name without folder and suffix."""
    return file.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def listed(files: Iterable[str]) -> int:
    """Returns how many of the file names are on Ravi and Larochelle's list of mini-ImageNet's 60,000."""
    names = {f"{c}{n:08d}" for classes in miniimagenet().values() for c, numbers in classes.items() for n in numbers}
    return sum(stem(file) in names for file in files)


def is_published_size(name: str, class_name: str, images: int) -> bool:
    """Returns whether a class of the published data set `name` has this number of images."""
    if name != "tieredimagenet":
        return images == IMAGES_PER_CLASS.get(name)
    if any(class_name in names for names in class_splits(name).values()):
        return images == ilsvrc_images(class_name)
    known = _json("ilsvrc2012.json")
    return images in (known["images"], *known["fewer"].values())


def ilsvrc_images(class_name: str) -> int:
    """Returns how many train images a class of ILSVRC2012 has: 1300, except in 105 of the 1000 classes 732 to 1299.

    They are 1,281,167 in all. The numbers are from Meta-Dataset's ilsvrc_2012_num_leaf_images.json, plus the 403 images
    that it leaves out as copies of images in other data sets (its ImageNet_*_duplicates.txt).
    """
    known = _json("ilsvrc2012.json")
    return known["fewer"].get(class_name, known["images"])


def known_fingerprints() -> Mapping[str, str]:
    """Returns fingerprint -> what it is of, for the variants of data sets that could be measured."""
    return _json("fingerprints.json")

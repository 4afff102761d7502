"""The splits that the papers fixed, shipped with the package."""

import functools
import gzip
import itertools
import json
from collections.abc import Mapping, Sequence
from importlib import resources

IMAGES_PER_CLASS = {"miniimagenet": 600, "fc100": 600, "cifar_fs": 600}
IMAGES = {"cub": 11788}  # in all, where classes have different numbers


@functools.cache
def _json(name: str) -> dict:
    raw = resources.files("mtl_jax.data").joinpath(name).read_bytes()
    return json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)


def class_splits(name: str) -> Mapping[str, Sequence[str]] | None:
    """Returns split -> class names of a published data set, None where the paper's classes are not by name."""
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
    """Returns split -> class -> the numbers of its 600 images in ILSVRC2012, from 1 in order of file names."""
    splits = _json("miniimagenet.json.gz")["splits"]
    return {
        split: {name: tuple(itertools.accumulate(steps)) for name, steps in classes.items()}
        for split, classes in splits.items()
    }


def known_fingerprints() -> Mapping[str, str]:
    """Returns fingerprint -> what it is, for the variants of data sets that could be measured."""
    return _json("fingerprints.json")

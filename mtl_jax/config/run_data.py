"""The data of a run: what it was trained on, as its workdir keeps it, and whether other data may test it."""

import contextlib
import copy
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.config import build, config
from mtl_jax.config.rules import is_weights
from mtl_jax.configs import default
from mtl_jax.data import Dataset, Split, overlaps
from mtl_jax.errors import CheckpointError, ConfigError, DataError
from mtl_jax.launch import hosts
from mtl_jax.workdir import Workdir, manifest, write_bytes_atomic, write_json_atomic
from mtl_jax.workdir.checkpoint import Checkpoints

_logger = logging.getLogger(__name__)
# Keys of the `data` group that say how images are found and split: other data has its own. The rest are the network's.
OWN_KEYS = ("fractions", "lists", "split_seed", "convert", "skip_corrupt", "cache_dir")
_WORD = re.compile(r"(tfds:[^:]+(?::\d[\d.]*)?|[^:]+)(?::(.*))?")
_MAX_BYTES = 64 << 20  # of data.json


class TrainedOn(NamedTuple):
    """A data set from whose train split a network has learned.

    dataset, fingerprint: as `data.Dataset` has them. classes: the names of the train split's classes. digests: uint8
    [N, 16] of its images, as `data.Split` has them. Of a run of an older version only the fingerprint is known.
    """

    dataset: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    digests: np.ndarray = np.empty((0, 16), np.uint8)

    def named(self) -> dict[str, str]:
        """Name and fingerprint, as they stand beside a figure."""
        return {"dataset": self.dataset, "fingerprint": self.fingerprint}


def record(place: Workdir, dataset: Dataset, init: str = "") -> None:
    """Writes data.json and data.digests of a run that trains on a data set, from the pre-training in `init`, if any.

    Where a checkpoint was trained on other images nothing is written: the run does not go on then.

    Raises:
      MtlError: they cannot be written.
    """
    if _by_checkpoint(place).get("data", dataset.fingerprint) != dataset.fingerprint:
        return
    split = dataset.splits["train"]
    own = TrainedOn(dataset.name, dataset.fingerprint, split.class_names, np.asarray(split.digests))
    before = read(Workdir(init)) if init and not is_weights(init) else []
    trained = [own, *(other for other in before if other.fingerprint != own.fingerprint)]
    sets = [{**one.named(), "classes": one.classes, "images": len(one.digests)} for one in trained]
    digests = np.concatenate([one.digests for one in trained])
    try:
        write_bytes_atomic(_digests(place), digests.tobytes())
    except OSError as error:
        raise CheckpointError(f"{place.data}: cannot be written: {error.strerror}; free space") from error
    write_json_atomic(place.data, {"image_shape": split.images.shape[1:], "trained_on": sets})


def read(place: Workdir) -> list[TrainedOn]:
    """What the network of a workdir was trained on: the run's own data first, then what its pre-training had.

    Empty where neither data.json nor a checkpoint says it.

    Raises:
      CheckpointError: data.json or data.digests is damaged.
    """
    if not place.data.exists():
        found = _by_checkpoint(place)
        return [TrainedOn(found["config"]["data"]["name"], found["data"])] if found else []
    content = _content(place)
    try:
        sets = content["trained_on"]
        digests = np.frombuffer(_digests(place).read_bytes(), np.uint8).reshape(sum(one["images"] for one in sets), 16)
        parts = np.split(digests, np.cumsum([one["images"] for one in sets])[:-1])
        return [TrainedOn(one["dataset"], one["fingerprint"], tuple(one["classes"]), part)
                for one, part in zip(sets, parts, strict=True)]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(place, error) from error


def image_shape(settings: Mapping[str, Any], place: Workdir) -> tuple[int, int, int]:
    """The shape [H, W, C] of the stored images that a run was trained on; its data is opened where nothing says it."""
    found = _content(place).get("image_shape") if place.data.exists() else _by_checkpoint(place).get("image_shape")
    if found:
        return tuple(found)
    return tuple(next(iter(build.dataset(settings["data"]).splits.values())).images.shape[1:])


def _digests(place: Workdir) -> Path:
    return place.data.with_suffix(".digests")


def _content(place: Workdir) -> dict[str, Any]:
    try:
        return dict(json.loads(manifest.read_bounded(place.data, _MAX_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(place, error) from error


def _damaged(place: Workdir, error: Exception) -> CheckpointError:
    return CheckpointError(f"{place.data}: damaged ({error}); remove it, and start train.py's command again")


def _by_checkpoint(place: Workdir) -> dict[str, Any]:
    """The metadata of the newest checkpoint whose manifest is whole; empty where there is none."""
    for phase in ("meta", "pretrain"):
        checkpoints = Checkpoints(place.checkpoints(phase))
        for step in reversed(checkpoints.steps()):
            with contextlib.suppress(CheckpointError):
                return manifest.read(checkpoints.directory / str(step)).metadata
    return {}


def with_other(settings: ConfigDict, place: Workdir, word: str) -> ConfigDict:
    """A copy of a run's config with other data: `word` is NAME:PATH, as `evaluate.py --data` takes it.

    Images are brought to the size and the channels of those that the run was trained on; mean, std and crop stay the
    run's. How classes are split is the other data's own: the keys of `OWN_KEYS` have their defaults, but for the cache.

    Raises:
      ConfigError: there is no name.
    """
    match = _WORD.fullmatch(word)
    if not match:
        raise ConfigError(f"--data={word}: expected NAME:PATH, such as cub:CUB_200_2011 or folder:D")
    height, width, channels = image_shape(settings, place)
    changed, fresh = copy.deepcopy(settings), default.get_config().data
    with changed.unlocked():
        changed.data.update({key: fresh[key] for key in (*OWN_KEYS, "rotations") if key != "cache_dir"})
        changed.data.update({"name": match[1], "path": match[2] or "", "channels": channels})
        changed.data.image_size = height if height == width else 0
    return changed


def opened(settings: ConfigDict, place: Workdir, split: str, *, other: bool = False) -> tuple[Dataset, list[TrainedOn]]:
    """The data set that tests a run, checked, and what the run was trained on; see `check`."""
    with hosts.first_goes_first():
        dataset = build.dataset(settings.data)
    return dataset, check(dataset, place, split, other=other)


def check(dataset: Dataset, place: Workdir, split: str, *, other: bool = False) -> list[TrainedOn]:
    """Returns what a run was trained on, if a split of a data set may test it.

    Args:
      dataset: the run's own data, wherever it lies now, or `other` data.
      place: the run.
      split: the name of the split.
      other: whether it is meant to be other data.

    Raises:
      ConfigError: other images than the run's, where they are not meant to be.
      DataError: the split's classes or images are some that the network was trained on, or of another size.
    """
    trained = read(place)
    if not trained:
        _logger.warning("%s does not say what it was trained on: whether these images are new to it is not known",
                        place.path)  # fmt: skip
    elif not other and trained[0].fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"{place.path}: was trained on other images (fingerprint {trained[0].fingerprint[:12]}, these have "
            f"{dataset.fingerprint[:12]}); give the same, or test it on others by evaluate.py --data=NAME:PATH"
        )
    if other:
        _check_shape(dataset, place)
    for seen in trained if split in dataset.splits else ():
        if seen.fingerprint != dataset.fingerprint:
            _check_new(dataset.splits[split], seen, place)
    return trained


def _check_shape(dataset: Dataset, place: Workdir) -> None:
    wanted = list(image_shape(config.to_json(config.read(place.config)), place))
    shape = list(next(iter(dataset.splits.values())).images.shape[1:])
    if shape != wanted:
        raise DataError(
            f"{dataset.name}: images are {shape}, those that {place.path} was trained on are {wanted}, no squares: "
            "bring the images to that size"
        )


def _check_new(split: Split, seen: TrainedOn, place: Workdir) -> None:
    """Whether a split has neither classes nor images of a train split; bare numbers are no names of classes."""
    if not seen.classes:
        _logger.warning("%s does not say which classes it was trained on: start train.py's command again, which "
                        "writes data.json", place.path)  # fmt: skip
    shared = sorted(name for name in set(split.class_names) & set(seen.classes) if not name.isdecimal())
    if shared:
        raise DataError(
            f"{split.name} split: the network of {place.path} was trained on {len(shared)} of its "
            f"{len(split.class_names)} classes ({seen.dataset}), {shared[0]!r} for one: leave them out; if only the "
            "names are the same, rename them"
        )
    rows = np.flatnonzero(np.isin(overlaps.keys_of(split.digests), overlaps.keys_of(seen.digests)))
    if len(rows):
        first = split.file_names[rows[0]].decode() or f"an image of class {split.class_names[split.labels[rows[0]]]!r}"
        raise DataError(
            f"{split.name} split: the network of {place.path} was trained on {len(rows)} of its {len(split.images)} "
            f"images ({seen.dataset}), {first} for one: leave them out"
        )


def facts(dataset: Dataset, trained: Sequence[TrainedOn]) -> dict[str, Any]:
    """What a figure must say of its data; `trained_on` is None where that is not known."""
    named = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "caveats": list(dataset.caveats)}
    return {**named, "trained_on": [one.named() for one in trained] or None}


def describe(found: Mapping[str, Any]) -> str:
    """The data set of a figure as text, from its `facts`, and what the network was trained on where that is another."""
    own = f"{found['dataset']} {found['fingerprint'][:12]}"
    if found["trained_on"] is None:
        return f"{own}, trained on data that is not known"
    others = [one for one in found["trained_on"] if one["fingerprint"] != found["fingerprint"]]
    names = " and ".join(f"{one['dataset']} {one['fingerprint'][:12]}" for one in found["trained_on"])
    return f"{own}, trained on {names}" if others else own

"""What a run was trained on, as its workdir records it, and whether other data may test it."""

import copy
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from mtl_jax.configs import default

from mtl_jax.config import build, config
from mtl_jax.config.rules import is_weights
from mtl_jax.data import Dataset, Split, overlaps
from mtl_jax.errors import CheckpointError, ConfigError, DataError
from mtl_jax.launch import hosts
from mtl_jax.words import counted
from mtl_jax.workdir import Workdir, write_bytes_atomic, write_json_atomic
from mtl_jax.workdir.checkpoint import Checkpoints
from mtl_jax.workdir.workdir import read_bounded, writing

_logger = logging.getLogger(__name__)
# Keys of the `data` group that say how images are read and split: other data has its own. The rest fit the network.
OWN_KEYS = ("fractions", "lists", "split_seed", "convert", "skip_corrupt", "max_pixels", "cache_dir")
_WORD = re.compile(r"(tfds:[^:]+(?::\d[\d.]*)?|[^:]+)(?::(.*))?")
UNKNOWN = "unknown"  # the fingerprint of a data set of which only the name is known
_MAX_BYTES = 64 << 20  # of data.json


class TrainedOn(NamedTuple):
    """A data set that a network was trained on.

    dataset, fingerprint: as in `data.Dataset`. classes: the names of the train split's classes. digests: uint8 [N, 16]
    of its images, as in `data.Split`. Of a run of an older version only dataset and fingerprint are known, of a network
    that was kept as a file only the dataset.
    """

    dataset: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    digests: np.ndarray = np.empty((0, 16), np.uint8)

    def named(self) -> dict[str, str]:
        """Name and fingerprint, as they are written beside a result."""
        return {"dataset": self.dataset, "fingerprint": self.fingerprint}


def record(workdir: Workdir, dataset: Dataset, init: str = "", kept: str = "") -> None:
    """Writes data.json and data.digests of a run that trains on a data set, and of the pre-training in `init`, if any.

    `kept` names the data set of a pre-training of which nothing else is known. Writes nothing where a checkpoint was
    trained on other images: such a run does not go on.

    Raises:
      MtlError: they cannot be written.
    """
    if _newest_metadata(workdir).get("data", dataset.fingerprint) != dataset.fingerprint:
        return
    split = dataset.splits["train"]
    own = TrainedOn(dataset.name, dataset.fingerprint, split.class_names, np.asarray(split.digests))
    before = read(Workdir(os.path.expanduser(init))) if init and not is_weights(init) else []
    before += [TrainedOn(kept, UNKNOWN)] if kept else []
    trained = [own, *(other for other in before if other.fingerprint != own.fingerprint)]
    sets = [{**one.named(), "classes": one.classes, "images": len(one.digests)} for one in trained]
    digests = np.concatenate([one.digests for one in trained])
    with writing(workdir.data, "free space", CheckpointError):
        write_bytes_atomic(workdir.digests, digests.tobytes())
    write_json_atomic(workdir.data, {"image_shape": split.images.shape[1:], "trained_on": sets})


def read(workdir: Workdir) -> list[TrainedOn]:
    """What the network of a workdir was trained on: the run's own data first, then that of its pre-training.

    Empty where neither data.json nor a checkpoint says it.

    Raises:
      CheckpointError: data.json or data.digests is damaged.
    """
    if not workdir.data.exists():
        metadata = _newest_metadata(workdir)
        return [TrainedOn(metadata["config"]["data"]["name"], metadata["data"])] if metadata else []
    content = _content(workdir)
    try:
        sets = content["trained_on"]
        sizes = [one["images"] for one in sets]
        digests = np.frombuffer(workdir.digests.read_bytes(), np.uint8).reshape(sum(sizes), 16)
        parts = np.split(digests, np.cumsum(sizes)[:-1])
        return [TrainedOn(one["dataset"], one["fingerprint"], tuple(one["classes"]), part)
                for one, part in zip(sets, parts, strict=True)]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(workdir, error) from error


def image_shape(settings: Mapping[str, Any], workdir: Workdir) -> tuple[int, int, int]:
    """The shape [H, W, C] of the stored images that a run was trained on; its data is opened where nothing says it."""
    shape = (_content(workdir) if workdir.data.exists() else _newest_metadata(workdir)).get("image_shape")
    if shape:
        return tuple(shape)
    return tuple(next(iter(build.dataset(settings["data"]).splits.values())).images.shape[1:])


def _content(workdir: Workdir) -> dict[str, Any]:
    try:
        return dict(json.loads(read_bounded(workdir.data, _MAX_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(workdir, error) from error


def _damaged(workdir: Workdir, error: Exception) -> CheckpointError:
    return CheckpointError(f"{workdir.data}: damaged ({error}); remove it and rerun the train.py command")


def _newest_metadata(workdir: Workdir) -> dict[str, Any]:
    """The metadata of the newest checkpoint whose manifest is whole; empty if there is none."""
    both = (Checkpoints(workdir.checkpoints(phase)).newest_metadata() for phase in ("meta", "pretrain"))
    return next(filter(None, both), {})


def with_other(settings: ConfigDict, workdir: Workdir, word: str) -> ConfigDict:
    """A copy of a run's config with other data: `word` is NAME:PATH, as `evaluate.py --data` takes it.

    Images get the size and the channels of those that the run was trained on; mean, std and crop stay the run's. The
    other data has its own split: the keys of `OWN_KEYS` have their defaults, except the cache.

    Raises:
      ConfigError: there is no name.
    """
    match = _WORD.fullmatch(word)
    if not match:
        raise ConfigError(f"--data={word}: expected NAME:PATH, such as cub:CUB_200_2011 or folder:D")
    height, width, channels = image_shape(settings, workdir)
    changed, fresh = copy.deepcopy(settings), default.get_config().data
    with changed.unlocked():
        changed.data.update({key: fresh[key] for key in (*OWN_KEYS, "rotations") if key != "cache_dir"})
        changed.data.update({"name": match[1], "path": match[2] or "", "channels": channels})
        changed.data.image_size = height if height == width else 0
    return changed


def opened(
    settings: ConfigDict, workdir: Workdir, split: str, *, other: bool = False
) -> tuple[Dataset, list[TrainedOn]]:
    """Opens the data set that tests a run and checks it (see `check`); also returns what the run was trained on."""
    with hosts.first_goes_first():
        dataset = build.dataset(settings.data)
    return dataset, check(dataset, workdir, split, other=other)


def check(dataset: Dataset, workdir: Workdir, split: str, *, other: bool = False) -> list[TrainedOn]:
    """Returns what a run was trained on, if a split of a data set may test it.

    Args:
      dataset: the run's own data, wherever its files are now, or `other` data.
      workdir: the run's.
      split: the name of the split.
      other: whether the data set is meant to be another than the run's.

    Raises:
      ConfigError: its images are not the run's, but are meant to be.
      DataError: the network was trained on some of the split's classes or images, or on images of another size.
    """
    trained = read(workdir)
    if not trained:
        _logger.warning("%s does not record its training data, so these images may not be new to it",
                        workdir.path)  # fmt: skip
    elif not other and trained[0].fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"{workdir.path}: was trained on other images (fingerprint {trained[0].fingerprint[:12]}, not "
            f"{dataset.fingerprint[:12]}); give those, or test it on others with evaluate.py --data=NAME:PATH"
        )
    if other:
        _check_shape(dataset, workdir)
    for seen in trained if split in dataset.splits else ():
        if seen.fingerprint != dataset.fingerprint:
            _check_new(dataset.splits[split], seen, workdir)
    return trained


def _check_shape(dataset: Dataset, workdir: Workdir) -> None:
    wanted = list(image_shape(config.to_json(config.read(workdir.config)), workdir))
    shape = list(next(iter(dataset.splits.values())).images.shape[1:])
    if shape != wanted:
        raise DataError(
            f"{dataset.name}: images are {shape}, but {workdir.path} was trained on {wanted}, which are not square: "
            "resize the images to that"
        )


def _check_new(split: Split, seen: TrainedOn, workdir: Workdir) -> None:
    """Checks that a split shares no class and no image with a train split; plain numbers do not count as names."""
    if seen.fingerprint == UNKNOWN:
        _logger.warning("the network of %s was first trained on %s, so it may have seen these classes",
                        workdir.path, seen.dataset)  # fmt: skip
    elif not seen.classes:
        _logger.warning("%s does not record its training classes; rerun the train.py command, which writes "
                        "data.json", workdir.path)  # fmt: skip
    shared = sorted(name for name in set(split.class_names) & set(seen.classes) if not name.isdecimal())
    if shared:
        raise DataError(
            f"{split.name} split: the network of {workdir.path} was trained on {len(shared)} of its "
            f"{counted(len(split.class_names), 'class')} ({seen.dataset}), such as {shared[0]!r}: leave them out, "
            "or rename them if only the names match"
        )
    rows = np.flatnonzero(np.isin(overlaps.keys_of(split.digests), overlaps.keys_of(seen.digests)))
    if len(rows):
        first = split.file_names[rows[0]].decode() or f"an image of class {split.class_names[split.labels[rows[0]]]!r}"
        raise DataError(
            f"{split.name} split: the network of {workdir.path} was trained on {len(rows)} of its {len(split.images)} "
            f"images ({seen.dataset}), such as {first}: leave them out"
        )


def facts(dataset: Dataset, trained: Sequence[TrainedOn]) -> dict[str, Any]:
    """What a result must say of its data; `trained_on` is None where that is not known."""
    named = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "caveats": list(dataset.caveats)}
    return {**named, "trained_on": [one.named() for one in trained] or None}


def describe(facts: Mapping[str, Any]) -> str:
    """The data set of a result as text, from its `facts`, and what the network was trained on where that is another."""

    def named(one: Mapping[str, Any]) -> str:
        return f"{one['dataset']} {one['fingerprint'][:12]}"

    trained_on = facts["trained_on"]
    if trained_on is None:
        return f"{named(facts)}, trained on unknown data"
    if all(one["fingerprint"] == facts["fingerprint"] for one in trained_on):
        return named(facts)
    return f"{named(facts)}, trained on {' and '.join(map(named, trained_on))}"

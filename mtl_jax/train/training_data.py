"""The data that a config trains on, and whether it can give the tasks that training and validation draw."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.episodes import check_table
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.train import teacher
from mtl_jax.types import ClassTable

_logger = logging.getLogger(__name__)
_TRAINED_ON = ("train", "val")  # the test split is left alone


def load(settings: ConfigDict) -> Dataset:
    """The data set of a config, prepared where it has not been before.

    Raises:
      DataError: it cannot give the tasks asked for, which is seen before an image is decoded; or see `data.load`.
      ConfigError: its images have another number of channels than mean and std, or the teacher knows others.
    """

    def inspect(contents):
        _check_train(contents)
        for name in (name for name in _TRAINED_ON if name in contents):
            counts = np.array([len(images) for images in contents[name].values()])
            _check_tasks(settings, name, ClassTable(None, counts), tuple(contents[name]))

    teacher.manifest_of(settings)  # a wrong path is said before images are prepared
    dataset = build.dataset(settings.data, inspect=inspect)
    _check_train(dataset.splits)
    for name in (name for name in _TRAINED_ON if name in dataset.splits):
        split = dataset.splits[name]
        _check_tasks(settings, name, split.table(), split.class_names)
    _check_channels(settings, dataset)
    teacher.check(settings, dataset)
    for caveat in dataset.caveats:
        _logger.warning("data.allow lets through: %s", caveat)
    return dataset


def _check_train(splits: Mapping[str, Any]) -> None:
    if "train" not in splits:
        raise DataError(f"the data set has {', '.join(splits)} alone, no train split: it is for evaluate.py")


def _check_tasks(settings: ConfigDict, name: str, table: ClassTable, class_names: Sequence[str]) -> None:
    """Whether a split can give the tasks that training, or the validation of a phase, draws from it."""
    meta = settings.meta
    if name == "train":
        check_table(table, class_names, way=meta.way, shot=meta.shot, query=meta.query, split=name)
    runs = {"pretrain": not settings.pretrain.init, "meta": meta.learn != "none"}
    for phase in runs if name == "val" else ():
        if runs[phase] and settings[phase].val_tasks and settings[phase].val_every:
            protocol = build.validation(settings, settings[phase])
            sizes = {"way": protocol.way, "shot": protocol.shot, "query": protocol.query}
            check_table(table, class_names, **sizes, split=name)


def _check_channels(settings: ConfigDict, dataset: Dataset) -> None:
    channels = dataset.splits["train"].images.shape[-1]
    for name in ("mean", "std"):
        if len(settings.data[name]) not in (1, channels):
            raise ConfigError(
                f"config.data.{name} has {len(settings.data[name])} numbers, but the images have {channels} "
                f"channel{'s' if channels > 1 else ''}; give one number, or one a channel"
            )

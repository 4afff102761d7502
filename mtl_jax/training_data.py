"""The data that a config trains on, and whether it can give the tasks that training and validation draw."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import build
from mtl_jax.data import Dataset
from mtl_jax.episodes import check_table
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.types import ClassTable


def load(settings: ConfigDict) -> Dataset:
    """The data set of a config, prepared where it has not been before.

    Raises:
      DataError: it cannot give the tasks asked for, which is seen before an image is decoded; or see `data.load`.
      ConfigError: its images have another number of channels than mean and std.
    """

    def look(split_names, tables):
        if "train" not in split_names:
            raise DataError(f"the data set has {', '.join(split_names)} alone, no train split: it is for evaluate.py")
        for name, (table, class_names) in zip(split_names, tables, strict=True):
            _check_tasks(settings, name, table, class_names)

    def inspect(contents):
        counts = [np.array([len(images) for images in classes.values()]) for classes in contents.values()]
        tables = [
            (ClassTable(None, each), tuple(classes)) for each, classes in zip(counts, contents.values(), strict=True)
        ]
        look(tuple(contents), tables)

    dataset = build.dataset(settings.data, inspect=inspect)
    look(tuple(dataset.splits), [(split.table(), split.class_names) for split in dataset.splits.values()])
    _check_channels(settings, dataset)
    return dataset


def _check_tasks(settings: ConfigDict, name: str, table: ClassTable, class_names: Sequence[str]) -> None:
    """Whether a split can give the tasks that training, or the validation of a phase, draws from it."""
    meta = settings.meta
    if name == "train":
        check_table(table, class_names, way=meta.way, shot=meta.shot, query=meta.query, split=name)
    for phase in ("pretrain", "meta") if name == "val" else ():
        if settings[phase].val_tasks:
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

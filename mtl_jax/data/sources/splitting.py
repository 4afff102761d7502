"""Splitting classes that come without a split: by the paper, by lists of names, or by fractions."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtl_jax.data import facts
from mtl_jax.data.dataset import SPLITS
from mtl_jax.data.source import Contents, Images
from mtl_jax.errors import DataError

Lists = Mapping[str, Sequence[str]]  # split -> class names


@dataclasses.dataclass(frozen=True)
class Splitting:
    """How classes are to be split where the source does not say.

    fractions: of the classes, for train, val and test; (0, 0, 1) makes a test part alone.
    lists: split -> class names.
    seed: which classes the fractions pick.
    """

    fractions: Sequence[float] = ()
    lists: Lists | None = None
    seed: int = 0


def read_lists(lists: str | Lists) -> Lists | None:
    """Returns split -> class names from a mapping, a JSON file with one, or a folder with {train,val,test}.txt.

    Raises:
        DataError: nothing is there, or it is something else.
    """
    if not isinstance(lists, str):
        return {split: tuple(names) for split, names in lists.items()} or None
    if not lists:
        return None
    place = Path(lists).expanduser()
    if place.is_dir():
        found = {split: place / f"{split}.txt" for split in SPLITS}
        return {split: _lines(file) for split, file in found.items() if file.exists()}
    try:
        read = json.loads(place.read_text(encoding="utf-8"))
        return {str(split): tuple(map(str, names)) for split, names in read.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{place}: not lists of classes ({error}); data.lists must be a folder with train.txt, val.txt and "
            'test.txt, one class a line, or a JSON file {"train": [...], "val": [...], "test": [...]}'
        ) from None


def _lines(file: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def split(classes: Mapping[str, Images], name: str, how: Splitting, place: str) -> Contents:
    """Returns the splits of some classes: by `how`, or else as the paper of the data set `name` has them.

    Raises:
        DataError: it is not said how, or classes that are named are not there.
    """
    if how.lists:
        return by_lists(classes, how.lists, place)
    if how.fractions:
        return by_fractions(classes, how.fractions, how.seed, place)
    known = facts.class_splits(name)
    if known:
        return by_lists(classes, known, place)
    raise DataError(
        f"{place}: classes without a split; set data.fractions (for example 0.6,0.2,0.2, or 0,0,1 for evaluation "
        "alone) or data.lists, or put them into folders train/, val/ and test/"
    )


def by_lists(classes: Mapping[str, Images], lists: Lists, place: str) -> Contents:
    """Returns the classes that the lists name; others are left out."""
    listed = [name for names in lists.values() for name in names]
    missing = sorted(set(listed) - set(classes))
    if missing:
        raise DataError(
            f"{place}: {len(missing)} of the {len(listed)} classes of the lists are not there, "
            f"{missing[0]!r} for one; there are {len(classes)}, such as {min(classes, default='none')!r}"
        )
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise DataError(f"{place}: class {twice[0]!r} is listed twice; every class belongs to one split")
    unknown = sorted(set(lists) - set(SPLITS))
    if unknown:
        raise DataError(f"{place}: the lists have a split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
    return {split: {name: classes[name] for name in sorted(names)} for split, names in lists.items() if names}


def by_fractions(classes: Mapping[str, Images], fractions: Sequence[float], seed: int, place: str) -> Contents:
    """Splits classes in the order of a hash of their names, so that a class more moves few others."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"data.fractions: {tuple(fractions)}; give three numbers for train, val, test that add up to 1")
    order = sorted(classes, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    ends = [round(sum(fractions[:i]) * len(order)) for i in range(4)]
    parts = {split: sorted(order[ends[i] : ends[i + 1]]) for i, split in enumerate(SPLITS)}
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if fraction and not parts[split]:
            raise DataError(f"{place}: {len(order)} classes are too few for a {split} fraction of {fraction}")
    return {split: {name: classes[name] for name in names} for split, names in parts.items() if names}

"""Splits for classes that come without: by lists of names, by fractions, or as the paper has them."""

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
    """What the user says about splitting classes that come without a split.

    fractions: of the classes, for train, val and test; (0, 0, 1) puts all of them into the test split.
    lists: split -> class names.
    seed: picks which classes each fraction gets.
    """

    fractions: Sequence[float] = ()
    lists: Lists | None = None
    seed: int = 0


def read_lists(lists: str | Lists) -> Lists | None:
    """Returns split -> class names from a mapping, a JSON file with one, or a folder with {train,val,test}.txt.

    '' gives None.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    if not isinstance(lists, str):
        return {split: tuple(names) for split, names in lists.items()} or None
    if not lists:
        return None
    path = Path(lists).expanduser()
    if path.is_dir():
        files = {split: path / f"{split}.txt" for split in SPLITS}
        return {split: _lines(file) for split, file in files.items() if file.exists()}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(split): tuple(map(str, names)) for split, names in content.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: not lists of classes ({error}); data.lists must be a folder with train.txt, val.txt and "
            'test.txt, one class a line, or a JSON file {"train": [...], "val": [...], "test": [...]}'
        ) from None


def _lines(file: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def split_classes(classes: Mapping[str, Images], name: str, splitting: Splitting, path: str) -> Contents:
    """Returns classes in splits: as the user says, else as in the paper of the data set `name`.

    Args:
        classes: class name -> images.
        name: of the data set.
        splitting: what the user says.
        path: where the classes are, for messages.

    Raises:
        DataError: neither the user nor a paper says how, or classes on the list are not there.
    """
    if splitting.lists:
        return by_lists(classes, splitting.lists, path)
    if splitting.fractions:
        return by_fractions(classes, splitting.fractions, splitting.seed, path)
    paper = facts.class_splits(name)
    if paper:
        return by_lists(classes, paper, path)
    raise DataError(
        f"{path}: classes without a split; set data.fractions (for example 0.6,0.2,0.2, or 0,0,1 for evaluation "
        "alone) or data.lists, or put them into folders train/, val/ and test/"
    )


def by_lists(classes: Mapping[str, Images], lists: Lists, path: str) -> Contents:
    """Returns the classes on the lists; others are left out."""
    listed = [name for names in lists.values() for name in names]
    missing = sorted(set(listed) - set(classes))
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the {len(listed)} classes of the lists are not there, "
            f"{missing[0]!r} for one; there are {len(classes)}, such as {min(classes, default='none')!r}"
        )
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise DataError(f"{path}: class {twice[0]!r} is listed twice; every class belongs to one split")
    unknown = sorted(set(lists) - set(SPLITS))
    if unknown:
        raise DataError(f"{path}: the lists have a split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
    return {split: {name: classes[name] for name in sorted(names)} for split, names in lists.items() if names}


def by_fractions(classes: Mapping[str, Images], fractions: Sequence[float], seed: int, path: str) -> Contents:
    """Splits classes in the order of a hash of their names, so that one more class moves few others."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"data.fractions: {tuple(fractions)}; give three numbers for train, val, test that add up to 1")
    order = sorted(classes, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    ends = [round(sum(fractions[:i]) * len(order)) for i in range(4)]
    parts = {split: sorted(order[ends[i] : ends[i + 1]]) for i, split in enumerate(SPLITS)}
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if fraction and not parts[split]:
            raise DataError(f"{path}: {len(order)} classes are too few for a {split} fraction of {fraction}")
    return {split: {name: classes[name] for name in names} for split, names in parts.items() if names}

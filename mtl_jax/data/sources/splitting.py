"""Splits for classes that come without: by lists of names, by fractions, or as the paper has them."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtl_jax.data import facts
from mtl_jax.data.dataset import SPLITS
from mtl_jax.data.files import text
from mtl_jax.data.files.names import by_split, class_key, normal, split_of_list
from mtl_jax.data.source import Contents, Images
from mtl_jax.errors import DataError
from mtl_jax.words import counted

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


class ReadLists(dict):
    """Lists that were read from files. hint: what to add to a message about a class that is not there."""

    hint = ""


def read_lists(lists: str | Lists) -> Lists | None:
    """Returns split -> class names from a mapping, a JSON file with one, or a folder with {train,val,test}.txt.

    '' gives None. Splits may be spelled in any way that `names.split_of` knows.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    if not isinstance(lists, str):
        return {split: tuple(names) for split, names in lists.items()} or None
    if not lists:
        return None
    path = Path(lists).expanduser()
    contents = _texts(path)
    try:
        if path.is_dir():
            found = ReadLists({split: tuple(text.lines(content)) for split, content in contents.items()})
        else:
            held = text.parse_json(contents[""], str(path))
            found = ReadLists({str(split): tuple(map(str, _sequence(names))) for split, names in held.items()})
    except (AttributeError, TypeError) as error:
        raise _no_lists(path, error) from None
    except DataError as error:
        raise _no_lists(path, str(error).removeprefix(f"{path}: ").rpartition("; ")[0]) from None
    if not found:
        raise _no_lists(path, "there are none")
    found.hint = next(filter(None, (content.hint() for content in contents.values())), "")
    return found


def _texts(path: Path) -> Mapping[str, text.Text]:
    """Returns the texts at a path: of a folder that of each file named by split, by split; of a file its own, by ''."""
    try:
        if not path.is_dir():
            return {"": text.decode(_read(path), str(path))}
        files = [file for file in sorted(path.iterdir()) if file.suffix.lower() == ".txt" and split_of_list(file.name)]
        stems = by_split({file.stem: file for file in files}, str(path), split_of_list)
        return {split: text.decode(_read(file), str(file)) for split, file in stems.items()}
    except OSError as error:
        raise _no_lists(path, error) from None


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(text.MAX_BYTES + 1)


def _sequence(names: object) -> Sequence[object]:
    if not isinstance(names, list | tuple):
        raise TypeError(f"{names!r:.40} is not a list")
    return names


def _no_lists(path: Path, reason: object) -> DataError:
    return DataError(
        f"{path}: not lists of classes ({reason}); data.lists must be a folder with train.txt, val.txt and "
        'test.txt, one class a line, or a JSON file {"train": [...], "val": [...], "test": [...]}'
    )


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
    classes = normal(classes, path)
    if splitting.lists:
        return by_lists(classes, splitting.lists, path)
    if splitting.fractions:
        return by_fractions(classes, splitting.fractions, splitting.seed, path)
    paper = facts.class_splits(name)
    if paper:
        return by_lists(classes, paper, path)
    raise DataError(
        f"{path}: classes without a split; set data.fractions (for example 0.5,0.25,0.25, or 0,0,1 for evaluation "
        "alone) or data.lists, or put them into folders train/, val/ and test/"
    )


def by_lists(classes: Mapping[str, Images], lists: Lists, path: str) -> Contents:
    """Returns the classes on the lists, whose names may be spelled in another form; others are left out."""
    known = {class_key(name): name for name in classes} | {name: name for name in classes}
    spelled = {split: [known.get(name) or known.get(class_key(name), name) for name in names]
               for split, names in by_split(lists, path).items()}  # fmt: skip
    listed = [name for names in spelled.values() for name in names]
    missing = sorted(set(listed) - set(classes))
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the {len(listed)} listed classes are missing, "
            f"such as {missing[0]!r}{getattr(lists, 'hint', '')}; "
            f"the data has {len(classes)}, such as {min(classes, default='none')!r}"
        )
    twice = next((name for name, count in Counter(listed).items() if count > 1), None)
    if twice:
        raise DataError(f"{path}: class {twice!r} is listed twice; every class belongs to one split")
    return {split: {name: classes[name] for name in sorted(names)} for split, names in spelled.items() if names}


def by_fractions(classes: Mapping[str, Images], fractions: Sequence[float], seed: int, path: str) -> Contents:
    """Splits classes in the order of a hash of their names, so that one more class moves few others."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"data.fractions: {tuple(fractions)}; give three numbers for train, val, test that add up to 1")
    order = sorted(classes, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    ends = [round(sum(fractions[:i]) * len(order)) for i in range(4)]
    parts = {split: sorted(order[ends[i] : ends[i + 1]]) for i, split in enumerate(SPLITS)}
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if fraction and not parts[split]:
            raise DataError(f"{path}: {counted(len(order), 'class')}: too few for a {split} fraction of {fraction}")
    return {split: {name: classes[name] for name in names} for split, names in parts.items() if names}

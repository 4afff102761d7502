"""What names mean, however they are spelled: of splits, and of classes."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from mtl_jax.data.dataset import SPLITS
from mtl_jax.errors import DataError

# The one table of split names: of folders, files, keys of lists, values of a column, splits of TFDS.
SPELLINGS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
# In papers on few-shot learning; but a class may well be called so, so they count together or in lists of files alone.
BASE_AND_NOVEL = {"base": "train", "novel": "test"}
# meta-train, metatrain, train_set, testset, train_images, base_classes
_AROUND = re.compile(r"^meta-?|-?(?:set|split)$|-(?:images|data|classes|list)$")

Value = TypeVar("Value")


def _word(name: str) -> str:
    return _AROUND.sub("", re.sub(r"[\s_]+", "-", name.strip().casefold()))


def split_of(name: str) -> str | None:
    """Returns the split that a name is of, whatever its case: 'Train', 'validation', 'meta_test'; else None."""
    return next((split for split, spellings in SPELLINGS.items() if _word(name) in spellings), None)


def split_of_file(file: str) -> str | None:
    """Returns the split that a file is of by the last words of its name, as in 'mini-imagenet-cache-validation.pkl'."""
    return split_of_words(stem_of(file))[0]


def split_of_words(stem: str) -> tuple[str | None, str]:
    """Returns the split that the last words of a file's name mean, and the words before them, joined by '_'."""
    words = re.split(r"[-_.\s]+", stem.strip())
    for count in (1, 2, 3):
        if split := split_of("-".join(words[-count:])):
            return split, "_".join(words[:-count])
    return None, "_".join(words)


def split_of_list(file: str) -> str | None:
    """Returns the split of a file that is known to list one; 'base' and 'novel' count."""
    return split_of_file(file) or BASE_AND_NOVEL.get(_word(re.split(r"[-_.\s]+", _word(stem_of(file)))[-1]))


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Returns name -> split, of names that stand side by side; 'base' and 'novel' count where both are there."""
    names = list(names)
    split_of_name = {name: split_of(name) for name in names}
    others = {name: BASE_AND_NOVEL[_word(name)] for name in names if _word(name) in BASE_AND_NOVEL}
    if set(others.values()) == set(BASE_AND_NOVEL.values()):
        split_of_name |= others
    return {name: split for name, split in split_of_name.items() if split}


def splits_of_files(stems: Iterable[str]) -> dict[str, str]:
    """Returns name -> split, of names of files without suffix; see `splits_of` and `split_of_file`."""
    own = {stem: split_of_list(f"{stem}.") for stem in stems}
    others = {split for stem, split in own.items() if split and not split_of_file(f"{stem}.")}
    both = others == set(BASE_AND_NOVEL.values())
    return {stem: split for stem, split in own.items() if split and (both or split_of_file(f"{stem}."))}


def by_split(
    lists: Mapping[str, Value], path: str, split_of_key: Callable[[str], str | None] | None = None
) -> dict[str, Value]:
    """Returns what a mapping has for each split, its keys spelled in any way; raises DataError for other keys."""
    known = {key: split_of_key(key) for key in lists} if split_of_key else splits_of(lists)
    unknown = sorted(set(lists) - set(known))
    if unknown:
        raise DataError(f"{path}: the lists have a split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
    spelled: dict[str, str] = {}
    for name, split in known.items():
        if split in spelled:
            raise DataError(f"{path}: both {spelled[split]!r} and {name!r} are the {split} split; make one of them")
        spelled[split] = name
    return {split: lists[spelled[split]] for split in SPLITS if split in spelled}


def stem_of(file: str) -> str:
    """Returns a file's name without folder and suffix."""
    base = file.rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[0] or base


def suffix_of(file: str) -> str:
    """Returns a file's suffix in small letters, with its point; '' if it has none."""
    base = file.rsplit("/", 1)[-1]
    return f".{base.rsplit('.', 1)[1].lower()}" if "." in base[1:] else ""


def class_name(name: str) -> str:
    """Returns a class's name in the normal form that Linux and Windows write; macOS keeps an umlaut's dots apart."""
    return unicodedata.normalize("NFC", name)


def class_key(name: str) -> str:
    """Returns what two spellings of a class's name have in common: normal form, slashes, nothing at the ends."""
    return class_name(name).replace("\\", "/").strip().rstrip("/")


def normal(classes: Mapping[str, Value], path: str) -> Mapping[str, Value]:
    """Returns classes by their names in one normal form, sorted; raises DataError where two are called the same."""
    if all(name.isascii() or name == class_name(name) for name in classes):
        return classes
    spelled: dict[str, str] = {}
    for name in classes:
        if spelled.setdefault(class_name(name), name) != name:
            raise DataError(
                f"{path}: two classes are called {class_name(name)!r}, in different Unicode forms; make them one"
            )
    return {name: classes[spelled[name]] for name in sorted(spelled)}

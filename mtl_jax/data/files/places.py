"""Finds the files that a list names, whose paths may be those of another machine or system."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from mtl_jax.data.files.names import stem_of
from mtl_jax.errors import DataError

_ROOT = re.compile(r"^(?:[A-Za-z]:)?/+|^(?:\./+)+")


class Places:
    """Where images lie among files, for lists that name them by path, by file name or without suffix."""

    def __init__(self, files: Sequence[str]) -> None:
        self._file_of = {_normal(file): file for file in files}
        self._by_base: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for file in self._file_of:
            self._by_base[_base(file).casefold()].append(file)
            self._by_stem[stem_of(file).casefold()].append(file)

    def find(self, image: str, folder: str = "") -> list[str]:
        """Returns the files that a list may mean: one, none, or several that nothing tells apart.

        The path may be relative to the list or to the data set, with or without images/ before it; or, of a path on
        another machine, as much of its end as there is here. Case and suffix count only where they make a difference.

        Args:
            image: the path or name on the list, with slashes or backslashes.
            folder: that the list is in.
        """
        name = _ROOT.sub("", _normal(image).replace("\\", "/"))
        for file in (f"{folder}/{name}", name, f"images/{name}"):
            if file in self._file_of:
                return [self._file_of[file]]
        base = _base(name)
        files = self._by_base.get(base.casefold()) or self._by_stem.get(base.casefold(), [])
        same = [file for file in files if _base(file) == base] or files
        tails = [(_shared_tail(name.casefold(), file.casefold()), _shared_tail(name, file)) for file in same]
        return [self._file_of[file] for file, tail in zip(same, tails, strict=True) if tail == max(tails)]

    def locate(self, image: str, line: str, folder: str, where: str, hint: str = "") -> str:
        """Returns the file that a list means; raises DataError unless there is exactly one.

        Args:
            image, folder: see `find`.
            line: what a message calls the line of the list.
            where: the folder that images are looked for in, for messages.
            hint: what to add about a name that is not there.
        """
        files = self.find(image, folder)
        if len(files) == 1:
            return files[0]
        if files:
            raise DataError(f"{line}: {image!r} may be {files[0]} or {files[1]}; write the path into the list")
        raise DataError(f"{line}: there is no image {image!r}; put it into images/ in {where}{hint}")


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _shared_tail(one: str, other: str) -> int:
    """Returns how many folders above the file two paths have in common."""
    pairs = zip(reversed(one.split("/")[:-1]), reversed(other.split("/")[:-1]), strict=False)
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count

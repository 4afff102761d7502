"""What a module of sources/ hands to the cache: the images of each class, not yet decoded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mtl_jax.data.transforms import Transform


class Images(Protocol):
    """The images of one class, not yet decoded."""

    @property
    def turns(self) -> int:
        """Quarter turns, counterclockwise, to apply after decoding."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Returns the image's name within the data set, '' if it has none."""

    def where(self, index: int) -> str:
        """Returns what an error message calls the image."""

    def read(self, index: int) -> bytes | np.ndarray:
        """Returns an encoded image as bytes, or a decoded one as uint8 [H, W] or [H, W, C]."""


Contents = Mapping[str, Mapping[str, Images]]  # split -> class -> images
Stamp = tuple[str, int, int]  # relative path, bytes, modification time in nanoseconds


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that was found, but not read.

    format: what people call its form, e.g. 'class folders'.
    stamps: name, size and time of the files that the content depends on; they are part of the cache's key.
    read: (folder for scratch files) -> the content; may be slow, where a pickle is loaded.
    path: the folder or file, for messages.
    settle: (the transform that was asked for) -> the transform for this source.
    resumable: decoding takes so long that each finished class is kept, so that a later run can go on from there.
    """

    format: str
    stamps: Sequence[Stamp]
    read: Callable[[Path], Contents]
    path: str = ""
    settle: Callable[[Transform], Transform] = lambda transform: transform
    resumable: bool = False


@dataclasses.dataclass(frozen=True)
class Rows:
    """Images of a class that are rows of a decoded array, uint8 [N, H, W] or [N, H, W, C]."""

    array: np.ndarray
    rows: Sequence[int]
    path: str
    names: Sequence[str] = ()  # one for each row of `array`, or none at all
    turns: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return str(self.names[self.rows[index]]) if len(self.names) else ""

    def where(self, index: int) -> str:
        name = self.name(index)
        return f"{self.path}, image {self.rows[index]}{f' ({name})' if name else ''}"

    def read(self, index: int) -> np.ndarray:
        return self.array[self.rows[index]]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Images of a class that are encoded (as PNG, say), some of a sequence of byte strings or uint8 arrays."""

    blobs: Sequence[bytes | np.ndarray]
    rows: Sequence[int]
    path: str
    turns: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return ""

    def where(self, index: int) -> str:
        return f"{self.path}, image {self.rows[index]}"

    def read(self, index: int) -> bytes:
        blob = self.blobs[self.rows[index]]
        return blob.tobytes() if isinstance(blob, np.ndarray) else bytes(blob)

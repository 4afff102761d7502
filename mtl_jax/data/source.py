"""What a reader hands to the cache: where the images of each class are, before anything is decoded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mtl_jax.data.transforms import Transform


class Images(Protocol):
    """The images of one class, still undecoded."""

    turns: int  # quarter turns, counterclockwise, to apply after decoding

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Returns a name within the data set, '' if the image has none."""

    def where(self, index: int) -> str:
        """Returns what an error message calls the image."""

    def read(self, index: int) -> bytes | np.ndarray:
        """Returns an encoded image as bytes, or a decoded one as uint8 [H, W] or [H, W, C]."""


Contents = Mapping[str, Mapping[str, Images]]  # split -> class -> images
Stamp = tuple[str, int, int]  # relative path, bytes, modification time in nanoseconds


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set as it was found.

    format: for people, e.g. 'class folders'.
    stamps: what the content depends on, cheap to find out; the cache's key is made of it.
    read: opens the content, given a folder for scratch files; may be slow (a pickle is loaded).
    place: the folder or file, for messages.
    settle: what the source makes of the transform that was asked for.
    resumable: reading takes so long that a class is kept as soon as it is ready, for a run that goes on after this one.
    """

    format: str
    stamps: Sequence[Stamp]
    read: Callable[[Path], Contents]
    place: str = ""
    settle: Callable[[Transform], Transform] = lambda transform: transform
    resumable: bool = False


@dataclasses.dataclass(frozen=True)
class Rows:
    """Images that stand decoded in an array, uint8 [N, H, W] or [N, H, W, C]."""

    array: np.ndarray
    rows: Sequence[int]
    place: str
    names: Sequence[str] = ()  # one a row of `array`, if there are any
    turns: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return str(self.names[self.rows[index]]) if len(self.names) else ""

    def where(self, index: int) -> str:
        name = self.name(index)
        return f"{self.place}, image {self.rows[index]}{f' ({name})' if name else ''}"

    def read(self, index: int) -> np.ndarray:
        return self.array[self.rows[index]]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Images that stand encoded (as PNG, say) in a sequence of byte strings or of uint8 arrays."""

    blobs: Sequence[bytes | np.ndarray]
    rows: Sequence[int]
    place: str
    turns: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return ""

    def where(self, index: int) -> str:
        return f"{self.place}, image {self.rows[index]}"

    def read(self, index: int) -> bytes:
        blob = self.blobs[self.rows[index]]
        return blob.tobytes() if isinstance(blob, np.ndarray) else bytes(blob)

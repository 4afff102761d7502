"""Loads pickles without running code: arrays, lists, dicts, strings, bytes and numbers; anything else is refused.

A pickle is a program that may call any function of Python. Here it can call only the few in `ALLOWED`, each replaced by
one that does no more than it must. Pickles of Python 2 are read as Latin-1, as their arrays need.
"""

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from mtl_jax.data.damage import known_content
from mtl_jax.errors import DataError

_NDARRAY = object()  # what numpy.ndarray is in a pickle; it cannot be called


class Refused(Exception):
    """A pickle asks for what it may not have."""


class _Array(np.ndarray):
    """An array whose state is checked before NumPy sees it."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        dtype, count = _checked(dtype), math.prod(shape)
        data = data.encode("latin1") if isinstance(data, str) else data  # from Python 2
        size = len(data) if isinstance(data, bytes | list) else -1
        if size != (count if dtype.hasobject else count * dtype.itemsize) or min(shape, default=0) < 0:
            raise Refused("an array whose data do not fill its shape")
        if dtype.hasobject != isinstance(data, list):
            raise Refused("an array whose data are not of its type")
        super().__setstate__((1, tuple(shape), dtype, bool(fortran), data))


class _DType:
    """A dtype whose state, its byte order, follows later in the pickle."""

    def __init__(self, code: Any, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSUO?]\d{0,9}", code):
            raise Refused(f"the dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, size, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise Refused("an array with fields")
        if self.dtype.kind in "SU" and not self.dtype.itemsize:
            self.dtype = np.dtype(f"{self.dtype.kind}{size // np.dtype(f'{self.dtype.kind}1').itemsize}")
        self.dtype = self.dtype.newbyteorder(order)


def _checked(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _DType):
        raise Refused("an array without a dtype")
    return dtype.dtype


def _reconstruct(kind: object, shape: object, code: object) -> np.ndarray:
    if kind is not _NDARRAY:
        raise Refused("an array subclass")
    return np.ndarray.__new__(_Array, (0,), np.int8)  # the true shape and the data follow as its state


def _scalar(dtype: Any, data: Any = b"") -> np.generic:
    raw, dtype = data.encode("latin1") if isinstance(data, str) else data, _checked(dtype)
    if dtype.hasobject or not isinstance(raw, bytes):
        raise Refused("a scalar that is not a number")
    return np.frombuffer(raw, dtype, 1)[0]


def _from_buffer(buffer: Any, dtype: Any, shape: tuple, order: str) -> np.ndarray:
    if _checked(dtype).hasobject:
        raise Refused("objects in a buffer")
    return np.frombuffer(buffer, _checked(dtype)).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"the encoding {encoding}")
    return text.encode("latin1")


class _OrderedDict(dict):
    """An OrderedDict without the attributes that PyTorch gives some."""

    def __setstate__(self, state: Any) -> None:
        pass


def _bytes(*args: Any) -> bytes:
    if args:
        raise Refused("builtins.bytes with arguments")
    return b""


ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("collections", "OrderedDict"): _OrderedDict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class Unpickler(pickle._Unpickler):
    """Python's own unpickler, in its form in Python: in the form in C, a few bytes can allocate gigabytes."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise Refused(ascii(f"{module}.{name}")[1:-1]) from None

    def persistent_load(self, key: Any) -> Any:
        raise Refused("an object stored elsewhere")

    def get_extension(self, code: int) -> Any:
        raise Refused(f"the registered extension {code}")

    def load_build(self) -> None:
        if not hasattr(type(self.stack[-2]), "__setstate__"):  # or it would set attributes, of functions too
            raise Refused("a state for what has none")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        data = self.read(size)  # before memory for it is allocated
        if len(data) != size:
            raise EOFError("ends within a bytearray")
        self.append(bytearray(data))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def load(path: Path) -> Any:
    """Returns what a pickle file holds.

    Raises:
        DataError: it asks for what is not data, is damaged, is not a pickle, or is larger than the free memory.
    """
    with open(path, "rb") as file:
        start = file.read(512)
        file.seek(0)
        content = known_content(start) if start else "an empty file"
        if content:
            raise DataError(f"{path}: not a pickle but {content}; download it again")
        check_memory(path)
        return _load(file, str(path))


def loads(raw: bytes, path: str) -> Any:
    """Returns what a pickle in memory holds; see `load`."""
    return _load(io.BytesIO(raw), path)


def _load(file: BinaryIO, path: str) -> Any:
    try:
        return Unpickler(file, encoding="latin1").load()
    except Refused as error:
        raise DataError(
            f"{path}: the pickle asks for {error}, which is not data and might run code; "
            "only arrays, lists, dicts, strings, bytes and numbers are loaded: do not trust this file"
        ) from None
    except Exception as error:  # a damaged pickle can make the unpickler raise nearly anything
        reason = ascii(f"{type(error).__name__}: {error}")[1:-1]
        raise DataError(f"{path}: not a pickle, or a damaged one ({reason}); download it again") from None


def check_memory(path: Path) -> None:
    """Raises DataError where a file is larger than the free memory."""
    free, size = free_memory(), path.stat().st_size
    if free is not None and size > free:
        raise DataError(
            f"{path}: a pickle is loaded whole, and its {size / 1e9:.1f} GB are more than the {free / 1e9:.1f} GB of "
            "free memory; use another format of the data, or a machine with more memory"
        )


def free_memory() -> int | None:
    """Returns how many bytes can be allocated without swapping, None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            amounts = dict(line.split(":", 1) for line in lines)
        return int(amounts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None

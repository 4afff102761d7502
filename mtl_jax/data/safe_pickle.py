"""Loading pickles without running code: arrays, lists, dicts, strings, bytes and numbers pass, all else is refused.

A pickle is a program that may name any function of Python. Here it can name only the few below, each replaced by one
that does no more than it has to. Pickles of Python 2 are read as Latin-1, which is what their arrays need.
"""

import collections
import io
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mtl_jax.data.decode import found
from mtl_jax.errors import DataError

_NDARRAY = object()  # stands where a pickle says numpy.ndarray; it cannot be called


class Refused(Exception):
    """A pickle names what it may not have."""


def _reconstruct(kind: object, shape: object, code: object) -> np.ndarray:
    if kind is not _NDARRAY:
        raise Refused("an array subclass")
    return np.ndarray((0,), np.int8)  # its state follows, with the true shape and the data


def _scalar(dtype: np.dtype, data: Any = b"") -> np.generic:
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(raw, bytes):
        raise Refused("a scalar that is not a number")
    return np.frombuffer(raw, dtype, 1)[0]


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _dtype(code: Any, align: object = False, copy: object = False) -> np.dtype:
    if not isinstance(code, str):
        raise Refused("a dtype that is not given by its code")
    return np.dtype(code, False, True)  # a copy, since its state (byte order, fields) follows


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"the encoding {encoding}")
    return text.encode("latin1")


def _bytes(*args: Any) -> bytes:
    if args:
        raise Refused("builtins.bytes with arguments")
    return b""


ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def persistent_load(self, key: Any) -> Any:
        raise Refused("an object stored elsewhere")


def load(place: Path) -> Any:
    """Returns what a pickle file holds.

    Raises:
        DataError: it names something that is not data, is damaged, is no pickle, or is larger than the free memory.
    """
    with open(place, "rb") as file:
        start = file.read(512)
        file.seek(0)
        if not start or "starts with" not in found(start):
            raise DataError(f"{place}: not a pickle but {found(start) if start else 'an empty file'}; fetch it again")
        check_memory(place)
        return _load(file, str(place))


def loads(raw: bytes, place: str) -> Any:
    """Returns what a pickle in memory holds; see `load`."""
    return _load(io.BytesIO(raw), place)


def _load(file: BinaryIO, place: str) -> Any:
    try:
        return _Unpickler(file, encoding="latin1").load()
    except Refused as error:
        raise DataError(
            f"{place}: the pickle asks for {error}, which is not data and might run code; "
            "only arrays, lists, dicts, strings, bytes and numbers are loaded: do not trust this file"
        ) from None
    except Exception as error:  # a damaged pickle can make the unpickler raise nearly anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{place}: not a pickle, or a damaged one ({reason}); fetch it again") from None


def check_memory(place: Path) -> None:
    """Raises DataError where a file that is loaded whole would not fit the free memory."""
    free, size = free_memory(), place.stat().st_size
    if free is not None and size > free:
        raise DataError(
            f"{place}: a pickle is loaded whole, and its {size / 1e9:.1f} GB are more than the {free / 1e9:.1f} GB of "
            "free memory; use another format of the data, or a machine with more memory"
        )


def free_memory() -> int | None:
    """Returns the bytes of memory that can be had without swapping, None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            amounts = dict(line.split(":", 1) for line in lines)
        return int(amounts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None

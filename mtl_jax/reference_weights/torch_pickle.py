"""The pickles of PyTorch's weight files: names of tensors, and whatever a program kept beside them.

Tensors become arrays, objects of other packages become `Foreign`, and what may run code is refused.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from mtl_jax.data.sources import safe_pickle
from mtl_jax.errors import CheckpointError

_DTYPES = {
    "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": jnp.bfloat16, "Long": "i8", "Int": "i4", "Short": "i2",
    "Char": "i1", "Byte": "u1", "Bool": "?", "ComplexDouble": "c16", "ComplexFloat": "c8", "Untyped": "u1",
}  # fmt: skip
_NEWER = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": jnp.bfloat16, "int64": "i8", "int32": "i4",
    "int16": "i2", "int8": "i1", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8", "bool": "?",
    "complex64": "c8", "complex128": "c16", "float8_e4m3fn": jnp.float8_e4m3fn, "float8_e5m2": jnp.float8_e5m2,
}  # fmt: skip
_PLAIN = {
    "argparse": ("Namespace",), "types": ("SimpleNamespace",), "collections": ("Counter", "defaultdict", "deque"),
    "copyreg": ("_reconstructor", "__newobj__"), "copy_reg": ("_reconstructor",), "datetime": (), "pathlib": (),
    "enum": (), "uuid": ("UUID",), "decimal": ("Decimal",), "fractions": ("Fraction",), "random": ("Random",),
    "builtins": ("set", "frozenset", "complex", "slice", "range", "object", "dict", "list", "tuple", "int", "float",
                 "str", "bool", "bytearray", "type"),
}  # fmt: skip
_ANOTHER_SYSTEM = ("__builtin__", "copy_reg", "posix", "nt")  # of Python, but not of this one perhaps
_PLAIN["__builtin__"] = _PLAIN["builtins"]
_VIEWS = 8  # times the file's size that all tensors may have together: several can share their bytes
_DEEPEST = 200  # containers within containers
_CLASSES = 1000  # of other packages, each some memory


class Foreign:
    """An object of which the file has no more than the name of its class: it holds and does nothing."""

    origin = ""

    def __new__(cls, *args: Any, **options: Any) -> "Foreign":
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def _ignore(self, *args: Any) -> None:
        pass

    append = extend = add = update = __setitem__ = _ignore


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Kind(NamedTuple):
    """A type of storage, such as FloatStorage, or a dtype."""

    dtype: np.dtype


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise safe_pickle.Refused(f"a tensor with {ascii(value)[:20]} as a size")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 32:
        raise safe_pickle.Refused("a tensor of an unknown form")
    return _Tensor(storage, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, strides)))


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    if len(rest) < 3 or not isinstance(rest[2], _Kind):
        raise safe_pickle.Refused("a tensor of an unknown type")
    return _tensor(_Storage(storage.key, rest[2].dtype), offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(build: Callable, kind: Any, args: tuple, *_: Any) -> Any:
    if build not in (_tensor, _tensor_of_dtype, _parameter):
        raise safe_pickle.Refused("a tensor of an unknown form")
    return build(*args)


_GLOBALS = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch", "Size"): tuple,
    **{(package, f"{name}Storage"): _Kind(np.dtype(dtype))
       for package in ("torch", "torch.storage", "torch.cuda") for name, dtype in _DTYPES.items()},
    **{("torch", name): _Kind(np.dtype(dtype)) for name, dtype in _NEWER.items()},
}  # fmt: skip


class Unpickler(safe_pickle.Unpickler):
    """Notes the bytes that tensors need, by the keys of their storages."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.sizes: dict[str, tuple[int, int]] = {}  # how many numbers, and the bytes of each
        self._foreign: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = _GLOBALS.get((module, name)) or safe_pickle.ALLOWED.get((module, name))
        if known is not None:
            return known
        root, full = module.split(".")[0], ascii(f"{module}.{name}")[1:-1]
        is_python = root in sys.stdlib_module_names or root in _ANOTHER_SYSTEM
        if is_python and (root not in _PLAIN or name not in (_PLAIN[root] or [name])):
            raise safe_pickle.Refused(full)
        if full not in self._foreign:
            if len(self._foreign) == _CLASSES:
                raise safe_pickle.Refused(f"more than {_CLASSES} classes")
            self._foreign[full] = type("Foreign", (Foreign,), {"origin": full})
        return self._foreign[full]

    def persistent_load(self, key: Any) -> Any:
        if not isinstance(key, tuple) or not key:
            raise safe_pickle.Refused("an object stored elsewhere")
        if key[0] == "module":  # the older form keeps the source beside a class
            return key[1]
        if key[0] != "storage" or len(key) < 5:
            raise safe_pickle.Refused("an object stored elsewhere")
        kind, name, count = key[1], str(key[2]), _whole(key[4])
        if not isinstance(kind, _Kind):
            origin = getattr(kind, "origin", "") or "no type"
            raise CheckpointError(f"its tensors are quantised or of an unknown type ({origin}); save them as float32")
        if len(key) > 5 and key[5] is not None:
            raise CheckpointError(
                "its tensors are views, as PyTorch before 0.4 wrote them; save it again by a newer one"
            )
        self.sizes[name] = count, kind.dtype.itemsize
        return _Storage(name, kind.dtype)


def with_arrays(
    content: Any, storages: Mapping[str, bytes], sizes: Mapping[str, tuple[int, int]], is_big: bool, limit: int
) -> Any:
    """The content with arrays for tensors, and plain dicts and lists for other containers."""
    for key, (count, size) in sizes.items():
        if len(storages.get(key, b"")) != count * size:
            raise EOFError(f"storage {ascii(key)[:40]} is of another size")
    total, done = 0, {}

    def array(tensor: _Tensor) -> np.ndarray:
        nonlocal total
        dtype, data = tensor.storage.dtype, storages[tensor.storage.key]
        count = math.prod(tensor.shape)
        total += count * dtype.itemsize
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        if total > _VIEWS * limit or (count and (last + 1) * dtype.itemsize > len(data)):
            raise EOFError("a tensor is larger than its bytes")
        if not count:
            return np.zeros(tensor.shape, dtype)
        if is_big:
            unit = dtype.itemsize // (2 if dtype.kind == "c" else 1)
            data = np.frombuffer(data, np.uint8).reshape(-1, unit)[:, ::-1].tobytes()
        raw = np.dtype((np.void, dtype.itemsize))  # NumPy cannot stride over all of JAX's types
        flat = np.frombuffer(data, raw, last + 1 - tensor.offset, tensor.offset * dtype.itemsize)
        steps = [step * dtype.itemsize for step in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False).view(dtype)

    def convert(value: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise RecursionError("too deeply nested")
        if isinstance(value, _Tensor):
            return array(value)
        if id(value) in done:
            return done[id(value)][1]
        if isinstance(value, _Kind | _Storage) or value is tuple or isinstance(value, type) or callable(value):
            return None
        if isinstance(value, Mapping):
            result: Any = {}
            done[id(value)] = value, result
            for key, held in value.items():
                result[key] = convert(held, depth + 1)
            return result
        if isinstance(value, list | tuple):
            result = []
            done[id(value)] = value, result
            result.extend(convert(held, depth + 1) for held in value)
            if isinstance(value, tuple):
                done[id(value)] = value, tuple(result)
            return done[id(value)][1]
        return value

    return convert(content, 0)

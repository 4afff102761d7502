"""Reads PyTorch's weight files without PyTorch and without running code: zip files, and the older form before them.

A file is a pickle that names its tensors, and their bytes. Memory is bounded by the file's size.
"""

import codecs
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mtl_jax.data.damage import known_content, looks_like
from mtl_jax.data.sources import safe_pickle
from mtl_jax.errors import CheckpointError, MtlError, first_line
from mtl_jax.reference_weights.torch_pickle import Foreign, Unpickler, with_arrays

ZIP = b"PK\x03\x04"
_MAGICS = {
    b"\x93NUMPY": "a NumPy file (.npy)", b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "a gzip archive", b"{": "a JSON file",
}  # fmt: skip
_MAGIC = 0x1950A86A20F9469CFC6C  # the older form starts with it


def read(path: Path) -> Any:
    """The content of a PyTorch file: dicts, lists, text and numbers, with NumPy arrays for tensors.

    Raises:
      CheckpointError: the file is damaged, something else, asks for code, or holds a pickled network.
    """
    with path.open("rb") as file:
        start = file.read(512)
        if start and not start.startswith((ZIP, b"\x80")):
            what = known(start) or looks_like(start)
            raise CheckpointError(f"{path}: {what}, not a PyTorch file; give the right file")
        file.seek(0)
        try:
            content = _read_zip(file) if start.startswith(ZIP) else _read_older(file)
        except safe_pickle.Refused as error:
            raise CheckpointError(
                f"{path}: not a PyTorch file of plain tensors: it asks for {error}, which is not data and may run "
                "code; do not trust it, or save the network's state_dict() alone"
            ) from None
        except MtlError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except (EOFError, zipfile.BadZipFile) as error:
            size = path.stat().st_size
            reason = ascii(first_line(error))[1:-1]
            raise CheckpointError(
                f"{path}: {'an empty' if not size else 'a damaged PyTorch'} file of {size:,} bytes, perhaps a download "
                f"that stopped ({reason}); download it again"
            ) from None
        except Exception as error:  # a damaged pickle can make the unpickler raise nearly anything
            reason = ascii(f"{type(error).__name__}: {error}")[1:-1][:200]
            raise CheckpointError(
                f"{path}: not a PyTorch file, or a damaged one ({reason}); download it again"
            ) from None
    if isinstance(content, Foreign):
        raise CheckpointError(f"{path}: {pickled(content)}")
    return content


def known(start: bytes) -> str | None:
    """What a file is, by its first 512 bytes, that lies in a weight file's place; None for anything not known."""
    if start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"<":
        return "a web page"
    kinds = [name for magic, name in _MAGICS.items() if start.startswith(magic)]
    return kinds[0] if kinds else "a tar archive" if start[257:262] == b"ustar" else known_content(start)


def pickled(network: Foreign) -> str:
    """What a whole network in place of its weights is, for messages."""
    return (
        f"a network pickled whole, not a PyTorch file of plain tensors: it needs the code of {network.origin}; "
        "save the network's state_dict() alone"
    )


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            kind = "an archive of NumPy arrays (.npz)" if any(name.endswith(".npy") for name in names) else "a zip file"
            raise CheckpointError(f"{kind}, not a PyTorch file; give a .pth, .npy or .safetensors file")
        root = roots[0]
        if f"{root}constants.pkl" in names:
            raise CheckpointError("a network exported by TorchScript; save the network's state_dict() instead")

        def record(name: str) -> bytes:
            info = names.get(root + name)
            if info is None:
                raise EOFError(f"{name} is missing")
            if info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"its {name} is compressed, as PyTorch never does; download it again")
            return archive.read(info)

        order = record("byteorder") if f"{root}byteorder" in names else b"little"
        if order not in (b"little", b"big"):
            raise EOFError("the order of its bytes is unknown")
        unpickler = Unpickler(io.BytesIO(record("data.pkl")))
        content, limit = unpickler.load(), _size(file)
        _check_total(unpickler.sizes, limit)
        storages = {key: record(f"data/{key}") for key in unpickler.sizes}
    return with_arrays(content, storages, unpickler.sizes, order == b"big", limit)


def _read_older(file: BinaryIO) -> Any:
    limit = _size(file)
    unpickler = Unpickler(file)
    magic = unpickler.load()
    if magic != _MAGIC or type(magic) is not int:
        if isinstance(magic, Mapping | list | tuple | Foreign):
            return with_arrays(magic, {}, {}, False, limit)  # a plain pickle, of arrays perhaps
        raise CheckpointError("not a PyTorch file, or a damaged one; download it again")
    Unpickler(file).load()  # the version of the protocol
    system = Unpickler(file).load()
    is_big = isinstance(system, Mapping) and system.get("little_endian") is False
    unpickler = Unpickler(file)
    content, keys = unpickler.load(), Unpickler(file).load()
    _check_total(unpickler.sizes, limit)
    storages = {}
    for key in map(str, keys):
        count, size = unpickler.sizes.get(key, (-1, 0))
        if int.from_bytes(_exactly(file, 8), "big" if is_big else "little") != count or key in storages:
            raise EOFError(f"storage {ascii(key)[:40]} is of another size")
        storages[key] = _exactly(file, count * size)
    return with_arrays(content, storages, unpickler.sizes, is_big, limit)


def _check_total(sizes: Mapping[str, tuple[int, int]], limit: int) -> None:
    if sum(count * size for count, size in sizes.values()) > limit:
        raise EOFError("its tensors are larger than it is")


def _size(file: BinaryIO) -> int:
    place = file.tell()
    size = file.seek(0, 2)
    file.seek(place)
    return size


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it ends within a tensor")
    return data

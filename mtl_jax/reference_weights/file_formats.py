"""The file formats .pth, .npy and .safetensors: mappings of arrays in and out, without running code from a file.

pth.py reads the first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mtl_jax.config.rules import PYTORCH_SUFFIXES
from mtl_jax.data.sources import safe_pickle
from mtl_jax.errors import CheckpointError, MtlError
from mtl_jax.reference_weights import pth

_NUMPY = b"\x93NUMPY"
_NEWER = ("BF16", "F8_E4M3", "F8_E5M2")  # types that NumPy has not, and JAX has


def kind_of(path: Path) -> str | None:
    """What a file holds, by its first bytes or else its name: 'pth', 'npy' or 'safetensors'; None: none of these."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith((pth.ZIP, b"\x80")):
        return "pth"
    if start.startswith(_NUMPY):
        return "npy"
    if start[8:] == b"{" and path.stat().st_size >= int.from_bytes(start[:8], "little"):
        return "safetensors"
    by_name = {".npy": "npy", ".safetensors": "safetensors"}
    return "pth" if path.name.endswith(PYTORCH_SUFFIXES) else by_name.get(path.suffix)


def write_pth(path: Path, mapping: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes {'params': state dict} as PyTorch does. Raises MtlError where PyTorch is not installed."""
    try:
        import torch
    except ImportError as error:
        raise MtlError(f"{path}: PyTorch writes .pth files; run: pip install 'mtl_jax[torch]'") from error
    tensors = {
        group: {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        for group, state in mapping.items()
    }
    torch.save(tensors, path)


def read_npy(path: Path) -> Mapping[str, Any]:
    """The dict that `numpy.save` pickled into a file, read by an unpickler that knows arrays and containers alone.

    Raises:
      CheckpointError: not a NumPy file, or no dict in it.
      DataError: the pickle asks for more than data.
    """
    content = path.read_bytes()
    if not content.startswith(_NUMPY):
        raise _not(path, "a NumPy file", content[:512])
    size = int.from_bytes(content[8:10] if content[6] == 1 else content[8:12], "little")
    header_end = (10 if content[6] == 1 else 12) + size
    is_pickle = b"'|O'" in content[:header_end]
    loaded = safe_pickle.loads(content[header_end:], str(path)) if is_pickle else None
    mapping = loaded.item() if isinstance(loaded, np.ndarray) and loaded.size == 1 else loaded
    if not isinstance(mapping, Mapping):
        raise CheckpointError(f"{path}: expected a pickled dict of arrays, as the TensorFlow code saves it")
    return mapping


def write_npy(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a dict of arrays as the TensorFlow code does."""
    np.save(path, np.array(dict(arrays), dtype=object), allow_pickle=True)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by name, and the metadata, of a safetensors file. Raises CheckpointError if it is damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            newer = {name for name in file.keys() if file.get_slice(name).get_dtype() in _NEWER}  # noqa: SIM118
            arrays = {name: file.get_tensor(name) for name in file.keys() if name not in newer}  # noqa: SIM118
            metadata = file.metadata() or {}
        if newer:
            with safetensors.safe_open(path, framework="flax") as file:
                arrays |= {name: np.asarray(file.get_tensor(name)) for name in newer}
        return arrays, metadata
    except Exception as error:
        with path.open("rb") as opened:
            raise _not(path, "a safetensors file", opened.read(512), f" ({error})") from error


def _not(path: Path, kind: str, start: bytes, reason: str = "") -> CheckpointError:
    """The error of a file that is not of the kind that its name says."""
    if not start:
        return CheckpointError(f"{path}: an empty file, perhaps a download that stopped; download it again")
    if what := pth.known(start):
        return CheckpointError(f"{path}: {what}, not {kind}; give the right file")
    return CheckpointError(f"{path}: not {kind}{reason}; download it again")


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays by name, and metadata."""
    safetensors.numpy.save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path, dict(metadata))

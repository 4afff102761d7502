"""The file formats .pth, .npy and .safetensors: mappings of arrays in and out, without running code from a file."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mtl_jax.data.sources import safe_pickle
from mtl_jax.errors import CheckpointError, MtlError, first_line

_NUMPY = b"\x93NUMPY"


def read_pth(path: Path) -> Any:
    """The content of a PyTorch file, old or new (zip): tensors, plain containers, command lines.

    Raises:
      MtlError: PyTorch is not installed.
      CheckpointError: the file is damaged or asks for more than data.
    """
    torch = _torch(path)
    with path.open("rb") as file:
        if file.read(200).lstrip()[:1] == b"<":
            raise CheckpointError(f"{path}: a web page, not a PyTorch file; fetch the file that the page leads to")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # RFS and FEAT save their flags with the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make it raise nearly anything
        raise CheckpointError(f"{path}: not a PyTorch file of plain tensors: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if refused:
        return f"it needs the code of {refused[1]}; save the network's state_dict() alone"
    return f"{first_line(error)[:200]}; fetch it again"


def write_pth(path: Path, mapping: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes {'params': state dict} as PyTorch does."""
    torch = _torch(path)
    tensors = {
        group: {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        for group, state in mapping.items()
    }
    torch.save(tensors, path)


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MtlError(
            f"{path}: .pth files need PyTorch; run: pip install 'mtl_jax[torch]', or give a loaded mapping"
        ) from error
    return torch


def read_npy(path: Path) -> Mapping[str, Any]:
    """The dict that `numpy.save` pickled into a file, read by an unpickler that knows arrays and containers alone.

    Raises:
      CheckpointError: not a NumPy file, or no dict in it.
      DataError: the pickle asks for more than data.
    """
    content = path.read_bytes()
    if not content.startswith(_NUMPY):
        raise CheckpointError(f"{path}: not a NumPy file; fetch it again")
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
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); fetch it again") from error


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays by name, and metadata."""
    safetensors.numpy.save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path, dict(metadata))

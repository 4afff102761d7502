"""Reading and writing weight files without running what is in them: .pth, .npy, .safetensors -> mappings of arrays."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mtl_jax.data.sources import safe_pickle
from mtl_jax.errors import CheckpointError, MtlError

_NUMPY = b"\x93NUMPY"


def read_pth(path: Path) -> Any:
    """What a PyTorch file holds, in the old or the new (zip) file format: tensors, plain containers, command lines.

    Raises:
      MtlError: PyTorch is not installed. CheckpointError: the file is damaged or asks for more than data.
    """
    torch = _torch(path)
    with path.open("rb") as file:
        if file.read(200).lstrip()[:1] == b"<":
            raise CheckpointError(f"{path}: a web page, not a PyTorch file; fetch the file that the page leads to")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # RFS and FEAT save theirs beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make it raise nearly anything
        raise CheckpointError(f"{path}: not a PyTorch file of plain tensors: {_why(error)}") from error


def _why(error: Exception) -> str:
    wanted = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if wanted:
        return f"it needs the code of {wanted[1]}; save the network's state_dict() alone"
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"{reason}; fetch it again"


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
            f"{path}: .pth files need PyTorch; run: pip install 'mtl_jax[torch]', or give an already loaded mapping"
        ) from error
    return torch


def read_npy(path: Path) -> Mapping[str, Any]:
    """The dict that `numpy.save` pickled into a file, read by the restricted unpickler.

    Raises:
      CheckpointError: no such file. DataError: the pickle asks for more than data.
    """
    raw = path.read_bytes()
    if not raw.startswith(_NUMPY):
        raise CheckpointError(f"{path}: not a NumPy file; fetch it again")
    size = int.from_bytes(raw[8:10] if raw[6] == 1 else raw[8:12], "little")
    start = (10 if raw[6] == 1 else 12) + size
    loaded = safe_pickle.loads(raw[start:], str(path)) if b"'|O'" in raw[:start] else None
    content = loaded.item() if isinstance(loaded, np.ndarray) and loaded.size == 1 else loaded
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: a pickled dict of arrays was expected, as the TensorFlow code saves it")
    return content


def write_npy(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a dict of arrays as the TensorFlow code does."""
    np.save(path, np.array(dict(arrays), dtype=object), allow_pickle=True)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by name, metadata) of a safetensors file. Raises CheckpointError where it is damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); fetch it again") from error


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays by name."""
    safetensors.numpy.save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path, dict(metadata))

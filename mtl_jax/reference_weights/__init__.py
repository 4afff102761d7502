"""Published weight files: files.py reads those of few-shot learning, networks.py others (start there).
They read bytes by file_formats.py and pth.py, names by pytorch.py, tensorflow.py, vision/."""

from mtl_jax.reference_weights.files import (
    ReferenceWeights,
    export_npy,
    export_pth,
    export_safetensors,
    load_reference_weights,
)
from mtl_jax.reference_weights.networks import Network, load_network

__all__ = ["Network", "ReferenceWeights", "export_npy", "export_pth", "export_safetensors", "load_network",
           "load_reference_weights"]  # fmt: skip

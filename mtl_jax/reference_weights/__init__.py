"""Published weight files, read and written. Start with files.py, which is what users call.

file_formats.py reads and writes the bytes; pytorch.py and tensorflow.py know the key names of each implementation;
kept_networks.py is this project's own file of a trained network.
"""

from mtl_jax.reference_weights.files import (
    ReferenceWeights,
    export_npy,
    export_pth,
    export_safetensors,
    load_reference_weights,
)

__all__ = ["ReferenceWeights", "export_npy", "export_pth", "export_safetensors", "load_reference_weights"]

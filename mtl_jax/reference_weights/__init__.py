"""Weight files of the reference implementations and of other published code. Start with files.py."""

from mtl_jax.reference_weights.files import (
    ReferenceWeights,
    export_npy,
    export_pth,
    export_safetensors,
    load_reference_weights,
)

__all__ = ["ReferenceWeights", "export_npy", "export_pth", "export_safetensors", "load_reference_weights"]

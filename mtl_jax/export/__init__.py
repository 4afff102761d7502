"""A trained network outside its run: a function of images (embedding.py), also as a file of StableHLO (stablehlo.py)
or ONNX (onnx.py).

The networks that come with the package lie here as .safetensors files.
"""

from mtl_jax.export.stablehlo import Exported, export, load, write

__all__ = ["Exported", "export", "load", "write"]

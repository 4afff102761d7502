"""A trained network outside its run: as a function of images, as StableHLO.

Start with embedding.py; the networks that come with the package lie beside it.
"""

from mtl_jax.export.stablehlo import Exported, export, load, write

__all__ = ["Exported", "export", "load", "write"]

"""Data sets: any copy that a person has, read as it is into uint8 memory maps sorted by class."""

from mtl_jax.data.dataset import SPLITS, Dataset, Split
from mtl_jax.data.load import load

__all__ = ["SPLITS", "Dataset", "Split", "load"]

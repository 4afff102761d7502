"""Data sets: any copy that people have is read as it is, and prepared once into uint8 memory maps sorted by class.

Start at load.py: sources/ finds and reads what a path holds, with the layouts of papers in layouts/ and what any system
writes in files/; cache/ prepares and opens it; dataset.py is the result.
A new format is a module in sources/ and a row in the table of sources/find.py. What papers fixed is in facts.py.
"""

from mtl_jax.data.dataset import SPLITS, Dataset, Split
from mtl_jax.data.load import load

__all__ = ["SPLITS", "Dataset", "Split", "load"]

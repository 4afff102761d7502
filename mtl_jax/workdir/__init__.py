"""What a run keeps on disk: paths, logs, metrics, checkpoints.

Start with workdir.py. How a run is saved: checkpoint.py; how a checkpoint is verified: manifest.py.
"""

from mtl_jax.workdir.workdir import Workdir, lock, record_command, write_bytes_atomic, write_json_atomic, writing
from mtl_jax.workdir.writers import read_jsonl

__all__ = ["Workdir", "lock", "read_jsonl", "record_command", "write_bytes_atomic", "write_json_atomic", "writing"]

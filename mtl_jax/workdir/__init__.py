"""What a run keeps on disk: paths, logs, metrics, checkpoints.

Start with workdir.py; to change how a run is saved, read checkpoint.py.
"""

from mtl_jax.workdir.workdir import Workdir, lock, read_bounded, record_command, write_bytes_atomic, write_json_atomic
from mtl_jax.workdir.writers import read_jsonl

__all__ = [
    "Workdir", "lock", "read_bounded", "read_jsonl", "record_command", "write_bytes_atomic", "write_json_atomic",
]  # fmt: skip

"""From a config to the last checkpoint. Start with run.py."""

from mtl_jax.train.run import train

__all__ = ["train"]

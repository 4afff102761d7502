"""From a config to the last checkpoint. Start with run.py.

To change a phase, read pretraining.py or meta_training.py.
"""

from mtl_jax.train.run import train

__all__ = ["train"]

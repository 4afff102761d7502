"""A run's network and how good it is on test tasks. Start with run.py; to load a network, network.py."""

from mtl_jax.evaluate.run import accuracies, describe, evaluate, shared_protocol_line

__all__ = ["accuracies", "describe", "evaluate", "shared_protocol_line"]

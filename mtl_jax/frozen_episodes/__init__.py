"""Test tasks as a file that any program in any framework can replay. Start with file.py, which defines the format."""

from mtl_jax.frozen_episodes.file import Frozen, choose_tasks, content_hash, freeze, read, write

__all__ = ["Frozen", "choose_tasks", "content_hash", "freeze", "read", "write"]

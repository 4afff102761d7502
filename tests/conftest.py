"""Settings of all tests: CPU, no persistent compilation cache, a data cache of their own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")

import jax
import pytest


@pytest.fixture
def float64():
    """JAX computes in float64 while this fixture lives."""
    with jax.enable_x64(True):
        yield

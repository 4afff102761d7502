"""Settings of all tests: CPU, quick compilation that is not kept, a data cache of their own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # tests compile far longer than they run
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")

import jax
import pytest
from audit import device_form


@pytest.fixture
def float64():
    """JAX computes in float64 while this fixture lives."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[True, False], ids=["cpu", "other"])
def on_cpu(request):
    """Both ways of writing: what a CPU gets, and what other devices get."""
    with device_form(request.param):
        yield

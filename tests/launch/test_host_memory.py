"""Freed memory is kept by the programs, unless the user has said how memory is to be had."""

import os
import platform
import subprocess
import sys

import pytest

from mtl_jax.launch import host_memory

GLIBC = platform.libc_ver()[0] == "glibc"
# Takes and frees 40 MB again and again, and prints how many pages the last ten rounds had the system map.
PROGRAM = """
import resource
import numpy as np
from mtl_jax import host_memory
print(host_memory.keep())
for number in range(20):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    """What the program prints: whether memory is kept, and its page faults."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", host_memory.SWITCH))}
    options = {"env": {**kept, **environment}, "capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-c", PROGRAM], **options)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not GLIBC, reason="for glibc alone")
def test_freed_memory_is_taken_again_without_asking_the_system():
    kept, count = faults()
    assert kept and count < 100
    kept, count = faults(MTL_JAX_MALLOC="0")
    assert not kept and count > 10 * 5_000_000 * 8 / 2**21  # at the least one a huge page


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(name):
    assert not host_memory.keep({name: "1"})

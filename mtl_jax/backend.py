"""What kind of device does the work, for the few places whose fastest form depends on it."""

import jax


def on_cpu() -> bool:
    """Whether JAX's default devices are CPUs."""
    return jax.default_backend() == "cpu"

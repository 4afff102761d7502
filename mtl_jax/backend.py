"""What the devices are, for the few places that depend on it."""

from typing import Any

import jax


def on_cpu() -> bool:
    """Whether JAX's default devices are CPUs."""
    return jax.default_backend() == "cpu"


def vary_like(tree: Any, reference: Any) -> Any:
    """The tree, of the type of what differs between the devices of a `shard_map` where `reference` is of that type.

    The parameters need this before a device's own loss is differentiated: by what is the same on all devices, JAX gives
    the sum of their gradients. The tree itself comes back where there are no such types: under `jit`, `vmap`, `pmap`
    and an unchecked `shard_map`.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(reference)))
    return jax.tree.map(lambda leaf: _cast(leaf, axes - _varying_axes(leaf)), tree) if axes else tree


def _varying_axes(x: Any) -> frozenset:
    kind = jax.typeof(x)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # in older JAX, in newer


def _cast(x: Any, axes: frozenset) -> Any:
    if not axes:
        return x
    names = tuple(sorted(axes))
    return jax.lax.pcast(x, names, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(x, names)

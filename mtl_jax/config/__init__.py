"""What a run is to do: its keys, what they may be, and what they become.

Start with recipe.py, which is what training reads; build.py makes it from a config. A new key: its meaning goes into
configs/default.py, its values into schema.py and rules.py.
"""

from mtl_jax.config.config import MAY_DIFFER, compare, complete, override, read, to_json, validate

__all__ = ["MAY_DIFFER", "compare", "complete", "override", "read", "to_json", "validate"]

"""Compiled programs kept between runs, in the user's cache folder; the programs turn it on, the library never does."""

import os
from pathlib import Path

import jax

SWITCH = "MTL_JAX_COMPILATION_CACHE"
_LEAST_SECONDS = 0.5  # of a compilation, to be worth a file


def configure() -> Path | None:
    """Turns JAX's persistent compilation cache on; call it before anything is compiled.

    A folder that the user has given to JAX itself (JAX_COMPILATION_CACHE_DIR) is left as it is, and so is
    JAX_ENABLE_COMPILATION_CACHE=false. The environment variable MTL_JAX_COMPILATION_CACHE names another folder, or
    turns it off by 0. What is kept there can be deleted at any time.

    Returns:
      The folder that was set, or None.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted == "0" or jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(wanted).expanduser() if wanted else base / "mtl_jax" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to costs time, not the run
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    return folder

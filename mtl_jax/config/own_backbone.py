"""A custom backbone: --backbone=module:factory, where `factory()` returns a Linen module.

The flag alone imports code. A config.json has the name, so a program that reads a run needs the same flag.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import linen as nn

from mtl_jax.errors import ConfigError, first_line

HELP = "your own backbone, as module:factory or FILE.py:factory; factory() returns a Linen module"
HUB = "hf-hub:"  # begins the name of a model on the hub, which is none of these
WITH_RUN = "with the --workdir of a run that has a custom backbone: its module:factory"
_factories: dict[str, Callable[..., nn.Module]] = {}


def is_own(name: str) -> bool:
    """Whether a backbone's name is that of a custom one."""
    return ":" in name and not name.startswith(HUB)


def load(name: str) -> str:
    """Imports the module or the file of `name`, and keeps its factory for `create`; returns `name`.

    Raises:
      ConfigError: there is no such module or factory, or importing it fails.
    """
    place, _, factory = name.rpartition(":")
    if not place or not factory.isidentifier():
        raise ConfigError(f"--backbone={name}: expected module:factory or FILE.py:factory")
    try:
        made = getattr(_module(place), factory)
    except Exception as error:  # it is a program, which may raise anything
        raise ConfigError(f"--backbone={name}: {type(error).__name__}: {first_line(error)}") from error
    if not callable(made):
        raise ConfigError(f"--backbone={name}: {factory} is {made!r}, expected a function that returns a Linen module")
    _factories[name] = made
    return name


def _module(place: str) -> Any:
    path = Path(place).expanduser()
    if path.suffix != ".py":
        if str(Path.cwd()) not in sys.path:  # as `python FILE.py` has its own folder there
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def create(name: str, dtype: Any) -> nn.Module:
    """The module of a loaded factory, which gets `dtype` where it has such an argument.

    Raises:
      ConfigError: the flag was not given, or the factory returns something else.
    """
    if name not in _factories:
        given = ", ".join(_factories)
        raise ConfigError(
            f"the backbone is {name}, your own{f', not {given}' if given else ''}: give --backbone={name}, since "
            "a config alone never imports code"
        )
    options = {"dtype": dtype} if "dtype" in inspect.signature(_factories[name]).parameters else {}
    module = _factories[name](**options)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--backbone={name} returns {type(module).__name__}, expected a Linen module")
    return module


def load_beside(workdir: Any, backbone: str | None) -> str | None:
    """Takes --backbone beside --workdir: one of your own is loaded, any other is returned: trained weights.

    Raises:
      ConfigError: trained weights and a run are both named, or a backbone of your own without its run.
    """
    if not backbone:
        return None
    if not is_own(backbone):
        if workdir:
            raise ConfigError(f"--workdir and --backbone={backbone} cannot be combined; leave one out")
        return backbone
    if not workdir:
        raise ConfigError(f"--backbone={backbone} goes with the run that has it: give --workdir=DIR")
    load(backbone)
    return None

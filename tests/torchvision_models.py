"""torchvision's and timm's networks, as oracles: also where torchvision's wheel is for another build of PyTorch."""

import importlib
import sys
from typing import Any

import jax
import numpy as np
import pytest

_BOXES = "Tensor dets, Tensor scores, float iou_threshold"


def load(name: str) -> Any:
    """The module `name` of torchvision or timm; the test is skipped where one of them or PyTorch is not installed."""
    torch = pytest.importorskip("torch")
    try:
        pytest.importorskip("torchvision")
    except RuntimeError:  # its compiled operations cannot be loaded; it refers to two of them, and networks to none
        for module in [module for module in sys.modules if module.startswith("torchvision")]:
            del sys.modules[module]
        load.library = torch.library.Library("torchvision", "FRAGMENT")  # kept: what it declares ends with it
        load.library.define(f"nms({_BOXES}) -> Tensor")
        load.library.define(f"qnms({_BOXES}) -> Tensor")
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


def features(module: Any, params: Any, batch_stats: Any, images: Any) -> np.ndarray:
    """What a network of the project makes of images, in float64: rounding differs from one processor to the next."""
    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, {"params": params, "batch_stats": batch_stats})
        return np.asarray(jax.jit(module.apply)(variables, np.float64(images)))

"""Batch norm folded into the convolutions: the same function by running averages with nothing but convolutions left.

Behind a convolution, BN by running averages is an affine map of each output channel, so that
BN(W x + b) = (W factor) x + (b - mean) factor + offset with factor = scale / sqrt(var + epsilon).
Scale and shift is folded by `scale_shift.apply` already: what it returns are kernels and biases.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from flax import linen as nn

from mtl_jax.types import Params


def fold_batch_norm(module: nn.Module, params: Params, batch_stats: Params) -> tuple[nn.Module, Params]:
    """A network without batch norm that gives the features of the given one by its running averages.

    Args:
      module: what `create_backbone` returns.
      params: its parameters, SS applied.
      batch_stats: BN's running averages.

    Returns:
      (the same backbone with norm='none' and a bias on every convolution, its float32 parameters); what was given,
      where there is no batch norm in it.
    """
    if module.options.norm != "batch":
        return module, params
    options = dataclasses.replace(module.options, norm="none", conv_bias=True)
    return module.clone(options=options), _fold(params, batch_stats, module.options.norm_epsilon)


def _fold(params: Params, stats: Params, epsilon: float) -> Params:
    folded = {}
    for name, inner in params.items():
        if "mean" in stats.get(name, {}):
            continue  # a norm, which goes into its convolution
        if "kernel" in inner:
            norm = norm_of(name)
            folded[name] = _fold_one(inner, params.get(norm, {}), stats.get(norm), epsilon)
        else:
            folded[name] = _fold(inner, stats.get(name, {}), epsilon)
    return folded


def norm_of(conv: str) -> str:
    """The name of the norm behind a convolution, as `backbones` has them: conv2 -> norm2, shortcut -> shortcut_norm."""
    return conv.replace("conv", "norm") if conv.startswith("conv") else f"{conv}_norm"


def _fold_one(conv: Params, affine: Params, stats: Mapping[str, np.ndarray] | None, epsilon: float) -> Params:
    kernel = np.asarray(conv["kernel"], np.float64)
    bias = np.asarray(conv.get("bias", np.zeros(kernel.shape[-1])), np.float64)
    if stats is not None:
        mean, var = (np.asarray(stats[name], np.float64) for name in ("mean", "var"))
        factor = np.asarray(affine.get("scale", 1.0), np.float64) / np.sqrt(var + epsilon)
        kernel = kernel * factor
        bias = (bias - mean) * factor + np.asarray(affine.get("bias", 0.0), np.float64)
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

"""The two networks in plain eager PyTorch, on a flat mapping of tensors by the names that the Flax modules give.

Scale and shift, where the mapping has them, are applied as the published PyTorch code does: (W * Φ1) X + (b + Φ2).
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.torch_settings import Setting, placed

State = dict[str, torch.Tensor]
Norm = Callable[[State, str, torch.Tensor], torch.Tensor]


def tensors(arrays: Mapping[str, np.ndarray], setting: Setting) -> State:
    """Tensors of named arrays; kernels [kh, kw, in, out] become [out, in, kh, kw]."""
    found = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return {
        name: placed(value.permute(3, 2, 0, 1) if name.startswith(("params", "ss")) and value.ndim == 4 else value,
                     setting)
        for name, value in found.items()
    }  # fmt: skip


def images(array: np.ndarray, setting: Setting, crop: int, mean: np.ndarray, std: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, C] -> normalised [B, C, H, W], the middle `crop` pixels (0: all)."""
    x = torch.from_numpy(array).permute(0, 3, 1, 2)
    if crop:
        top, left = (round((length - crop) / 2) for length in x.shape[2:])
        x = x[:, :, top : top + crop, left : left + crop]
    mean, std = (torch.as_tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))
    return placed((x.float() / 255 - mean) / std, setting)


def conv(s: State, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight, bias = s[f"params/{name}/kernel"], s.get(f"params/{name}/bias")
    if f"ss/{name}/scale" in s:
        weight = weight * s[f"ss/{name}/scale"]
    if f"ss/{name}/shift" in s:
        bias = bias + s[f"ss/{name}/shift"]
    return F.conv2d(x, weight, bias, stride, weight.shape[2] // 2)


def stored_norm(training: bool, momentum: float = 0.1, eps: float = 1e-5) -> Norm:
    """Batch norm with averages: moved in place when training, used otherwise."""

    def norm(s: State, name: str, x: torch.Tensor) -> torch.Tensor:
        averages = s[f"batch_stats/{name}/mean"], s[f"batch_stats/{name}/var"]
        affine = s[f"params/{name}/scale"], s[f"params/{name}/bias"]
        return F.batch_norm(x, *averages, *affine, training, momentum, eps)

    return norm


def batch_norm(s: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """By the batch at hand, nothing stored, no scale and no offset: the TensorFlow code's."""
    return F.batch_norm(x, None, None, None, None, True, 0.0, 1e-3)


def resnet25(s: State, x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """[B, 3, H, W] -> [B, F]."""
    x = F.relu(norm(s, "stem/norm", conv(s, "stem/conv", x)))
    for stage in (1, 2, 3):
        for block in (1, 2, 3, 4):
            x = _basic_block(s, f"stage{stage}/block{block}", x, 2 if block == 1 else 1, norm)
    return x.mean((2, 3))


def _basic_block(s: State, name: str, x: torch.Tensor, stride: int, norm: Norm) -> torch.Tensor:
    y = F.relu(norm(s, f"{name}/norm1", conv(s, f"{name}/conv1", x, stride)))
    y = norm(s, f"{name}/norm2", conv(s, f"{name}/conv2", y))
    if stride > 1:
        x = norm(s, f"{name}/shortcut_norm", conv(s, f"{name}/shortcut", x, stride))
    return F.relu(x + y)


def resnet12(s: State, x: torch.Tensor, norm: Norm, dropout: float = 0.0) -> torch.Tensor:
    """[B, 3, H, W] -> [B, F]."""
    for block in ("block1", "block2", "block3", "block4"):
        shortcut = conv(s, f"{block}/shortcut", x)
        for i in (1, 2, 3):
            x = F.leaky_relu(norm(s, f"{block}/norm{i}", conv(s, f"{block}/conv{i}", x)), 0.1)
        x = F.dropout(F.max_pool2d(x + shortcut, 2), dropout)
    return x.mean((2, 3))

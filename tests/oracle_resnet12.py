"""The ResNet-12 of MetaOptNet, RFS, FEAT and DeepEMD in plain PyTorch, from its description, to be checked by eye.

All weights live in a state dict with RFS' key names; nothing here knows of mtl_jax.
"""

import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # the sizes are tiny, and threads that wait for each other cost more than they give


def batch_norm(s, name, x, training):
    """In training: batch statistics, and the running averages are moved in place."""
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], training, momentum=0.1, eps=1e-5)


def block(s, name, x, training):
    out = x
    for i in (1, 2, 3):
        out = F.conv2d(out, s[f"{name}.conv{i}.weight"], padding=1)
        out = batch_norm(s, f"{name}.bn{i}", out, training)
        if i < 3:
            out = F.leaky_relu(out, 0.1)
    shortcut = F.conv2d(x, s[f"{name}.downsample.0.weight"])
    out = out + batch_norm(s, f"{name}.downsample.1", shortcut, training)
    return F.max_pool2d(F.leaky_relu(out, 0.1), 2)


def features(s, x, training):
    """Images [B, 3, H, W] -> [B, F]."""
    for layer in (1, 2, 3, 4):
        x = block(s, f"layer{layer}.0", x, training)
    return x.mean((2, 3))


def tensors(state):
    """A copy of a state dict as float64 tensors; what is no average wants gradients."""
    s = {key: torch.tensor(value, dtype=torch.float64) for key, value in state.items() if "num_batches" not in key}
    for key, value in s.items():
        value.requires_grad_("running" not in key)
    return s

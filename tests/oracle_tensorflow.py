"""The TensorFlow implementation, written in plain PyTorch from its description alone and meant to be checked by eye.

Weights live in the implementation's own dicts, kernels as [kh, kw, in, out]; images are [B, H, W, 3]. Nothing here
knows of mtl_jax. `norms`, where given, makes it the paper's network: batch norm by running averages, with a scale and
an offset.
"""

import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # the sizes are tiny, and threads that wait for each other cost more than they give


def conv(x, kernel, bias=None):
    """SAME padding at stride 1."""
    return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=kernel.shape[0] // 2)


def batch_norm(x, mean=None, var=None, scale=1, offset=0, eps=1e-3):
    """By the statistics of the batch at hand, without scale and offset, unless they are given."""
    if mean is None:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    shape = (1, -1, 1, 1)
    factor = scale / torch.sqrt(var + eps)
    offset = offset - mean * factor
    return x * factor.reshape(shape) + offset.reshape(shape)


def layer_norm(x):
    """Over H, W, C of an image."""
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-12)


def unit(s, name, bias, x, norm, norms):
    """conv with SS - norm - leaky ReLU. The bias of the meta phases is the one in ss_weights."""
    x = conv(x, s["weights"][name] * s["ss_weights"][name], s["ss_weights"][bias])
    if norms:
        x = batch_norm(x, **norms[name], eps=1e-5)
    elif norm == "batch":
        x = batch_norm(x)
    elif norm == "layer":
        x = layer_norm(x)
    return F.leaky_relu(x, 0.1)


def block(s, name, convolutions, x, norm, norms=None):
    """Units and a 1x1 shortcut that has neither SS nor norm; no activation after the sum."""
    shortcut = conv(x, s["weights"][f"{name}_conv_res"])
    for i in range(1, convolutions + 1):
        x = unit(s, f"{name}_conv{i}", f"{name}_bias{i}", x, norm, norms)
    return x + shortcut


def resnet12(s, images, norm="batch", norms=None):
    """[B, H, W, 3] -> [B, F]."""
    x = images.permute(0, 3, 1, 2)
    for i in (1, 2, 3, 4):
        x = F.max_pool2d(block(s, f"block{i}", 3, x, norm, norms), 2)
    return x.mean((2, 3))


def resnet18(s, images, size, norm="batch"):
    """[B, H, W, 3] -> [B, F], the input resized to `size` (224 in the implementation)."""
    x = resize(images, size).permute(0, 3, 1, 2)
    x = unit(s, "block0_1_conv1", "block0_1_bias1", x, norm, None)
    x = pool_same(x, 3)
    for stage in (1, 2, 3, 4):
        for i in (1, 2):
            x = block(s, f"block{stage}_{i}", 2, x, norm)
        x = pool_same(x, 2)
    return x.mean((2, 3))


def pool_same(x, window):
    """TensorFlow's SAME max-pool at stride 2: what padding there is goes to the end first."""
    pads = []
    for length in (x.shape[3], x.shape[2]):
        total = max((-(-length // 2) - 1) * 2 + window - length, 0)
        pads += [total // 2, total - total // 2]
    return F.max_pool2d(F.pad(x, pads, value=-float("inf")), window, 2)


def resize(images, size):
    """TensorFlow 1's bilinear: source = i * length / size, no half-pixel centres, the upper index clamped."""
    for axis in (1, 2):
        length, slices = images.shape[axis], []
        for i in range(size):
            source = i * length / size
            low = int(source)
            high = min(low + 1, length - 1)
            slices.append((1 - (source - low)) * images.select(axis, low) + (source - low) * images.select(axis, high))
        images = torch.stack(slices, axis)
    return images


def adapt(w, b, support, labels, steps, lr, shot):
    """The inner loop on the sum of the cross-entropies divided by K, differentiable: second order."""
    for _ in range(steps):
        loss = F.cross_entropy(support @ w + b, labels, reduction="sum") / shot
        grad_w, grad_b = torch.autograd.grad(loss, (w, b), create_graph=True)
        w, b = w - lr * grad_w, b - lr * grad_b
    return w, b


def query_logits(s, network, support, labels, query, steps, lr, shot):
    """One task; each set is a batch of its own."""
    fc = s["fc_weights"]
    w, b = adapt(fc["w5"], fc["b5"], network(s, support), labels, steps, lr, shot)
    return network(s, query) @ w + b


def meta_loss(s, network, tasks, steps, lr, shot):
    """The mean over tasks of the query cross-entropies' sum divided by K."""
    losses = []
    for support, labels, query, query_labels in tasks:
        logits = query_logits(s, network, support, labels, query, steps, lr, shot)
        losses.append(F.cross_entropy(logits, query_labels, reduction="sum") / shot)
    return sum(losses) / len(losses)


def tensors(dicts):
    """A copy as float64 tensors; Φ and θ want gradients."""
    s = {
        kind: {key: torch.tensor(value, dtype=torch.float64) for key, value in arrays.items()}
        for kind, arrays in dicts.items()
    }
    for kind in ("ss_weights", "fc_weights"):
        for value in s[kind].values():
            value.requires_grad_()
    return s

"""The PyTorch implementation, written in plain PyTorch from its description alone and meant to be checked by eye.

All weights live in a state dict with the implementation's own key names; nothing here knows of mtl_jax.
"""

import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # the sizes are tiny, and threads that wait for each other cost more than they give


def conv(s, name, x, stride=1, padding=1):
    """(W * Φ1) X + (b + Φ2), where the state dict has them."""
    weight, bias = s[f"{name}.weight"], s.get(f"{name}.bias")
    if f"{name}.mtl_weight" in s:
        weight = weight * s[f"{name}.mtl_weight"]
    if f"{name}.mtl_bias" in s:
        bias = bias + s[f"{name}.mtl_bias"]
    return F.conv2d(x, weight, bias, stride, padding)


def batch_norm(s, name, x, training):
    """In training: batch statistics, and the running averages are moved in place."""
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], training, momentum=0.1, eps=1e-5)


def basic_block(s, name, x, stride, training):
    out = F.relu(batch_norm(s, f"{name}.bn1", conv(s, f"{name}.conv1", x, stride), training))
    out = batch_norm(s, f"{name}.bn2", conv(s, f"{name}.conv2", out), training)
    if stride == 2:
        x = conv(s, f"{name}.downsample.0", x, stride, padding=0)
        x = batch_norm(s, f"{name}.downsample.1", x, training)
    return F.relu(out + x)


def features(s, x, training, prefix="encoder."):
    """Images [B, 3, H, W] -> [B, F]."""
    x = F.relu(batch_norm(s, f"{prefix}bn1", conv(s, f"{prefix}conv1", x), training))
    for layer in (1, 2, 3):
        for block in (0, 1, 2, 3):
            stride = 2 if block == 0 else 1
            x = basic_block(s, f"{prefix}layer{layer}.{block}", x, stride, training)
    return x.mean((2, 3))


def adapt(weight, bias, support, labels, steps, lr):
    """The inner loop. Without create_graph the gradients are constants: first order."""
    for _ in range(steps):
        loss = F.cross_entropy(F.linear(support, weight, bias), labels)
        grad_weight, grad_bias = torch.autograd.grad(loss, (weight, bias), retain_graph=True)
        weight, bias = weight - lr * grad_weight, bias - lr * grad_bias
    return weight, bias


def query_logits(s, support, support_labels, query, steps, lr, training):
    """One task: the query images go through the network before the support images."""
    query_features = features(s, query, training)
    support_features = features(s, support, training)
    weight, bias = s["base_learner.fc1_w"], s["base_learner.fc1_b"]
    return F.linear(query_features, *adapt(weight, bias, support_features, support_labels, steps, lr))


def query_loss(s, support, support_labels, query, query_labels, steps, lr):
    return F.cross_entropy(query_logits(s, support, support_labels, query, steps, lr, True), query_labels)


def learned_keys(s):
    """What meta-training learns: Φ, the affine parameters of batch norm, θ."""
    is_norm = {key.removesuffix("running_mean") for key in s if key.endswith("running_mean")}
    affine = [f"{name}{leaf}" for name in is_norm for leaf in ("weight", "bias")]
    return sorted([*affine, *(key for key in s if ".mtl_" in key), "base_learner.fc1_w", "base_learner.fc1_b"])


class Adam:
    """Adam as PyTorch 0.4 and TensorFlow 1 have it: eps is added before the bias correction."""

    def __init__(self):
        self.step, self.first, self.second = 0, {}, {}

    @torch.no_grad()
    def update(self, s, rates):
        """One step on s[key] for each key of `rates`, with its gradient in s[key].grad."""
        self.step += 1
        correction = (1 - 0.999**self.step) ** 0.5 / (1 - 0.9**self.step)
        for key, rate in rates.items():
            g = s[key].grad
            self.first[key] = 0.9 * self.first.get(key, 0) + 0.1 * g
            self.second[key] = 0.999 * self.second.get(key, 0) + 0.001 * g * g
            s[key] -= rate * correction * self.first[key] / (self.second[key].sqrt() + 1e-8)
            s[key].grad = None


def tensors(state):
    """A copy of a state dict as float64 tensors; what is learned wants gradients."""
    s = {key: torch.tensor(value, dtype=torch.float64) for key, value in state.items()}
    for key in learned_keys(s) if "base_learner.fc1_w" in s else ():
        s[key].requires_grad_()
    return s

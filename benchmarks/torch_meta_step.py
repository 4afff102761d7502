"""Rows a and b in plain eager PyTorch, a task at a time, as the published code of each preset goes about it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_networks
from benchmarks.torch_networks import State
from benchmarks.torch_settings import DEVICE, Setting, autocast, fastest_work, use
from benchmarks.worker import Work

FORMATS = (Setting(channels_last=False), Setting(channels_last=True))
MEAN, STD = np.array((125.3, 123.0, 113.9)) / 255, np.array((63.0, 62.1, 66.7)) / 255

Task = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def adapt(
    head: tuple[torch.Tensor, torch.Tensor],
    features: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    lr: float,
    second_order: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The inner loop on (kernel [F, N], bias [N]) by autograd; in first order the gradients are constants."""
    kernel, bias = head
    for _ in range(steps):
        value = loss(torch.addmm(bias, features, kernel))
        grads = torch.autograd.grad(value, (kernel, bias), create_graph=second_order)
        kernel, bias = kernel - lr * grads[0], bias - lr * grads[1]
    return kernel, bias


def first_order_loss(s: State, task: Task, steps: int) -> torch.Tensor:
    """The PyTorch preset: the query set first, the support set without a graph, which nothing goes back through."""
    support, support_labels, query, query_labels = task
    norm = torch_networks.stored_norm(training=True)
    query_features = torch_networks.resnet25(s, query, norm)
    with torch.no_grad():
        support_features = torch_networks.resnet25(s, support, norm)
    head = s["head/kernel"], s["head/bias"]
    adapted = adapt(head, support_features, lambda z: F.cross_entropy(z, support_labels), steps, 0.01, False)
    return F.cross_entropy(torch.addmm(adapted[1], query_features, adapted[0]), query_labels)


def second_order_loss(s: State, task: Task, steps: int) -> torch.Tensor:
    """The TensorFlow preset: sums of cross-entropies divided by the shot, derivatives through the whole loop."""
    support, support_labels, query, query_labels = task
    shot = len(support) // s["head/bias"].shape[0]
    norm = torch_networks.batch_norm
    head, features = (s["head/kernel"], s["head/bias"]), torch_networks.resnet12(s, support, norm)

    def loss(logits: torch.Tensor, labels: torch.Tensor = support_labels) -> torch.Tensor:
        return F.cross_entropy(logits, labels, reduction="sum") / shot

    kernel, bias = adapt(head, features, loss, steps, 1e-3, True)
    return loss(torch.addmm(bias, torch_networks.resnet12(s, query, norm), kernel), query_labels)


LOSSES = {"a": first_order_loss, "b": second_order_loss}


def learned(row: str, s: State) -> State:
    """What meta-training learns: Φ, θ, and in row a the affine parameters of batch norm."""
    prefixes = ("ss/", "head/")
    norms = {name for name in s if row == "a" and name.startswith("params/") and "norm" in name}
    return {name: value.requires_grad_() for name, value in s.items() if name.startswith(prefixes) or name in norms}


def optimizer(row: str, wanted: State) -> torch.optim.Optimizer:
    """Adam with the preset's two rates."""
    head = [value for name, value in wanted.items() if name.startswith("head/")]
    rest = [value for name, value in wanted.items() if not name.startswith("head/")]
    return torch.optim.Adam([{"params": head, "lr": 1e-3}, {"params": rest, "lr": 1e-4 if row == "a" else 1e-3}])


def read(row: str, arrays: dict[str, np.ndarray], setting: Setting, crop: int) -> tuple[State, list[Task]]:
    """The weights and the tasks that mtl_jax's side has left."""
    weights = {name: value for name, value in arrays.items() if "/" in name}
    mean, std = (MEAN, STD) if row == "a" else (np.zeros(3), np.ones(3))
    tasks = []
    for support, support_labels, query, query_labels in zip(
        *(arrays[name] for name in ("support", "support_labels", "query", "query_labels")), strict=True
    ):
        images = [torch_networks.images(part, setting, crop, mean, std) for part in (support, query)]
        labels = [torch.from_numpy(part).long().to(images[0].device) for part in (support_labels, query_labels)]
        tasks.append((images[0], labels[0], images[1], labels[1]))
    return torch_networks.tensors(weights, setting), tasks


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """PyTorch's side of rows a and b, in the faster of the two memory formats."""
    with np.load(folder / "inputs.npz") as file:
        arrays = dict(file)
    crop = (32 if quick else 80) if row == "a" else 0
    steps = 5 if quick else {"a": 100, "b": 20}[row]
    made: dict[Setting, tuple[Any, ...]] = {}

    def backward(s: State, tasks: list[Task]) -> torch.Tensor:
        total = torch.zeros((), device=DEVICE)
        for task in tasks:
            loss = LOSSES[row](s, task, steps) / len(tasks)
            loss.backward()
            total += loss.detach()
        return total

    def step(setting: Setting) -> None:
        if setting not in made:
            s, tasks = read(row, arrays, setting, crop)
            made[setting] = (s, tasks, optimizer(row, learned(row, s)))
        s, tasks, chain = made[setting]
        chain.zero_grad()
        with autocast():
            backward(s, tasks)
        chain.step()

    def numbers() -> dict[str, np.ndarray]:
        use(0)
        s, tasks = read(row, arrays, FORMATS[0], crop)
        wanted = learned(row, s)
        loss = backward(s, tasks)
        grads = {name: gradient_array(value) for name, value in wanted.items()}
        return {"loss": loss.cpu().numpy(), **grads}

    return fastest_work(FORMATS, step, made, numbers, calls=1 if DEVICE == "cpu" else 3)


def gradient_array(value: torch.Tensor) -> np.ndarray:
    """A tensor's gradient as an array, kernels and scales as [kh, kw, in, out]."""
    grad = value.grad
    return (grad.permute(2, 3, 1, 0) if grad.ndim == 4 else grad).cpu().numpy()

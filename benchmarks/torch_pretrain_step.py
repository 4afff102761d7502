"""Row c in plain eager PyTorch, with torchvision's transforms written out on the images of a batch one by one."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_networks
from benchmarks.torch_meta_step import FORMATS, MEAN, STD, gradient_array
from benchmarks.torch_networks import State
from benchmarks.torch_settings import Setting, autocast, fastest_work, placed, use
from benchmarks.worker import Work

CHECKED = 8
DROPOUT, SMOOTHING = 0.1, 0.1


def random_box(height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision's random resized crop: top, left, height, width."""
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(0.08, 1.0).item()
        ratio = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (torch.randint(0, room + 1, (1,)).item() for room in (height - h, width - w))
            return top, left, h, w
    return 0, 0, height, width


def augmented(images: torch.Tensor, size: int, crop: int, setting: Setting) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> random part resized to `size`, its middle `crop` pixels, mirrored half of the time."""
    views = []
    for image in images:
        top, left, h, w = random_box(*image.shape[1:])
        part = image[None, :, top : top + h, left : left + w].float()
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        corner = (size - crop) // 2
        part = part[..., corner : corner + crop, corner : corner + crop]
        views.append(part.flip(3) if torch.rand(1).item() < 0.5 else part)
    mean, std = (torch.as_tensor(v, dtype=torch.float32).view(1, -1, 1, 1).to(images.device) for v in (MEAN, STD))
    return placed((torch.cat(views) / 255 - mean) / std, setting)


def loss(s: State, images: torch.Tensor, labels: torch.Tensor, dropout: float) -> torch.Tensor:
    features = torch_networks.resnet12(s, images, torch_networks.stored_norm(training=True), dropout)
    logits = torch.addmm(s["classifier/bias"], features, s["classifier/kernel"])
    return F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """PyTorch's side, in the faster of the two memory formats."""
    with np.load(folder / "inputs.npz") as file:
        arrays = dict(file)
    size, crop = (36, 32) if quick else (88, 84)
    raw, labels = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2), torch.from_numpy(arrays["labels"]).long()
    made: dict[Setting, tuple[Any, ...]] = {}

    def read(setting: Setting) -> tuple[State, State]:
        s = torch_networks.tensors({name: a for name, a in arrays.items() if "/" in name}, setting)
        wanted = {name: s[name].requires_grad_() for name in s if not name.startswith("batch_stats")}
        return s, wanted

    def step(setting: Setting) -> None:
        if setting not in made:
            s, wanted = read(setting)
            chain = torch.optim.SGD(wanted.values(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
            device = s["classifier/bias"].device
            made[setting] = (s, chain, raw.to(device), labels.to(device))
        s, chain, images, classes = made[setting]
        chain.zero_grad()
        with autocast():
            value = loss(s, augmented(images, size, crop, setting), classes, DROPOUT)
        value.backward()
        chain.step()

    def numbers() -> dict[str, np.ndarray]:
        use(0)
        s, wanted = read(FORMATS[0])
        inputs = torch_networks.images(arrays["images"][:CHECKED], FORMATS[0], crop, MEAN, STD)
        value = loss(s, inputs, labels[:CHECKED].to(inputs.device), 0.0)
        value.backward()
        return {"loss": value.detach().cpu().numpy(), **{k: gradient_array(v) for k, v in wanted.items()}}

    return fastest_work(FORMATS, step, made, numbers, calls=2)

"""Row e in plain eager PyTorch as the published code goes about it: each task embeds its own images."""

import functools
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_networks
from benchmarks.meta_test_sizes import CHECKED, INNER_STEPS, LR, RIVAL_SECONDS, TASKS, WAY
from benchmarks.torch_meta_step import FORMATS, adapt
from benchmarks.torch_settings import Setting, fastest, use, wait
from benchmarks.worker import Measured, Shared, Work


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """PyTorch's side, in the faster of the two memory formats."""
    with np.load(folder / "inputs.npz") as file:
        arrays = dict(file)
    norm = torch_networks.stored_norm(training=False)
    zeros, ones = np.zeros(3), np.ones(3)
    states = {
        setting: torch_networks.tensors({k: v for k, v in arrays.items() if "/" in k}, setting) for setting in FORMATS
    }
    chosen = [FORMATS[0]]
    use(0)

    def accuracy(task: int, shot: int, setting: Setting) -> float:
        s = states[setting]
        rows = [arrays[f"{part}-{shot}"][task % len(arrays[f"support-{shot}"])] for part in ("support", "query")]
        images = arrays["images"][np.concatenate([part.ravel() for part in rows])]
        with torch.no_grad():
            features = torch_networks.resnet12(s, torch_networks.images(images, setting, 0, zeros, ones), norm)
        labels = [torch.arange(WAY, device=features.device).repeat_interleave(part.shape[1]) for part in rows]
        support, query = features.split([len(part) for part in labels])
        head = s["head/kernel"].requires_grad_(), s["head/bias"].requires_grad_()
        kernel, bias = adapt(
            head, support, lambda z: F.cross_entropy(z, labels[0]), INNER_STEPS[quick], LR, False
        )  # fmt: skip
        right = torch.addmm(bias, query, kernel).argmax(1) == labels[1]
        wait()
        return right.float().mean().item()

    def run(shot: int) -> Measured:
        start, tasks = time.perf_counter(), 0
        while tasks < 1 or time.perf_counter() - start < RIVAL_SECONDS[quick]:
            accuracy(tasks, shot, chosen[0])
            tasks += 1
        return Measured(time.perf_counter() - start, tasks)

    def numbers() -> dict[str, np.ndarray]:
        return {
            f"accuracy-{shot}": np.array([accuracy(task, shot, FORMATS[0]) for task in range(CHECKED)])
            for shot in (1, 5)
        }

    facts: dict[str, str] = {}

    def warm() -> None:
        chosen[0] = fastest(FORMATS, lambda setting: accuracy(0, 5, setting), calls=2)
        facts["setting"] = str(chosen[0])

    timings = {shot: Shared(functools.partial(run, shot)) for shot in (1, 5)}  # a task's time, scaled to any number
    cases = {f"{tasks}-{shot}": functools.partial(timing, str(tasks))
             for tasks in TASKS[quick] for shot, timing in timings.items()}  # fmt: skip
    return Work(cases, numbers, warm, facts)

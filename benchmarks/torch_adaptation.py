"""Row d in PyTorch: a task after another, by autograd, as the published code does; and all tasks in one batch.

The rival of logistic regression is scikit-learn's, a task after another.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from benchmarks.adaptation_sizes import LR, WAY, sizes
from benchmarks.torch_meta_step import adapt
from benchmarks.torch_settings import DEVICE, Setting, fastest, use, wait
from benchmarks.worker import Measured, Work, timed


def one_by_one(head, support: torch.Tensor, labels: torch.Tensor, query: torch.Tensor, steps: int) -> torch.Tensor:
    """[T, S, F], [S], [T, Q, F] -> logits [T, Q, N]."""
    found = []
    for z, zq in zip(support, query, strict=True):
        kernel, bias = adapt(head, z, lambda logits: F.cross_entropy(logits, labels), steps, LR, False)
        found.append(torch.addmm(bias, zq, kernel).detach())
    return torch.stack(found)


def batched(head, support: torch.Tensor, labels: torch.Tensor, query: torch.Tensor, steps: int) -> torch.Tensor:
    """The same with a head a task in one tensor: the sum over tasks has each head's own gradient."""
    tasks, rows = support.shape[:2]
    kernel, bias = head[0].expand(tasks, -1, -1), head[1].expand(tasks, 1, -1)
    for _ in range(steps):
        logits = torch.baddbmm(bias, support, kernel)
        value = F.cross_entropy(logits.flatten(0, 1), labels.repeat(tasks), reduction="sum") / rows
        grads = torch.autograd.grad(value, (kernel, bias))
        kernel, bias = kernel - LR * grads[0], bias - LR * grads[1]
    return torch.baddbmm(bias, query, kernel).detach()


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """PyTorch's side with as many threads as are fastest."""
    with np.load(folder / "inputs.npz") as file:
        arrays = {name: torch.from_numpy(array).to(DEVICE) for name, array in file.items() if "more" not in name}
        more = file["more_support"], file["more_query"], file["labels"]
    steps, labels = sizes(quick)[2], arrays["labels"].long()
    kernel = arrays["kernel"].requires_grad_()
    bias = torch.zeros(WAY, device=DEVICE).requires_grad_()
    facts: dict[str, str] = {}
    best: dict[str, Setting] = {}
    forms = {"one by one": one_by_one, "batched": batched}

    def call(form: str) -> torch.Tensor:
        logits = forms[form]((kernel, bias), arrays["support"], labels, arrays["query"], steps)
        logits.argmax(-1)
        wait()
        return logits

    def warm() -> None:
        for form in forms:
            best[form] = fastest((Setting(1), Setting(0)), lambda _, form=form: call(form), calls=2)
        facts["setting"] = "; ".join(f"{form}: {setting.threads or 'all'} threads" for form, setting in best.items())

    def run(form: str) -> Measured:
        use(best[form].threads)
        return timed(lambda: call(form))

    def numbers() -> dict[str, np.ndarray]:
        exact = scikit_learn(*(array.astype(np.float64) for array in more[:2]), more[2], tol=1e-9, max_iter=1000)
        return {"logits": call("one by one").cpu().numpy(), "logits/logistic": exact}

    cases = {form: lambda form=form: run(form) for form in forms}
    cases["scikit-learn"] = lambda: timed(lambda: scikit_learn(*more), len(more[0]))
    return Work(cases, numbers, warm, facts)


def scikit_learn(support: np.ndarray, query: np.ndarray, labels: np.ndarray, **options: float) -> np.ndarray:
    """[T, S, F], [T, Q, F], [S] -> logits [T, Q, N] of logistic regression."""
    pairs = zip(support, query, strict=True)
    return np.stack([LogisticRegression(**options).fit(z, labels).decision_function(zq) for z, zq in pairs])

"""The rows of the benchmark: what is timed, against what, and how often."""

from typing import NamedTuple


class Case(NamedTuple):
    """One line of the table.

    what: in words. ours, rival: the case's name on each side; None: there is no rival. against: what the rival is.
    per: units of work that the figure is for (a side may measure fewer, which is scaled). repeats: how often.
    """

    what: str
    ours: str = ""
    rival: str | None = ""
    against: str = "PyTorch"
    per: float = 1.0
    repeats: int = 3


class Group(NamedTuple):
    """Lines that share their two processes. ours, rival: 'module:function'; see `worker.Worker`."""

    ours: str
    rival: str | None
    cases: tuple[Case, ...]


LOOP = "the bare step"
FILES = "decoding by Pillow"


def groups(quick: bool) -> dict[str, Group]:
    """All groups by the row's letter, in the order in which they are measured."""
    from benchmarks.adaptation_sizes import many
    from benchmarks.meta_test_sizes import TASKS

    tests = []
    for tasks in TASKS[quick]:
        for shot in (1, 5):
            name = f"{tasks:,} test tasks, 5-way {shot}-shot, 100 inner steps, resnet12: 1,200 images in, accuracy out"
            rival = f"PyTorch, features recomputed a task ({{rival_amount}} tasks timed, scaled to {tasks:,})"
            tests.append(Case(name, f"{tasks}-{shot}", f"{tasks}-{shot}", rival, tasks, repeats=2))
    most = TASKS[quick][1]
    bank = Case(f"{most:,} test tasks, 5-way 5-shot, once the features are there", f"{most}-5-adapt", None, "", most)
    b = "meta-training step, resnet12, 84 px, 2 tasks, 5-way 5-shot, 20 inner steps, second order"
    d = "adapt and predict from features: 64 tasks, 5-way 5-shot, F = 640, 100 steps"
    more, timed = many(quick)
    learners = [
        Case(
            f"{more:,} tasks in one call, 5-way 5-shot, F = 640: {name}", name,
            "scikit-learn" if name == "logistic" else None,
            f"scikit-learn, task by task ({timed} tasks timed, scaled to {more:,})", more, repeats=5,
        )
        for name in ("linear", "cosine", "prototypes", "ridge", "logistic")
    ]  # fmt: skip
    return {
        "a": Group("meta_step:prepare", "torch_meta_step:prepare", (
            Case("meta-training step, resnet25, 80 px, 5-way 1-shot, 100 inner steps, first order", repeats=2),)),
        "b": Group("meta_step:prepare", "torch_meta_step:prepare", (
            Case(b, repeats=2),)),
        "c": Group("pretrain_step:prepare", "torch_pretrain_step:prepare", (
            Case("pre-training step, resnet12, 84 px, 64 images, augmentation included"),)),
        "d": Group("adaptation:prepare", "torch_adaptation:prepare", (
            Case(d, rival="one by one", against="PyTorch, task by task", repeats=9),
            Case(d, rival="batched", against="PyTorch, tasks in one batch", repeats=9), *learners)),
        "e": Group("meta_test:prepare", "torch_meta_test:prepare", (*tests, bank)),
        "f": Group("loop_rate:prepare_loop", "loop_rate:prepare_step", (
            Case("a step of the whole loop, conv4, 28 px, 4 tasks", against=LOOP, repeats=3),)),
        "g": Group("jpegs:prepare_cache", "jpegs:prepare_files", (
            Case("preparing 6,000 JPEGs", "prepare", "decode", FILES),
            Case("opening them again", "open", "decode", FILES))),
        "h": Group("startup:prepare_again", "startup:prepare_first", (
            Case("train.py, from command to first step, the second time", against="the first time"),)),
    }  # fmt: skip


MATMUL = Group("machine:jax_matmul", "machine:torch_matmul", (Case("large matrix product"),))

"""Row e: meta-test, images in and accuracy out: each image embedded once, all tasks adapted on shared features."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.meta_test_sizes import CLASSES, EACH, INNER_STEPS, LR, QUERY, SIDE, TASKS, WAY, WIDTH
from benchmarks.worker import Measured, Work, timed
from mtl_jax import base_learner, cost, create_backbone, evaluation, pretrain
from mtl_jax.meta import Embed, Frozen, Inner
from mtl_jax.named_arrays import flatten
from mtl_jax.types import ClassTable, Episode

EMBED_BATCH = 100  # divides the images, so that none is computed in vain
CHECKED = 8  # tasks whose accuracies both sides must agree on


def to_floats(images: jax.Array) -> jax.Array:
    """uint8 to 0..1."""
    return images / np.float32(255)


def protocol(shot: int, tasks: int, quick: bool) -> evaluation.Protocol:
    """5-way tasks; the head starts as it is learned."""
    return evaluation.Protocol(WAY, shot, QUERY[quick], tasks, 1, Inner(INNER_STEPS[quick], LR))


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """mtl_jax's side; leaves weights, images and tasks for the other in `inputs.npz`."""
    side, each = SIDE[quick], EACH[quick]
    images = np.random.default_rng(0).integers(0, 256, (CLASSES * each, side, side, 3), np.uint8)
    table = ClassTable(
        np.arange(len(images), dtype=np.int32).reshape(CLASSES, each), np.full(CLASSES, each, np.int32)
    )  # fmt: skip
    embed = Embed(create_backbone("resnet12", width=WIDTH[quick]), prepare=to_floats)
    variables = pretrain.init_backbone(jax.random.key(0), embed.module, (side, side, 3))
    frozen = Frozen(variables["params"], variables["batch_stats"])
    features = jax.eval_shape(lambda *a: embed(*a)[0], *frozen, images[:1]).shape[-1]
    model = evaluation.Model(embed, {"head": base_learner.init_head(jax.random.key(1), features, WAY)}, frozen)
    drawn = {f"{part}-{shot}": rows[:200] for shot in (1, 5)
             for part, rows in evaluation.sample_all(table, protocol(shot, 200, quick))._asdict().items()}  # fmt: skip
    np.savez(folder / "inputs.npz", images=images, **drawn,
             **flatten({"params": frozen.params, "batch_stats": frozen.batch_stats, **model.learned}))  # fmt: skip

    def accuracies(tasks: int, shot: int) -> np.ndarray:
        return evaluation.evaluate_tasks(model, images, table, protocol(shot, tasks, quick), embed_batch=EMBED_BATCH)

    def numbers() -> dict[str, np.ndarray]:
        return {f"accuracy-{shot}": accuracies(200, shot)[:CHECKED] for shot in (1, 5)}

    bank = np.zeros((len(images), features), np.float32)

    def adapt(tasks: int, shot: int) -> np.ndarray:
        return evaluation.adapt_on_bank(model.learned["head"], bank, None, table, protocol(shot, tasks, quick))

    def warm() -> None:
        evaluation.embed_all(model, images[:EMBED_BATCH], batch=EMBED_BATCH)
        for tasks in TASKS[quick]:
            for shot in (1, 5):
                adapt(min(tasks, 1000), shot)

    cases: dict[str, Callable[[], Measured]] = {}
    for tasks in TASKS[quick]:
        for shot in (1, 5):
            cases[f"{tasks}-{shot}"] = lambda t=tasks, s=shot: timed(lambda: accuracies(t, s), t)
            cases[f"{tasks}-{shot}-adapt"] = lambda t=tasks, s=shot: timed(lambda: adapt(t, s), t)
    flops = {f"{tasks}-{shot}": _flops(model, images, tasks, shot, quick) for tasks in TASKS[quick] for shot in (1, 5)}
    return Work(cases, numbers, warm, {"flops": flops})


def _flops(model: evaluation.Model, images: np.ndarray, tasks: int, shot: int, quick: bool) -> float:
    """Operations of all: every image embedded once, every task adapted."""
    embedding = cost.estimate(model.embed, *model.frozen, images[:EMBED_BATCH]).flops * len(images) / EMBED_BATCH
    head = model.learned["head"]
    support, query = (np.zeros((WAY * k, len(head["kernel"])), np.float32) for k in (shot, QUERY[quick]))
    labels = np.zeros(len(support), np.int32)
    task = Episode(support, labels, query, labels)

    def adapt(head, task):
        return base_learner.adapted_logits(
            head, task.support, task.support_labels, task.query, steps=INNER_STEPS[quick], lr=LR
        )

    return embedding + tasks * cost.estimate(adapt, head, task).flops

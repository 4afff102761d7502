"""Row e: meta-test, images in and accuracy out: each image embedded once, all tasks adapted on shared features.

The two parts are timed one after the other, and a repeat of all cases embeds once: a case is the embedding and its own
adaptation.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.meta_test_sizes import CHECKED, CLASSES, EACH, INNER_STEPS, LR, QUERY, SIDE, TASKS, WAY, WIDTH
from benchmarks.worker import Measured, Shared, Work, timed
from mtl_jax import base_learner, create_backbone, evaluation, pretrain
from mtl_jax.meta import Embed, Frozen, Inner
from mtl_jax.train import cost
from mtl_jax.types import ClassTable, Episode
from mtl_jax.workdir.named_arrays import flatten

EMBED_BATCH = 100  # divides the images, so that none is computed in vain


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

    def embed_images() -> tuple[jax.Array, float]:
        start = time.perf_counter()
        bank = jax.block_until_ready(evaluation.embed_all(model, images, batch=EMBED_BATCH))
        return bank, time.perf_counter() - start

    def adapt(bank: jax.Array, tasks: int, shot: int) -> np.ndarray:
        return evaluation.adapt_on_bank(model.learned["head"], bank, None, table, protocol(shot, tasks, quick))

    embedded = Shared(embed_images)

    def numbers() -> dict[str, np.ndarray]:
        return {f"accuracy-{shot}": checked(shot) for shot in (1, 5)}

    def checked(shot: int) -> np.ndarray:
        drawn_tasks = [drawn[f"{part}-{shot}"][:CHECKED] for part in ("support", "query")]
        used, places = np.unique(np.concatenate(drawn_tasks, axis=2), return_inverse=True)
        places = places.reshape(CHECKED, WAY, -1)
        tasks = evaluation.Tasks(places[..., :shot], places[..., shot:])
        return evaluation.evaluate_tasks(
            model, images[used], table, protocol(shot, CHECKED, quick), tasks=tasks, embed_batch=EMBED_BATCH
        )

    def warm() -> None:
        evaluation.embed_all(model, images[:EMBED_BATCH], batch=EMBED_BATCH)
        bank = jnp.zeros((len(images), features))
        for tasks in TASKS[quick]:
            for shot in (1, 5):
                adapt(bank, min(tasks, 1000), shot)

    def whole(case: str, tasks: int, shot: int) -> Measured:
        bank, seconds = embedded(case)
        return Measured(seconds + timed(lambda: adapt(bank, tasks, shot)).seconds, tasks)

    def adaptation(case: str, tasks: int, shot: int) -> Measured:
        bank, _ = embedded(case)
        return timed(lambda: adapt(bank, tasks, shot), tasks)

    cases: dict[str, Callable[[], Measured]] = {}
    for tasks in TASKS[quick]:
        for shot in (1, 5):
            name = f"{tasks}-{shot}"
            cases[name] = functools.partial(whole, name, tasks, shot)
            cases[f"{name}-adapt"] = functools.partial(adaptation, f"{name}-adapt", tasks, shot)
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

"""Row d: adapt a head to each of many tasks' support features and predict their queries."""

import functools
from pathlib import Path

import jax
import numpy as np

from benchmarks.adaptation_sizes import LR, QUERY, SHOT, WAY, sizes
from benchmarks.worker import Measured, Work, timed
from mtl_jax import base_learner
from mtl_jax.train import cost


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """mtl_jax's side: all tasks by `vmap`, the inner loop on coefficients of the support features."""
    tasks, width, steps = sizes(quick)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(tasks, WAY, 1, width))
    support, query = (
        np.abs(centres + rng.normal(size=(tasks, WAY, each, width))).reshape(tasks, WAY * each, width).astype("f")
        for each in (SHOT, QUERY)
    )
    labels = np.repeat(np.arange(WAY, dtype=np.int32), SHOT)
    head = base_learner.init_head(jax.random.key(0), width, WAY)
    np.savez(folder / "inputs.npz", support=support, query=query, labels=labels, kernel=np.asarray(head["kernel"]))
    adapt = functools.partial(base_learner.adapted_logits, steps=steps, lr=LR)
    logits = jax.jit(jax.vmap(adapt, (None, 0, None, 0)))
    inputs = jax.device_put((head, support, labels, query))

    def run() -> Measured:
        return timed(lambda: logits(*inputs).argmax(-1).block_until_ready())

    flops = cost.estimate(logits, *inputs).flops
    return Work({"": run}, lambda: {"logits": np.asarray(logits(*inputs))}, facts={"flops": flops})

"""Row d: adapt a head, or another base-learner, to each of many tasks' support features and predict their queries."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.adaptation_sizes import LR, QUERY, SHOT, WAY, many, sizes
from benchmarks.worker import Measured, Work, timed
from mtl_jax import base_learner, parallel, solved_learners
from mtl_jax.learners import BaseLearner, Inner
from mtl_jax.train import cost


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """mtl_jax's side: as `evaluate_tasks` does it, the inner loop on the span of the support features."""
    tasks, width, steps = sizes(quick)
    support, query = features(tasks, width)
    more, timed_tasks = many(quick)
    more_support, more_query = features(more, width)
    labels = np.repeat(np.arange(WAY, dtype=np.int32), SHOT)
    head = base_learner.init_head(jax.random.key(0), width, WAY)
    np.savez(
        folder / "inputs.npz", support=support, query=query, labels=labels, kernel=np.asarray(head["kernel"]),
        more_support=more_support[:timed_tasks], more_query=more_query[:timed_tasks],
    )  # fmt: skip
    adapt = functools.partial(base_learner.adapted_logits, steps=steps, lr=LR)
    logits = jax.jit(jax.vmap(adapt, (None, 0, None, 0)))
    inputs = jax.device_put((head, support, labels, query))
    learners = {
        "linear": (logits, head),
        **{
            name: (_of_many(learner), learner.init(jax.random.key(0), width))
            for name, learner in base_learners(steps).items()
        },
    }
    more_inputs = jax.device_put((more_support, labels, more_query))

    def run() -> Measured:
        return timed(lambda: logits(*inputs).argmax(-1).block_until_ready())

    def run_many(name: str) -> Measured:
        learner, learned = learners[name]
        return timed(lambda: learner(learned, *more_inputs).argmax(-1).block_until_ready(), more)

    def numbers() -> dict[str, np.ndarray]:
        solved = learners["logistic"][0](learners["logistic"][1], *more_inputs)[:timed_tasks]
        return {"logits": np.asarray(logits(*inputs)), "logits/logistic": np.asarray(solved)}

    cases = {"": run} | {name: functools.partial(run_many, name) for name in learners}
    return Work(cases, numbers, facts={"flops": {"": cost.estimate(logits, *inputs).flops}})


def _of_many(learner: Callable) -> Callable:
    """The base-learner of thousands of tasks, in one compiled call."""

    def run(learned, support, labels, query):
        return parallel.map_tasks(lambda task: learner(learned, task[0], labels, task[1]), (support, query))

    return jax.jit(run)


def base_learners(steps: int) -> dict[str, BaseLearner]:
    """Those besides the linear head, by the name that `rows.groups` has for each."""
    return {
        "cosine": Inner(steps, 0.1, head="cosine", start="prototypes", way=WAY),
        "prototypes": solved_learners.Prototypes(WAY),
        "ridge": solved_learners.Ridge(WAY),
        "logistic": solved_learners.Logistic(WAY),
    }


def features(tasks: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Support and query features of tasks, float32 [T, N K, F] and [T, N Q, F], as a ReLU leaves them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(tasks, WAY, 1, width))
    return tuple(
        np.abs(centres + rng.normal(size=(tasks, WAY, each, width))).reshape(tasks, WAY * each, width).astype("f")
        for each in (SHOT, QUERY)
    )

"""What a meta-training step takes: a start and a batch of tasks, for tests that trace it."""

import jax
import jax.numpy as jnp

from mtl_jax import init_scale_shift
from mtl_jax.base_learner import init_head
from mtl_jax.types import Episode

WAY, SHOT, QUERY, TASKS = 2, 1, 3, 4


def task_batch(key, side):
    rows = WAY * SHOT, WAY * QUERY
    images = [jax.random.uniform(jax.random.fold_in(key, n), (TASKS, n, side, side, 1)) for n in rows]
    labels = [jnp.tile(jnp.repeat(jnp.arange(WAY), n // WAY), (TASKS, 1)) for n in rows]
    return Episode(images[0], labels[0], images[1], labels[1])


def start(module, side):
    variables = module.init(jax.random.key(0), jnp.zeros((1, side, side, 1)))
    features = module.apply(variables, jnp.zeros((1, side, side, 1))).shape[-1]
    learned = {
        "head": init_head(jax.random.key(1), features, WAY, init="he"),
        "ss": init_scale_shift(variables["params"]),
    }
    return learned, variables["params"], variables["batch_stats"]

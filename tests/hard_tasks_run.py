"""Two rounds of meta-training with hard tasks, spread and fed in every way; prints a JSON of what came out.

Run by test_hard_tasks in a process of its own, since the number of devices is fixed when JAX starts.
"""

import json
import logging
from types import SimpleNamespace

import jax
import numpy as np
from devices_run import small_backbone
from mtl_jax.configs import default

from mtl_jax import ClassTable, hard_tasks, init_head, init_scale_shift, meta, parallel, pretrain
from mtl_jax.config import build
from mtl_jax.train.meta_training import dispatcher

CLASSES = 8
IMAGES = np.random.default_rng(0).normal(size=(5 * CLASSES, 28, 28, 1))
SPLIT = SimpleNamespace(
    images=IMAGES,
    labels=np.repeat(np.arange(CLASSES), 5),
    class_names=tuple("abcdefgh"),
    table=lambda: ClassTable(np.arange(5 * CLASSES).reshape(CLASSES, 5), np.full(CLASSES, 5)),
)


def floats(tree):
    """The tree in float64."""
    return jax.tree.map(lambda leaf: leaf.astype(float), tree)


def run(devices, repeat=1, host=False, chunk=0):
    """Losses, pools after each dispatch, mined classes as logged, and the parameters at the end."""
    config = default.get_config()
    config.meta.update({"way": 2, "query": 2, "tasks_per_step": 4, "decay": "steps", "decay_every": 2})
    config.hard_tasks.update({"enabled": True, "round": 2, "extra": 4})
    config.meta.steps = 4
    config.runtime.update({"steps_per_dispatch": repeat, "chunk": chunk})
    config.data.device_budget_gb = 0.0 if host else 1.0
    module = small_backbone()
    variables = floats(pretrain.init_backbone(jax.random.key(0), module, IMAGES.shape[1:]))
    learned = {"head": floats(init_head(jax.random.key(1), 4, 2)), "ss": init_scale_shift(variables["params"])}
    recipe = build.meta_training(config)._replace(embed=meta.Embed(module), inner=meta.Inner(2, 0.1))
    recipe = recipe._replace(keys=recipe.keys._replace(tasks=jax.random.key(2), hard_tasks=jax.random.key(3)))
    state = meta.init_state(learned, variables["batch_stats"], recipe.optimizer)
    state = state._replace(pool=hard_tasks.empty_pool(CLASSES))
    state, theta = parallel.replicate((state, variables["params"]), devices)
    dispatch = dispatcher(recipe, SPLIT, devices, theta)
    lines, losses, pools = [], [], []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("mtl_jax.train.meta_training")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    for step in range(0, 4, repeat):
        state, metrics = dispatch.run(state, step)
        losses += np.ravel(metrics["loss"]).tolist()
        losses += np.ravel(metrics.get("hard_loss", [])).tolist()
        pools.append(np.asarray(parallel.local(state.pool)).tolist())
    logger.removeHandler(handler)
    dispatch.close()
    leaves = [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(parallel.local(state.learned))]
    return {"losses": losses, "pools": pools, "mined": lines, "step": int(parallel.local(state.step)), "leaves": leaves}


def main() -> None:
    """Runs on one device, on four, and from host data with a round's steps in one dispatch and in chunks."""
    devices = jax.local_devices()
    runs = {
        "one": run(devices[:1]),
        "four": run(devices),
        "host, scan": run(devices[:2], repeat=2, host=True),
        "host, chunks": run(devices[:2], chunk=1, host=True),
    }
    print(json.dumps(runs))


if __name__ == "__main__":
    main()

"""A step of each kind under `jit`, `pmap` and `shard_map` on 2 and 4 virtual devices; prints a JSON of what came out.

Run by test_parallel in a process of its own, since the number of devices is fixed when JAX starts.
"""

import functools
import json

import jax
import numpy as np
from audit import device_form
from devices_run import floats, named, small_backbone
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import mtl_jax
from mtl_jax import hard_tasks, init_head, init_scale_shift, meta, optimizers, pretrain
from mtl_jax.metrics import cross_entropy
from mtl_jax.parallel import AXIS
from mtl_jax.types import Episode

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 8, 1))
LABELS = np.tile(np.repeat(np.arange(2), 2), (4, 1))
TASKS = Episode(IMAGES[:, :4], LABELS, IMAGES[:, 4:], LABELS)
CLASSES = np.arange(8).reshape(4, 2)
OPTIMIZER = optimizers.sgd(0.1)
FORMS = [  # the number of devices, and whether functions take their form for CPUs
    ("jit", 4, True),
    ("pmap", 2, True),
    ("shard_map", 2, False),
    ("shard_map", 4, True),
    ("unchecked shard_map", 4, True),
]


def meta_training(inner, mode, train_step):
    """A step and the pool after it: (step, state, what is spread)."""
    module = small_backbone()
    variables = floats(pretrain.init_backbone(jax.random.key(0), module, IMAGES.shape[2:]))
    learned = {"head": floats(init_head(jax.random.key(1), 4, 2)), "ss": init_scale_shift(variables["params"])}
    state = meta.init_state(learned, variables["batch_stats"], OPTIMIZER)._replace(pool=hard_tasks.empty_pool(8))
    options = {"embed": meta.Embed(module, mode), "inner": inner, "optimizer": OPTIMIZER}

    def step(axis, given, tasks, classes):
        state, params = given
        state, metrics = train_step(state, params, tasks, **options, axis_name=axis)
        pool = hard_tasks.collect(state.pool, classes, metrics["class_accuracy"], axis_name=axis)
        return state._replace(pool=pool), metrics["loss"]

    return step, (state, variables["params"]), (TASKS, CLASSES)


def pretraining():
    """The same of pre-training, with batch norm over all devices."""
    classifier = pretrain.Classifier(2)
    state = pretrain.init_state(jax.random.key(0), small_backbone(), classifier, IMAGES.shape[2:], OPTIMIZER)
    state = state._replace(params=floats(state.params), batch_stats=floats(state.batch_stats))

    def step(axis, state, images, labels):
        options = {"backbone": small_backbone(axis_name=axis), "classifier": classifier, "optimizer": OPTIMIZER}
        images, labels = images.reshape(-1, *images.shape[2:]), labels.reshape(-1)
        state, metrics = pretrain.train_step(state, images, labels, jax.random.key(0), **options, axis_name=axis)
        return state, metrics["loss"]

    return step, state, (IMAGES[:, :4], LABELS)


def adaptation():
    """The same of the inner loops: the mean of the tasks' adapted heads."""
    features = IMAGES[:, :4, 0, :3, 0]

    def adapted(head, features, labels):
        plain = mtl_jax.adapt_head(head, features, labels, steps=2, lr=0.1)
        loss = lambda head: cross_entropy(mtl_jax.base_learner.logits(head, features), labels).mean()  # noqa: E731
        return plain, mtl_jax.adapt(loss, head, steps=2, lr=0.1)

    def step(axis, head, features, labels):
        heads = jax.vmap(adapted, (None, 0, 0))(head, features, labels)
        means = jax.tree.map(lambda leaf: leaf.mean(0), heads)
        return jax.lax.pmean(means, axis) if axis else means

    return step, floats(init_head(jax.random.key(1), 3, 2)), (features, LABELS)


def mapped(form, devices, step, shared, spread):
    """What the step gives in a form, by device the last one's where it might differ."""
    if form == "pmap":
        parts = jax.tree.map(lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]), spread)
        run = jax.pmap(functools.partial(step, AXIS), AXIS, in_axes=(None, 0, 0), devices=devices)
        return jax.tree.map(lambda leaf: leaf[-1], run(shared, *parts))
    mesh = Mesh(np.array(devices), (AXIS,))
    if form == "jit":
        spread = jax.device_put(spread, NamedSharding(mesh, P(AXIS)))
        return jax.jit(functools.partial(step, None))(shared, *spread)
    specs = {"in_specs": (P(), P(AXIS), P(AXIS)), "out_specs": P(), "check_vma": form == "shard_map"}
    return jax.jit(jax.shard_map(functools.partial(step, AXIS), mesh=mesh, **specs))(shared, *spread)


def main() -> None:
    """Every kind in every form, as on CPUs or as on accelerators."""
    kinds = {
        "head": meta_training(meta.Inner(2, 0.1), "running", hard_tasks.train_step),
        "all": meta_training(meta.Inner(1, 0.1, first_order=False, adapt="all"), "train", meta.train_step),
        "pretrain": pretraining(),
        "adapt": adaptation(),
    }
    runs = {}
    for kind, parts in kinds.items():
        runs[kind] = {}
        for form, count, on_cpu in FORMS:
            with device_form(on_cpu):
                runs[kind][f"{form} {count}"] = named(mapped(form, jax.devices()[:count], *parts))
    print(json.dumps(runs))


if __name__ == "__main__":
    main()

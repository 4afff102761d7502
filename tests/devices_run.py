"""Ten meta-training steps and three of pre-training on 1, 2 and 4 virtual devices; prints a JSON of what came out.

Run by test_parallel in a process of its own, since the number of devices is fixed when JAX starts.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtl_jax import (
    ClassTable,
    backbones,
    create_backbone,
    episodes,
    init_head,
    init_scale_shift,
    meta,
    optimizers,
    parallel,
    pretrain,
)

OPTIONS = {"norm_unbiased": True}
IMAGES = np.random.default_rng(0).normal(size=(40, 28, 28, 1))
TABLE = ClassTable(np.arange(40).reshape(8, 5), np.full(8, 5))


class Conv2(nn.Module):
    """The first two blocks of conv4, which compile in half the time."""

    options: backbones.Options

    @nn.compact
    def __call__(self, images, train=False, batch_statistics=None):
        """images [B, H, W, C] -> features [B, F]."""
        mode = batch_statistics or ("train" if train else "running")
        for name in ("block1", "block2"):
            images = backbones._Conv4Block(self.options, 4, name=name)(images, train, mode)
        return backbones.average_map(images)


def small_backbone(**options):
    """A network of two blocks of four channels."""
    return Conv2(create_backbone("conv4", **options).options)


def floats(tree):
    """The tree in float64."""
    return jax.tree.map(lambda leaf: leaf.astype(float), tree)


def named(tree):
    """The leaves as nested lists, by their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(parallel.local(tree))[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf).tolist() for path, leaf in leaves}


def meta_training(devices, mode, repeat=1):
    """Losses, tasks, parameters and averages of ten steps, and how often the step was traced after the first."""
    module = small_backbone(**OPTIONS)
    variables = floats(pretrain.init_backbone(jax.random.key(0), module, IMAGES.shape[1:]))
    learned = {"head": floats(init_head(jax.random.key(1), 4, 2)), "ss": init_scale_shift(variables["params"])}
    optimizer = optimizers.by_group({"head": optimizers.adam(1e-2)}, optimizers.adam(1e-3))
    take = functools.partial(
        meta.train_step, embed=meta.Embed(module, mode), inner=meta.Inner(2, 0.1, False), optimizer=optimizer
    )
    traces = []

    def step(number, axis, state, params, images, table, key):
        traces.append(1)
        keys = episodes.task_keys(key, state.step, parallel.task_numbers(number, len(devices), 4))
        sets = episodes.sample_tasks(keys, table, way=2, shot=1, query=2)
        state, metrics = take(state, params, episodes.gather(images, *sets), axis_name=axis)
        return state, {**metrics, "support": sets[0]}

    tasks_axis = 0 if repeat == 1 else 1  # after the axis of the steps in a dispatch
    by_task = {"class_accuracy": tasks_axis, "support": tasks_axis}
    spread = (None, {"loss": None, "accuracy": None, "finite": None, **by_task})
    run = parallel.compile_step(step, devices, arguments=4, repeat=repeat, spread=spread)
    state = meta.init_state(learned, variables["batch_stats"], optimizer)
    state, *rest = parallel.replicate((state, variables["params"], IMAGES, TABLE, jax.random.key(2)), devices)
    losses, tasks, traced = [], [], []
    for _ in range(10 // repeat):
        state, metrics = run(state, *rest)
        losses += np.ravel(metrics["loss"]).tolist()
        tasks += np.asarray(metrics["support"]).reshape(repeat, -1, 2).tolist()
        traced.append(len(traces))
    arrays = named((state.learned, state.batch_stats))
    return {"losses": losses, "tasks": tasks, "arrays": arrays, "retraced": traced[-1] - traced[0]}


def pretraining(devices, **options):
    """Losses, parameters and averages of three steps whose batch is spread over the devices."""
    axis = parallel.AXIS if len(devices) > 1 else None
    module, classifier = small_backbone(**OPTIONS, axis_name=axis), pretrain.Classifier(8)
    optimizer = optimizers.sgd(0.1)
    state = pretrain.init_state(jax.random.key(0), module, classifier, IMAGES.shape[1:], optimizer, rotation=True)
    state = state._replace(params=floats(state.params), batch_stats=floats(state.batch_stats))
    state = state._replace(opt_state=optimizer.init(state.params))
    if "distillation" in options:
        other = jax.tree.map(lambda leaf: leaf / 2, state.params | {"batch_stats": state.batch_stats})
        state = state._replace(teacher=other)
    take = functools.partial(
        pretrain.train_step, backbone=module, classifier=classifier, optimizer=optimizer, **options
    )  # fmt: skip
    each = 8 // len(devices)

    def step(number, axis, state, images, key):
        rows = (state.step * 8 + number * each + jnp.arange(each)) % len(images)
        return take(state, images[rows], rows // 5, key, axis_name=axis)

    run = parallel.compile_step(step, devices, arguments=2)
    state, *rest = parallel.replicate((state, IMAGES, jax.random.key(1)), devices)
    losses = []
    for _ in range(3):
        state, metrics = run(state, *rest)
        losses.append(float(metrics["loss"]))
    return {"losses": losses, "arrays": named((state.params, state.batch_stats))}


def taught(variables, images):
    """A teacher's logits."""
    variables = {"params": variables["backbone"], "batch_stats": variables["batch_stats"]}, variables["classifier"]
    features = small_backbone(**OPTIONS).apply(variables[0], images, batch_statistics="running")
    return pretrain.Classifier(8).apply({"params": variables[1]}, features)


def main(what: str) -> None:
    """Runs `what`, 'pretrain' or a BN mode, on each number of devices."""
    all_devices = jax.local_devices()
    runs = {}
    for count in (1, 2, 4):
        devices = all_devices[:count]
        runs[count] = pretraining(devices) if what == "pretrain" else meta_training(devices, what)
    if what == "running":
        runs["scan"] = meta_training(all_devices[:2], what, repeat=5)
    if what == "pretrain":
        for count in (1, 4):
            runs[f"quarter {count}"] = pretraining(
                all_devices[:count], rotation=1.0, rotation_views="quarter", distillation=pretrain.Distillation(taught)
            )
    print(json.dumps(runs))


if __name__ == "__main__":
    main(sys.argv[1])

"""Rows a and b: one step of meta-training, the sampling of its images left out (row f has it)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mtl_jax.configs import miniimagenet

from benchmarks import accelerator
from benchmarks.worker import Measured, Work, queued
from mtl_jax import meta, parallel, pretrain
from mtl_jax.config import build
from mtl_jax.train import cost
from mtl_jax.types import Episode
from mtl_jax.workdir.named_arrays import flatten

ARGUMENTS = {"a": "pytorch,1shot", "b": "tensorflow,5shot"}


def config(row: str, quick: bool):
    """The preset's config; the tiny network of `quick` has a tenth of the channels and 32 pixels."""
    found = miniimagenet.get_config(ARGUMENTS[row])
    found.meta.tasks_per_step *= accelerator.times()
    if quick:
        found.backbone.width = 0.1
        found.data.update({"image_size": 36 if row == "a" else 32, "crop": 32 if row == "a" else 0})
        found.meta.query = 2
        found.inner.steps = 5
    return found


def random_episodes(settings, rng: np.random.Generator) -> Episode:
    """A meta-batch of uint8 noise, [T, S, H, W, C] and [T, N Q, H, W, C]."""
    group, side = settings.meta, settings.data.image_size
    parts = []
    for each in (group.shot, group.query):
        rows = (group.tasks_per_step, group.way * each)
        parts.append(rng.integers(0, 256, (*rows, side, side, 3), np.uint8))
        parts.append(np.broadcast_to(np.repeat(np.arange(group.way, dtype=np.int32), each), rows).copy())
    return Episode(*parts)


def prepare(row: str, folder: Path, quick: bool) -> Work:
    """mtl_jax's side; leaves the weights and images for the other in `inputs.npz`."""
    settings = config(row, quick)
    episodes = random_episodes(settings, np.random.default_rng(0))
    embed, inner = build.embedding(settings), build.inner(settings.inner)
    shape = build.image_shape(settings.data, episodes.support[0])
    variables = pretrain.init_backbone(jax.random.key(0), embed.module, shape)
    params, stats = variables["params"], variables["batch_stats"]
    features = jax.eval_shape(lambda *a: embed(*a)[0], params, stats, episodes.query[0]).shape[-1]
    learned = build.learned(jax.random.key(1), settings, params, features)
    np.savez(folder / "inputs.npz", **_inputs(params, stats, learned, episodes))
    optimizer = remembering(build.meta_optimizer(settings.meta))
    options = {"embed": embed, "inner": inner}

    def jitted(embed: meta.Embed):
        step = functools.partial(meta.train_step, embed=embed, inner=inner, optimizer=optimizer)
        return jax.jit(step, donate_argnums=0)

    checked = step = jitted(embed)
    if accelerator.dtype() != "float32":
        settings.runtime.dtype = accelerator.dtype()
        step = jitted(build.embedding(settings))
    episodes = jax.device_put(episodes)
    first = meta.init_state(learned, stats, optimizer)
    state = [jax.tree.map(lambda a: jnp.array(a, copy=True), first)]  # a step consumes its state
    on_cpu = parallel.on_cpu()

    def run() -> Measured:
        return queued(
            lambda: state.append(step(state.pop(), params, episodes)[0]), lambda: jax.block_until_ready(state), on_cpu
        )

    def numbers() -> dict[str, np.ndarray]:
        """Of the first step, which is the warm-up as well."""
        new, metrics = checked(state.pop(), params, episodes)
        state.append(new)
        return {"loss": np.asarray(metrics["loss"]), **flatten(new.opt_state[1])}

    flops = cost.estimate(functools.partial(meta.gradients, **options), learned, meta.Frozen(params, stats), episodes)
    # On a CPU in float32 the check has run the very step that is timed.
    warm = (lambda: None) if on_cpu and step is checked else None
    return Work({"": run}, numbers, warm, {"flops": flops.flops})


def remembering(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser, with (its state, the last gradients) as its state."""

    def init(params):
        return optimizer.init(params), jax.tree.map(jnp.zeros_like, params)

    def update(gradients, state, params=None):
        updates, inner = optimizer.update(gradients, state[0], params)
        return updates, (inner, gradients)

    return optax.GradientTransformation(init, update)


def _inputs(params, stats, learned, episodes: Episode) -> dict[str, np.ndarray]:
    ss_and_head = {"ss": learned["ss"], "head": learned["head"]}
    return {**flatten({"params": params, "batch_stats": stats, **ss_and_head}), **episodes._asdict()}

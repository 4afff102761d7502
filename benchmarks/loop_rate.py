"""Row f: steps of the whole loop (sampling, gathering, logging included) and of the compiled step alone."""

import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from mtl_jax.configs import glyphs

from benchmarks.worker import Measured, Work
from mtl_jax import meta, train, workdir
from mtl_jax.config import build
from mtl_jax.episodes import gather
from mtl_jax.evaluate import network

SIDE, TASKS = 28, 4
LOG_EVERY = 10
WARM, STEPS = 10, {False: 30, True: 20}  # before and while the clock runs


def config(quick: bool, pretrained: Path):
    """conv4 at 28 pixels, meta-batches of 4 tasks, the glyphs as images; from a backbone pre-trained for one step."""
    found = glyphs.get_config("1shot")
    found.data.update({"image_size": SIDE})
    found.backbone.width = 0.25 if quick else 1.0
    found.pretrain.update({"init": str(pretrained), "steps": 1, "val_tasks": 0})
    found.meta.update({"tasks_per_step": TASKS, "val_tasks": 0, "steps": WARM + STEPS[quick] + LOG_EVERY})
    found.runtime.update({"log_every": LOG_EVERY, "checkpoint_every": 10_000})
    return found


def _pretrained(folder: Path, quick: bool) -> Path:
    path = folder / "pretrained"
    if not path.exists():
        settings = config(quick, path)
        settings.pretrain.init = ""
        settings.meta.learn = "none"
        train.train(settings, str(path))
    return path


def prepare_loop(row: str, folder: Path, quick: bool) -> Work:
    """The program's own loop, timed between two of its log lines."""
    settings, numbers = config(quick, _pretrained(folder, quick)), itertools.count()

    def run() -> Measured:
        seen: dict[int, float] = {}

        def hook(step: int, scalars: dict[str, float]) -> None:
            seen.setdefault(step, time.perf_counter())

        train.train(settings, str(folder / f"loop-{next(numbers)}"), [hook])
        return Measured(seen[WARM + STEPS[quick]] - seen[WARM], STEPS[quick])

    return Work({"": run}, warm=lambda: None)


def prepare_step(row: str, folder: Path, quick: bool) -> Work:
    """`meta.train_step` on one meta-batch that is on the device already, one call after another."""
    settings = config(quick, _pretrained(folder, quick))
    split = build.dataset(settings.data).splits["train"]
    params, stats = network.pretrained(settings, workdir.Workdir(str(folder)))
    embed, optimizer = build.embedding(settings), build.meta_optimizer(settings.meta)
    features = jax.eval_shape(lambda *a: embed(*a)[0], params, stats, split.images[:1]).shape[-1]
    learned = build.learned(jax.random.key(0), settings, params, features)
    group, starts = settings.meta, np.cumsum(split.counts) - split.counts
    rows = starts[: TASKS * group.way].reshape(TASKS, group.way, 1) + np.arange(group.shot + group.query)
    tasks = jax.device_put(gather(np.asarray(split.images), *np.split(rows, [group.shot], axis=2)))
    step = jax.jit(
        lambda state, params, tasks: meta.train_step(
            state, params, tasks, embed=embed, inner=build.inner(settings.inner), optimizer=optimizer
        ),
        donate_argnums=0,
    )
    first = meta.init_state(learned, stats, optimizer)
    state = [jax.tree.map(lambda a: jnp.array(a, copy=True), first)]  # a step consumes its state
    params = jax.device_put(params)

    def steps(count: int) -> None:
        for _ in range(count):
            state.append(step(state.pop(), params, tasks)[0])
        jax.block_until_ready(state[0])

    def run() -> Measured:
        steps(WARM)
        start = time.perf_counter()
        steps(STEPS[quick])
        return Measured(time.perf_counter() - start, STEPS[quick])

    return Work({"": run}, warm=lambda: steps(1))

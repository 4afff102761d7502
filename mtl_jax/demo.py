"""Demonstration: pre-trains, meta-trains and tests on the embedded glyphs, and shows what MTL adds.

    python -m mtl_jax.demo --workdir=runs/demo --seed=0

One pre-training, one meta-training per shot. Every row is tested on the same tasks, with its inner learning rate and
number of steps chosen from the same grid on validation tasks. Ends with the path of the 1-shot run's report.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from mtl_jax.configs import glyphs

from mtl_jax import evaluation, metrics, pretrain, workdir
from mtl_jax.config import build
from mtl_jax.data import Dataset, Split
from mtl_jax.evaluate import network
from mtl_jax.evaluate.choose import choose_inner
from mtl_jax.evaluation import Model, Protocol
from mtl_jax.launch import environment, program
from mtl_jax.meta import Embed, Frozen
from mtl_jax.report import report
from mtl_jax.train import train
from mtl_jax.types import Array

SHOTS = (1, 5)
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
STEPS = (5, 10, 20, 50, 100)
CHOICE_TASKS, TABLE_TASKS, PAIRED_TASKS = 1000, 600, 10_000
ROWS = ("random backbone + adapted head", "pre-trained backbone + adapted head", "meta-transfer learning (MTL)")


def train_all(path: Path, seed: int) -> dict[int, ConfigDict]:
    """Pre-trains once and meta-trains for every shot, in `path`/1shot and `path`/5shot; returns the configs by shot."""
    settings = {}
    for shot in SHOTS:
        settings[shot] = glyphs.get_config(f"{shot}shot")
        settings[shot].seed = seed
        if shot != SHOTS[0]:
            settings[shot].pretrain.init = str(path / f"{SHOTS[0]}shot")
        print(f"\n{shot}-shot: training in {path / f'{shot}shot'}", flush=True)
        train(settings[shot], str(path / f"{shot}shot"))
    return settings


def models(settings: ConfigDict, path: Path, train_split: Split) -> dict[str, Model]:
    """The three networks of the table; the rivals' heads start at zero, which favours no class."""
    place, embed = workdir.Workdir(path), build.embedding(settings)
    _, trained = network.trained(settings, place, train_split.images.shape[1:])
    zero = {name: jnp.zeros_like(value) for name, value in trained.learned["head"].items()}
    key = build.keys(settings).backbone
    random = random_backbone(key, embed, build.image_shape(settings.data, train_split.images), train_split)
    pretrained = Frozen(*network.pretrained(settings, place))
    rows = (
        Model(embed, {"head": zero}, random),
        Model(embed, {"head": zero}, pretrained),
        trained,
    )
    return dict(zip(ROWS, rows, strict=True))


def random_backbone(key: Array, embed: Embed, shape: tuple[int, ...], split: Split) -> Frozen:
    """An untrained backbone with batch norm's averages of a batch of training images: without them it says nothing."""
    variables = pretrain.init_backbone(key, embed.module, shape)
    options = dataclasses.replace(embed.module.options, norm_momentum=0.0)
    seeing = embed._replace(module=embed.module.clone(options=options), batch_statistics="train")
    sample = np.random.default_rng(0).choice(len(split.images), 1000, replace=False)
    images: Any = split.images[np.sort(sample)]
    return Frozen(variables["params"], seeing(variables["params"], variables["batch_stats"], images)[1])


def test(settings: ConfigDict, path: Path, dataset: Dataset) -> dict[str, tuple[Protocol, np.ndarray]]:
    """For every row, the protocol chosen on validation tasks, and the accuracy of each of 10,000 test tasks."""
    val, held_out = dataset.splits["val"], dataset.splits["test"]
    results = {}
    for name, model in models(settings, path, dataset.splits["train"]).items():
        head = model.learned["head"]
        by_step = functools.partial(
            evaluation.adapt_on_bank, head, evaluation.embed_all(model, val.images), None, val.table(), every_step=True
        )
        grid = build.protocol(settings)._replace(num_tasks=CHOICE_TASKS)
        inner: Any = grid.inner  # gradient descent
        grid = grid._replace(inner=inner._replace(steps=max(STEPS)))
        chosen = choose_inner(grid, by_step, RATES, STEPS)._replace(num_tasks=PAIRED_TASKS)
        bank = evaluation.embed_all(model, held_out.images)
        results[name] = chosen, evaluation.adapt_on_bank(head, bank, None, held_out.table(), chosen)
    return results


def table(results: Mapping[int, Mapping[str, tuple[Protocol, np.ndarray]]]) -> tuple[str, list[dict[str, Any]]]:
    """The table as Markdown, and as records."""
    lines = [
        f"| 5-way, {TABLE_TASKS} test tasks (chance 20 %) | " + " | ".join(f"{shot}-shot" for shot in results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    records = []
    for name in ROWS:
        cells = []
        for shot, rows in results.items():
            protocol, accuracies = rows[name]
            mean, ci95 = metrics.mean_interval(accuracies[:TABLE_TASKS])
            cells.append(f"{metrics.in_percent(mean, ci95)} %")
            descent: Any = protocol.inner
            inner = {"inner_lr": descent.lr, "inner_steps": descent.steps}
            records.append({"row": name, "shot": shot, "accuracy": mean, "ci95": ci95, **inner})
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = []
    for shot, rows in results.items():
        mean, ci95 = metrics.paired_difference(rows[ROWS[2]][1], rows[ROWS[1]][1])
        cells.append(f"{metrics.in_percent(mean, ci95, '+')} points")
        records.append({"row": "paired difference", "shot": shot, "accuracy": mean, "ci95": ci95})
    lines.append(f"| MTL - pre-trained, the same {PAIRED_TASKS:,} tasks | " + " | ".join(cells) + " |")
    return "\n".join(lines), records


def main(argv: Sequence[str]) -> int:
    """The program."""
    parser = program.Parser("python -m mtl_jax.demo", description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    parser.add_argument("--seed", type=int, default=0, help="training seed; the test tasks stay the same")
    arguments = parser.parse_args(argv[1:])
    started = time.monotonic()
    path = arguments.workdir
    settings = train_all(path, arguments.seed)
    dataset = build.dataset(settings[1].data)
    results = {shot: test(settings[shot], path / f"{shot}shot", dataset) for shot in SHOTS}
    text, records = table(results)
    minutes = (time.monotonic() - started) / 60
    workdir.write_json_atomic(path / "table.json", {
        "dataset": dataset.name, "fingerprint": dataset.fingerprint, "seed": arguments.seed, "minutes": minutes,
        **environment.device_facts(), "rows": records,
    })  # fmt: skip
    print(f"\n{text}\n\n{minutes:.1f} minutes", flush=True)
    page = path / f"{SHOTS[0]}shot" / "report"
    report(str(path / f"{SHOTS[0]}shot"), page, {})
    print(f"page: {page / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))

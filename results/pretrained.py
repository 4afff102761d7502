"""`python -m results pretrained`: MTL on a network that others have pre-trained, its last block, over seeds.

Rows are those of `mtl_jax.ablation`, from the same frozen network. Of each the best checkpoint and then the inner loop
are chosen on validation; all rows of all seeds are tested on the same tasks. A seed decides the training tasks alone.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from mtl_jax.configs import pretrained
from scipy import stats

from mtl_jax import ablation, metrics, workdir
from mtl_jax.ablation import ROWS, Scores
from mtl_jax.config import build
from mtl_jax.data import Dataset
from mtl_jax.embed import feature_width
from mtl_jax.evaluate import maps, network
from mtl_jax.launch import environment
from mtl_jax.train import train
from results import measure
from results.records import PRETRAINED, pretrained_rows

DEFAULT_ROWS = ("train_head", "ft_head", "ft_last", "ss_last", "ssf_last", "ssf_last_hard")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--data", required=True, help="a folder with a folder a data set")
    parser.add_argument("--set", default="fc100", choices=pretrained.DATA[1:])
    parser.add_argument("--shot", type=int, default=1, choices=(1, 5))
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... (%(default)s)")
    parser.add_argument("--steps", type=int, help="of meta-training (the config's)")
    parser.add_argument("--tasks", type=int, default=10_000, help="of test (%(default)s)")
    parser.add_argument("--rows", default=",".join(DEFAULT_ROWS), help="of the ablation (%(default)s)")
    parser.add_argument("--cache", default="", help="where data sets and maps are kept")
    parser.add_argument("--workdir", required=True, help="a folder for the runs; what is done stays")
    parser.add_argument("--commit", required=True, help="that the runs are trained with")


def main(flags: argparse.Namespace) -> int:
    """Trains and tests what is still to be done, and writes the record."""
    rows, seconds = flags.rows.split(","), 0.0
    name, runs = f"{flags.set}-lite0-{flags.shot}shot", {}
    dataset = build.dataset(config_of(flags, 0).data)
    for seed in range(flags.seeds):
        settings, runs[seed] = config_of(flags, seed), {}
        for row in rows:
            if ROWS[row].learn == "none" and seed:
                runs[seed][row] = runs[0][row]  # nothing of it depends on the seed
                continue
            own = ablation.apply_row(settings, row)
            place = workdir.Workdir(Path(flags.workdir) / name / f"seed-{seed}" / row)
            kept = place.path / f"scores-{flags.tasks}.npz"
            if not kept.exists():
                started = time.monotonic()
                train(own, str(place.path))
                tested = test(own, place, dataset, flags.tasks)._asdict()
                own_scores = {key: tested[key] for key in ("accuracies", "lr", "steps")}
                np.savez(kept, **own_scores, seconds=time.monotonic() - started)
            with np.load(kept) as file:
                runs[seed][row] = Scores(file["accuracies"], float(file["lr"]), int(file["steps"]))
                seconds += float(file["seconds"])
            print(f"seed {seed}, {row}: {100 * runs[seed][row].accuracies.mean():.2f} %", flush=True)
    record = {
        "data": dataset.name, "fingerprint": dataset.fingerprint, "way": settings.meta.way, "shot": flags.shot,
        "query": settings.evaluate.query, "steps": settings.meta.steps, "num_tasks": flags.tasks,
        "seeds": list(runs), "commit": flags.commit,
        "command": f"python -m results pretrained --data=D --set={flags.set} --shot={flags.shot} --seeds={flags.seeds}"
        f" --steps={settings.meta.steps} --tasks={flags.tasks} --rows={flags.rows} --workdir=runs/pretrained"
        f" --commit={flags.commit}",
        "minutes": round(seconds / 60, 1), **environment.device_facts(),
        "rows": summary(runs, learned_numbers(settings, rows)),
    }  # fmt: skip
    PRETRAINED.mkdir(exist_ok=True)
    workdir.write_json_atomic(PRETRAINED / f"{name}.json", record)
    print(pretrained_rows(record))
    return 0


def test(settings: ConfigDict, place: workdir.Workdir, dataset: Dataset, count: int) -> Scores:
    """A row's accuracies on `count` test tasks, its inner loop chosen on validation tasks."""
    val, held_out = dataset.splits["val"], dataset.splits["test"]
    _, model = network.trained(settings, place, val.images.shape[1:])
    protocol = build.protocol(settings)._replace(num_tasks=count)
    by_split = [
        measure.on_bank(*maps.in_place_of_images(settings, model, split), protocol) for split in (val, held_out)
    ]
    chosen = measure.choose_by(protocol, by_split[0])
    accuracies = by_split[1](chosen)
    return Scores(accuracies, chosen.inner.lr, chosen.inner.steps)


def config_of(flags: argparse.Namespace, seed: int) -> ConfigDict:
    """The config of a seed."""
    settings = pretrained.get_config(f"lite0,{flags.shot}shot,{flags.set}")
    settings.seed = seed
    settings.data.update({"path": str(Path(flags.data) / flags.set), "cache_dir": flags.cache})
    if flags.steps:
        settings.meta.update({"steps": flags.steps, "val_every": min(flags.steps, settings.meta.val_every)})
    return settings


def learned_numbers(settings: ConfigDict, rows: Sequence[str]) -> dict[str, int]:
    """How many numbers of the backbone meta-training learns, by row; the head's are left out."""
    params, batch_stats = network.pretrained(settings, workdir.Workdir(""))
    side = settings.data.image_size
    features = feature_width(build.embedding(settings), params, batch_stats, (side, side, 3))
    counts = {}
    for row in rows:
        own = ablation.apply_row(settings, row)
        groups = {} if own.meta.learn == "none" else build.learned(jax.random.key(0), own, params, features)
        counts[row] = sum(leaf.size for name in groups if name != "head" for leaf in jax.tree.leaves(groups[name]))
    return counts


def summary(runs: Mapping[int, Mapping[str, Scores]], numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """A record a row: its accuracy, and its difference to the first row, both paired by task and averaged over seeds.

    ci95 is over tasks, of the seeds' mean; difference_seeds_ci95 is Student's interval over the seeds' differences.
    """
    records = []
    for row in next(iter(runs.values())):
        accuracies = np.stack([scores[row].accuracies for scores in runs.values()]).astype(np.float64)
        first = np.stack([next(iter(scores.values())).accuracies for scores in runs.values()]).astype(np.float64)
        mean, difference = metrics.mean_interval(accuracies.mean(0)), accuracies - first
        paired = metrics.mean_interval(difference.mean(0))
        records.append({
            "row": row, "label": ROWS[row].label, "learned": numbers[row],
            "accuracy": mean.mean, "ci95": mean.ci95, "difference": paired.mean, "difference_ci95": paired.ci95,
            "difference_seeds_ci95": over_seeds(difference.mean(1)),
            "seeds": [
                {"accuracy": float(own.mean()), "difference": float(less.mean()), "inner_steps": scores[row].steps,
                 "inner_lr": float(f"{scores[row].lr:.6g}")}
                for own, less, scores in zip(accuracies, difference, runs.values(), strict=True)
            ],
        })  # fmt: skip
    return records


def over_seeds(values: np.ndarray) -> float | None:
    """The half-width of Student's 95 % interval of the mean of n seeds; None for one."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))

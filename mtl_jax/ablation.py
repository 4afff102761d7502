"""The paper's ablation: what adapts to a task and what is meta-learned, all rows from one pre-training.

    python -m mtl_jax.ablation --workdir=runs/ablation
    python -m mtl_jax.ablation --workdir=runs/mini --config=configs/miniimagenet.py:paper,1shot --config.data.path=D

Prints a table of test accuracies with paired differences to the first row, and writes it to table.md and table.json.
    python -m mtl_jax.ablation --workdir=runs/ablation --rows=train_head,train_ridge,ss_all,ss_ridge

Every row's inner rate and number of steps are chosen from the same grid on validation tasks; so are ridge's λ and
logistic's C if they are not meta-learned. If the inner loop adapts the backbone, each of its steps is a gradient step
of the whole network, so those rows have fewer tasks (--few_tasks). By default the rows are the paper's.
"""

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from mtl_jax import evaluate, metrics, workdir
from mtl_jax.config import build, command_line
from mtl_jax.data import Dataset, Split
from mtl_jax.episodes import count_distinct
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import network
from mtl_jax.evaluate.choose import choose_inner
from mtl_jax.evaluation import Model, Protocol, sample_all
from mtl_jax.launch import environment, program
from mtl_jax.learners import Inner
from mtl_jax.solved_learners import Prototypes
from mtl_jax.train import train
from mtl_jax.words import counted, nearest

FACTORS = (0.3, 1.0, 3.0, 10.0)  # of the config's inner rate, on the grid
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # ridge's λ and 1 / C of logistic, on the grid
# Of `meta.lr` where weights are learned: what suits Φ, which multiplies them and starts at 1, is too much for them. On
# glyphs, whose rate for Φ is 3e-3, FT [Θ; θ] at 3e-3 ends in a loss of 8,000; validation was best at 1e-3.
WEIGHTS_RATE = 1 / 3


class Row(NamedTuple):
    """A row of the table: its label, and the options that make it; `per` is that of the config where it is empty."""

    label: str
    learn: str
    blocks: str = "all"
    adapt: str = "head"
    hard_tasks: bool = False
    learner: str = ""
    per: str = ""


# Other base-learners than MTL's linear one: their names in the table, and their options in the config's group `inner`.
LEARNERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "proto_maml": ("linear from prototypes (ProtoMAML)", {"start": "prototypes"}),
    "cosine": ("cosine from prototypes", {"base_learner": "cosine", "start": "prototypes", "lr": 0.1}),
    "e3bm": (
        "cosine from prototypes, learned rates and ensemble (E3BM)",
        {"base_learner": "cosine", "start": "prototypes", "learn_lr": True, "ensemble": True, "lr": 0.1},
    ),
    "prototypes": ("prototypes", {"base_learner": "prototypes"}),
    "cosine_prototypes": ("prototypes by cosine", {"base_learner": "prototypes", "distance": "cosine"}),
    "ridge": ("ridge", {"base_learner": "ridge"}),
    "logistic": ("logistic", {"base_learner": "logistic"}),
}
PAPER_ROWS: Mapping[str, Row] = {
    "train_all": Row("no meta-learning, [Θ; θ] trained on the support set", "none", adapt="all"),
    "train_head": Row("no meta-learning, θ trained on the support set", "none"),
    "ft_head": Row("FT θ", "head"),
    "ft_last": Row("FT [Θ4; θ]", "weights", blocks="last"),
    "ft_all": Row("FT [Θ; θ]", "weights"),
    "maml": Row("FT [Θ; θ], everything in the inner loop (MAML)", "weights", adapt="all"),
    "ss_last": Row("SS [Θ4; θ]", "ss", blocks="last"),
    "ss_all": Row("SS [Θ; θ]", "ss"),
    "ft_all_hard": Row("FT [Θ; θ] + hard tasks", "weights", hard_tasks=True),
    "ss_all_hard": Row("SS [Θ; θ] + hard tasks", "ss", hard_tasks=True),
}
ROWS: Mapping[str, Row] = {
    **PAPER_ROWS,
    "ss_last_hard": Row("SS [Θ4; θ] + hard tasks", "ss", blocks="last", hard_tasks=True),
    "ssf_last": Row("SSF [Θ4; θ]", "ss", blocks="last", per="output"),
    "ssf_last_hard": Row("SSF [Θ4; θ] + hard tasks", "ss", blocks="last", hard_tasks=True, per="output"),
    "ssf_all": Row("SSF [Θ; θ]", "ss", per="output"),
    **{
        f"train_{name}": Row(f"no meta-learning, {label}", "none", learner=name)
        for name, (label, _) in LEARNERS.items()
    },
    **{f"ss_{name}": Row(f"SS [Θ; θ], {label}", "ss", learner=name) for name, (label, _) in LEARNERS.items()},
}


class Scores(NamedTuple):
    """A row's test accuracies [tasks], what validation chose, and how many of the tasks are distinct.

    lr, steps: None without an inner loop; lr also where rates are learned. l2: None where it is not chosen.
    """

    accuracies: np.ndarray
    lr: float | None
    steps: int | None
    distinct: int | None = None
    l2: float | None = None


def apply_row(config: ConfigDict, name: str) -> ConfigDict:
    """A copy of a config changed to a row of the table.

    Weights are learned at `WEIGHTS_RATE` of the config's rate. Where the inner loop moves the backbone, training is cut
    down to what a CPU can do: first-order gradients, at most 5 inner steps, 100 tasks a validation.

    Raises:
      ConfigError: an unknown row.
    """
    if name not in ROWS:
        raise ConfigError(f"row {name!r} is unknown{nearest(name, ROWS)}, expected one of {', '.join(ROWS)}")
    row, config = ROWS[name], config.copy_and_resolve_references()
    config.meta.update({"learn": row.learn, "blocks": row.blocks})
    if row.learn == "weights":
        config.meta.lr *= WEIGHTS_RATE
    config.inner.adapt = row.adapt
    if row.per:
        config.meta.per = row.per
    if row.learner:
        config.inner.update(LEARNERS[row.learner][1])
    if row.learn != "none" and row.adapt != "head":
        config.inner.update({"first_order": True, "steps": min(config.inner.steps, 5)})
        config.meta.val_tasks = min(config.meta.val_tasks, 100)
    config.hard_tasks.enabled = row.hard_tasks
    return config


def run(
    config: ConfigDict, path: Path, names: Sequence[str], *,
    tasks: int, few_tasks: int, rates: Mapping[str, float] | None = None,
) -> dict[str, Scores]:  # fmt: skip
    """Trains what is still to be trained of the rows, and tests all of them on the same tasks.

    Args:
      config: of the data set, backbone and schedule.
      path: the folder of the runs: `path`/ROW, and `path`/pretraining unless the config has a `pretrain.init`.
      names: of `ROWS`.
      tasks, few_tasks: test tasks of a row; of one whose inner loop moves the backbone. The few are the first of them.
      rates: `meta.lr` of a row, where it is not what `apply_row` makes of the config's.

    Returns:
      Scores by row.
    """
    init = config.pretrain.init or pretrain(config, path / "pretraining")
    dataset, scores = build.dataset(config.data), {}
    for name in names:
        settings = apply_row(config, name)
        settings.pretrain.init = init
        settings.meta.lr = (rates or {}).get(name, settings.meta.lr)
        print(f"{ROWS[name].label}: training in {path / name}", flush=True)
        train(settings, str(path / name))
        count = tasks if ROWS[name].adapt == "head" else few_tasks
        scores[name] = test(settings, workdir.Workdir(path / name), dataset, count, steps=config.inner.steps)
    return scores


def pretrain(config: ConfigDict, path: Path) -> str:
    """Pre-trains a config's backbone in a workdir of its own, unless it has been, and returns that workdir."""
    config = config.copy_and_resolve_references()
    config.meta.learn, config.hard_tasks.enabled = "none", False
    print(f"pre-training in {path}", flush=True)
    train(config, str(path))
    return str(path)


def test(settings: ConfigDict, place: workdir.Workdir, dataset: Dataset, count: int, *, steps: int) -> Scores:
    """A row's accuracies on `count` test tasks, its options chosen on as many of validation."""
    val, held_out = dataset.splits["val"], dataset.splits["test"]
    _, model = network.trained(settings, place, val.images.shape[1:])
    protocol, l2 = build.protocol(settings)._replace(num_tasks=count), None
    inner = protocol.inner
    if not isinstance(inner, Inner):
        if settings.meta.learn == "none" and not isinstance(inner, Prototypes):
            l2, model = _choose_l2(settings, model, val, protocol)
    elif not inner.learn_lr:
        by_step = functools.partial(evaluate.accuracies, settings, model, val, every_step=True)
        rate: Any = inner.lr  # one: rates of steps are learned
        rates = [factor * rate for factor in FACTORS]
        protocol = choose_inner(protocol._replace(inner=inner._replace(steps=steps)), by_step, rates)
    tasks = sample_all(held_out.table(), protocol)
    accuracies = evaluate.accuracies(settings, model, held_out, protocol, tasks=tasks)
    lr = None if getattr(inner, "learn_lr", False) else getattr(protocol.inner, "lr", None)
    return Scores(accuracies, lr, getattr(protocol.inner, "steps", None), count_distinct(*tasks), l2)


def _choose_l2(settings: ConfigDict, model: Model, val: Split, protocol: Protocol) -> tuple[float, Model]:
    """The penalty among `PENALTIES` that is best on validation tasks, and the model with it."""
    tried = {}
    for l2 in PENALTIES:
        changed = settings.copy_and_resolve_references()
        changed.inner.l2 = l2
        features = 0  # neither ridge nor logistic learns anything of this size
        candidate = model._replace(learned={**model.learned, "head": build.fresh_head(changed, features)})
        tried[l2] = evaluate.accuracies(settings, candidate, val, protocol).mean(), candidate
    best = max(tried, key=lambda l2: tried[l2][0])
    return best, tried[best][1]


def table(scores: Mapping[str, Scores]) -> tuple[str, list[dict[str, Any]]]:
    """The table as Markdown, and as records; differences are to the first row, over the tasks that both have."""
    first = next(iter(scores.values())).accuracies
    records = []
    for name, (accuracies, lr, steps, distinct, l2) in scores.items():
        mean, ci95 = metrics.mean_interval(accuracies, distinct)
        common = min(len(first), len(accuracies))
        difference = metrics.paired_difference(accuracies[:common], first[:common], distinct)
        records.append({
            "row": name, "label": ROWS[name].label, "num_tasks": len(accuracies), "distinct_tasks": distinct,
            "inner_steps": steps, "inner_lr": lr, "l2": l2,
            "accuracy": mean, "ci95": ci95, "difference": difference.mean, "difference_ci95": difference.ci95,
            "common_tasks": common,
        })  # fmt: skip
    return markdown(records), records


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """The table of records as `table` makes them."""
    lines = ["| row | tasks | inner steps, rate | accuracy | difference to the first row |", "| --- |" + " --- |" * 4]
    for row in records:
        accuracy = metrics.in_percent(row["accuracy"], row["ci95"])
        difference = metrics.in_percent(row["difference"], row["difference_ci95"], "+")
        distinct = row.get("distinct_tasks") or row["num_tasks"]  # rows of older runs do not say it
        repeated = "" if distinct == row["num_tasks"] else f", {distinct} distinct"
        cells = row["label"], f"{row['num_tasks']}{repeated}", _chosen(row)
        lines.append("| " + " | ".join([*cells, f"{accuracy} %", f"{difference} over {row['common_tasks']}"]) + " |")
    return "\n".join(lines)


def _chosen(row: Mapping[str, Any]) -> str:
    """'10, 0.3', or what there is instead of steps and a rate."""
    if row["inner_steps"] is not None:
        return f"{row['inner_steps']}, {'learned' if row['inner_lr'] is None else format(row['inner_lr'], '.3g')}"
    return "none" if row.get("l2") is None else f"none, l2 {row['l2']:g}"


def _rates(words: Sequence[str]) -> dict[str, float]:
    """ROW=RATE words as a mapping. Raises ConfigError."""
    try:
        rates = {name: float(rate) for name, rate in (word.split("=") for word in words)}
    except ValueError as error:
        raise ConfigError(f"--rates={','.join(words)}: expected ROW=RATE, e.g. ft_all=1e-4") from error
    if unknown := rates.keys() - ROWS.keys():
        raise ConfigError(f"--rates: row {min(unknown)!r} is unknown, expected one of {', '.join(ROWS)}")
    return rates


def main(argv: Sequence[str]) -> int:
    """The program."""
    from mtl_jax.configs import glyphs

    values = flags.FlagValues()
    command_line.define_config(values, required=False)
    flags.DEFINE_list("rows", list(PAPER_ROWS), f"of {', '.join(ROWS)}", flag_values=values)
    flags.DEFINE_integer("num_tasks", 600, "test tasks per row", flag_values=values)
    flags.DEFINE_integer("few_tasks", 100, "test tasks if the inner loop adapts the backbone", flag_values=values)
    flags.DEFINE_list("rates", [], "ROW=RATE, ...: meta.lr for single rows", flag_values=values)
    command_line.parse(values, argv, __doc__)
    started, path = time.monotonic(), Path(values.workdir)
    config = values.config if values.config is not None else glyphs.get_config("1shot")
    for name in values.rows:
        apply_row(config, name)
    rates = _rates(values.rates)
    scores = run(config, path, values.rows, tasks=values.num_tasks, few_tasks=values.few_tasks, rates=rates)
    dataset = build.dataset(config.data)
    text, records = table(scores)
    minutes = (time.monotonic() - started) / 60
    workdir.write_json_atomic(path / "table.json", {
        "dataset": dataset.name, "fingerprint": dataset.fingerprint, "minutes": minutes,
        **environment.device_facts(), "rows": records,
    })  # fmt: skip
    workdir.write_bytes_atomic(path / "table.md", f"{text}\n".encode())
    print(f"\n{dataset.name} {dataset.fingerprint[:12]}, {config.meta.way}-way {config.meta.shot}-shot "
          f"({metrics.describe_chance(1 / config.meta.way)}), "
          f"{counted(config.evaluate.query, 'query')} a class, seed "
          f"{config.evaluate.seed} of the tasks\n\n{text}\n\n{minutes:.1f} minutes")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))

"""Meta-test of a trained workdir: mean accuracy ± CI95 over many tasks of a split.

python evaluate.py --workdir=runs/glyphs --num_tasks=600 --shot=5
python evaluate.py --workdir=runs/glyphs --episodes=episodes.json.gz
python evaluate.py --workdir=runs/mini --data=cub:CUB_200_2011
python evaluate.py --workdir=runs/theirs --weights=max_acc.pth --config=configs/miniimagenet.py:pytorch,1shot
"""

import csv
import io
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from mtl_jax import (
    build,
    checkpoint,
    cli,
    config,
    from_weights,
    frozen_episodes,
    hosts,
    metrics,
    phases,
    plots,
    report_plots,
    run_data,
    workdir,
    xla_flags,
)
from mtl_jax.data import Dataset, Split
from mtl_jax.episodes import check_table, count_distinct
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluation import FRESH, Protocol, Tasks, evaluate_tasks, sample_all
from mtl_jax.frozen_episodes import Frozen

_logger = logging.getLogger(__name__)
SHORT_FLAGS = ("split", "num_tasks", "way", "shot")
BY_STEP = "a step chosen here is chosen by these tasks: choose it by --split=val"


def evaluate(
    settings: ConfigDict, path: str, dataset: Dataset | None = None, episodes: Frozen | None = None, weights: str = "",
    other_data: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Evaluates a workdir's best checkpoint by the protocol of `settings.evaluate`, and writes its files.

    Args:
      settings: the workdir's config, with another `evaluate` group if wished.
      path: the workdir.
      dataset: the data, where the caller has it already.
      episodes: a file of episodes to replay; its sizes must be those of `settings` (see `with_episodes`).
      weights: a reference's weight file to evaluate instead of a checkpoint; the workdir then takes the results alone.
      other_data: the data of `settings` is other data than the run's (see `run_data.with_other`); results then have
        files of their own.

    Returns:
      What `evaluation/SPLIT-{way}way-{shot}shot.json` holds; `episodes` in it is the hash of the tasks. Of several
      processes each gets it, and the first writes the files.

    Raises:
      MtlError: what the user can mend.
    """
    place, protocol = workdir.Workdir(path), build.protocol(settings)
    with hosts.first_goes_first():
        dataset = dataset or build.dataset(settings.data)
    trained = [] if weights else run_data.check(dataset, place, settings.evaluate.split, other=other_data)
    split = choose_split(dataset, settings.evaluate.split)
    if weights:
        step, model = 0, from_weights.model(settings, weights)
    else:
        step, model = phases.trained(settings, place, split.images.shape[1:])
    tasks = choose_tasks(dataset, split, protocol, episodes)
    content = frozen_episodes.content_hash(split, tasks)
    hosts.check_same("checkpoint or set of tasks", [step, content])
    started, every = time.monotonic(), settings.evaluate.every_step
    accuracies = evaluate_tasks(
        model, split.images, split.table(), protocol,
        tasks=tasks, every_step=every, embed_batch=settings.runtime.embed_batch, chunk=settings.runtime.task_chunk,
        devices=hosts.devices(settings.runtime.devices),
    )  # fmt: skip
    seconds = time.monotonic() - started
    trajectory = accuracies if every else accuracies[:, None]
    distinct = count_distinct(*tasks)
    result = {
        **protocol_facts(settings, protocol, step), **run_data.facts(dataset, trained),
        "episodes": content, "distinct_tasks": distinct, **_interval(trajectory[:, -1], distinct),
        "seconds": round(seconds, 2),
    }  # fmt: skip
    own = None if weights else build.protocol(config.read(place.config))
    if weights:
        result["checkpoint_by"] = f"weight file {Path(weights).name}"
    elif (protocol.inner.steps, protocol.inner.lr) != (own.inner.steps, own.inner.lr):
        result["inner_by"] = "command line"  # of which nobody knows by what tasks it was chosen
    if episodes:
        result["seed"] = episodes.facts["seed"]
    if every:
        result["accuracy_by_step"] = [_interval(column, distinct) for column in trajectory.T]
        result["accuracy_by_step_note"] = _step_warning(result["split"])
    if not hosts.is_first():
        return result
    is_own = episodes is None and protocol == own and not other_data
    named = {name: result[name] for name in ("dataset", "fingerprint")} if other_data else {}
    sizes = {"way": result["way"], "shot": result["shot"], "episodes": content if episodes else "", **named}
    _write(place, split.name, result, trajectory, is_own, sizes)
    if every:
        _draw_by_step(place, result, trajectory, sizes)
    return result


def choose_split(dataset: Dataset, name: str) -> Split:
    """A data set's split by name. Raises DataError where there is none."""
    if name not in dataset.splits:
        there = ", ".join(dataset.splits)
        raise DataError(f"the data set has no {name} split, it has {there}; give --split")
    return dataset.splits[name]


def choose_tasks(dataset: Dataset, split: Split, protocol: Protocol, episodes: Frozen | None) -> Tasks:
    """The tasks of a protocol, or those of a file, found again in the split. Raises DataError where there are none.

    On validation they are not those that chose the checkpoint, which have the same seed.
    """
    if episodes is None:
        sizes = {"way": protocol.way, "shot": protocol.shot, "query": protocol.query}
        check_table(split.table(), split.class_names, **sizes, split=split.name)
        return sample_all(split.table(), protocol, first=FRESH if split.name == "val" else 0)
    found = frozen_episodes.replay(episodes, split, dataset.fingerprint)
    if found.by_file_name:
        _logger.warning("%d images were known by file name alone: their pixels differ", found.by_file_name)
    return found.tasks


def _interval(accuracies: np.ndarray, distinct: int) -> dict[str, float | None]:
    mean, ci95 = metrics.mean_interval(accuracies, distinct)
    return {"accuracy": mean, "ci95": ci95}


def protocol_facts(settings: ConfigDict, protocol: Any, step: int) -> dict[str, Any]:
    """What a figure must not be printed without."""
    transductive = settings.meta.batch_norm == "batch"
    return {
        "split": settings.evaluate.split, "num_tasks": protocol.num_tasks,
        "way": protocol.way, "shot": protocol.shot, "query": protocol.query,
        "inner_steps": protocol.inner.steps, "inner_lr": protocol.inner.lr, "inner_by": "config",
        "batch_norm": "batch" if transductive else "running", "head": "zero" if protocol.zero_head else "learned",
        "flips": protocol.flips, "crops": protocol.crops, "crop_area": protocol.crop_area if protocol.crops else None,
        "checkpoint_step": step, "checkpoint_by": _chosen_by(settings), "seed": protocol.seed,
    }  # fmt: skip


def _chosen_by(settings: ConfigDict) -> str:
    """What chose the checkpoint. Nothing can choose it by the test split: training never opens it."""
    phase = settings.pretrain if settings.meta.learn == "none" else settings.meta
    by_tasks = phase.select == "best" and phase.val_every and phase.val_tasks
    return "validation" if by_tasks else "last step"


def _step_warning(split: str) -> str:
    """What accuracies by inner step carry, but on validation tasks: they are there to be chosen by."""
    return "" if split == "val" else BY_STEP


def _draw_by_step(place: workdir.Workdir, result: Mapping[str, Any], trajectory: np.ndarray, sizes: Any) -> None:
    """Accuracy after every inner step as a picture, which says that a step must not be chosen by it."""
    intervals = [metrics.mean_interval(column, result["distinct_tasks"]) for column in trajectory.T]
    figure = report_plots.accuracy_by_step(*np.array(intervals, float).T)
    parts = (f"{result['num_tasks']} {result['split']} tasks", _step_warning(result["split"]))
    figure.suptitle("; ".join(filter(None, parts)), fontsize=9)
    plots.save(figure, place.evaluation(result["split"], "png", **sizes))


def _write(place: workdir.Workdir, split: str, result: Any, trajectory: np.ndarray, is_own: bool, sizes: Any) -> None:
    path = place.evaluation(split, "json", **sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json_atomic(path, result)
    if is_own:
        workdir.write_json_atomic(place.evaluation(split, "json"), result)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    last = range(trajectory.shape[1])[-1]
    names = [f"accuracy{step}" for step in range(last)] if last else []
    rows.writerow(["task", *names, "accuracy"])
    rows.writerows([task, *map(float, row)] for task, row in enumerate(trajectory))
    workdir.write_bytes_atomic(place.evaluation(split, "csv", **sizes), text.getvalue().encode())


def describe(result: Mapping[str, Any]) -> str:
    """The line that is printed: no figure without its protocol."""
    given = "" if result["inner_by"] == "config" else f" by {result['inner_by']}"
    return (
        f"{result['split']} {result['way']}-way {result['shot']}-shot: "
        f"{metrics.in_percent(result['accuracy'], result['ci95'])} % "
        f"over {metrics.describe_tasks(result['num_tasks'], result['distinct_tasks'])} of {run_data.describe(result)} "
        f"({result['query']} queries a class, {result['inner_steps']} inner steps at {result['inner_lr']}{given}, "
        f"batch norm: {result['batch_norm']}, {result['head']} head, checkpoint {result['checkpoint_step']} "
        f"by {result['checkpoint_by']}, seed {result['seed']}, episodes {result['episodes'][:12]})"
        + "".join(f"; caveat: {caveat}" for caveat in result["caveats"])
    )


def main(argv: Sequence[str]) -> int | None:
    """The program."""
    values = flags.FlagValues()
    cli.define_config(values, required=False)
    flags.DEFINE_string("split", None, "train, val or test", flag_values=values)
    for name in SHORT_FLAGS[1:]:
        flags.DEFINE_integer(name, None, f"the same as --config.evaluate.{name}", flag_values=values)
    flags.DEFINE_string("weights", None, "a reference's weight file, instead of a checkpoint", flag_values=values)
    flags.DEFINE_string("episodes", None, "a file of python -m mtl_jax.frozen_episodes", flag_values=values)
    flags.DEFINE_string("data", None, "NAME:PATH, to test on other data than the run's", flag_values=values)
    words, overrides = split_overrides(argv)
    hosts.define_flags(values)
    cli.parse(values, words, __doc__)
    hosts.join(values)
    settings = _settings(values, overrides)
    for name in SHORT_FLAGS:
        if values[name].value is not None and any(word.startswith(f"--config.evaluate.{name}=") for word in argv):
            raise ConfigError(f"--{name} and --config.evaluate.{name} are the same; leave one of them out")
    given = {name: values[name].value for name in SHORT_FLAGS if values[name].value is not None}
    settings.evaluate.update(given)
    episodes = frozen_episodes.read(values.episodes) if values.episodes else None
    if episodes:
        settings = with_episodes(settings, episodes, given)
    config.validate(settings)
    if settings.runtime.deterministic:
        xla_flags.make_deterministic()
    given = {"episodes": episodes, "weights": values.weights or "", "other_data": values.data is not None}
    result = evaluate(settings, values.workdir, **given)
    if hosts.is_first():
        workdir.record_command(values.workdir, hosts.without_flags(argv))
        print(describe(result))
    return 0


def with_episodes(settings: ConfigDict, episodes: Frozen, given: Mapping[str, Any] | None = None) -> ConfigDict:
    """A copy of a config with the sizes of a file of episodes in its `evaluate` group.

    Raises:
      ConfigError: something else was `given` on the command line.
    """
    settings = ConfigDict(settings.to_dict())
    facts = {name: episodes.facts[name] for name in ("split", "num_tasks", "way", "shot", "query")}
    for name, value in (given or {}).items():
        if facts[name] != value:
            raise ConfigError(f"--{name}={value}, but the file of episodes has {facts[name]}; leave the flag out")
    settings.evaluate.update(facts)
    return settings


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the other words, the --config.a.b=v words): without --config they apply to the workdir's own config."""
    if any(word.startswith(("--config=", "-config=")) or word in ("--config", "-config") for word in argv):
        return list(argv), []
    overrides = [word for word in argv if word.startswith("--config.")]
    return [word for word in argv if word not in overrides], overrides


def _settings(values: flags.FlagValues, overrides: Sequence[str]) -> ConfigDict:
    place = workdir.Workdir(values.workdir)
    if values.data is not None:
        _check_other_data(values, overrides)
    if values.weights:
        return _settings_for_weights(values, place)
    saved, may_differ = config.read(place.config), config.MAY_DIFFER
    if values.data is not None:
        saved = run_data.with_other(saved, place, values.data)
        may_differ += tuple(f"data.{key}" for key in run_data.OWN_KEYS)
    settings = values.config if values.config is not None else config.override(saved, overrides)
    lines = checkpoint.describe_difference(config.to_json(saved), config.to_json(settings), may_differ)
    if lines:
        wants_other = values.data is None and any(line.startswith("data.") for line in lines)
        other = "; to test it on other data give --data=NAME:PATH" if wants_other else ""
        raise ConfigError(
            f"{place.path} was trained with another config: {'; '.join(lines)}; leave these as they were{other}"
        )
    return settings


def _check_other_data(values: flags.FlagValues, overrides: Sequence[str]) -> None:
    """Whether --data is the only thing that says which data set is meant."""
    if values.weights or values.config is not None:
        raise ConfigError(
            "--data goes with a run's own config; without a run, --config.data.name and .path say the data"
        )
    if twice := [word for word in overrides if word.startswith(("--config.data.name=", "--config.data.path="))]:
        raise ConfigError(f"--data and {twice[0].partition('=')[0]} say the same; leave one of them out")


def _settings_for_weights(values: flags.FlagValues, place: workdir.Workdir) -> ConfigDict:
    if values.config is None:
        raise ConfigError("--weights needs --config=FILE.py, which says how the network of that file runs")
    if place.config.exists():
        raise ConfigError(f"{place.path} holds a run of its own; give --weights another --workdir for its results")
    return values.config


if __name__ == "__main__":
    sys.exit(cli.run(main))

"""Tests the network of a workdir: mean accuracy with its 95 % interval over many tasks of a split.

python evaluate.py --workdir=runs/glyphs --num_tasks=600 --shot=5
python evaluate.py --workdir=runs/glyphs --episodes=episodes.json.gz
python evaluate.py --workdir=runs/mini --data=cub:CUB_200_2011
python evaluate.py --workdir=runs/theirs --weights=max_acc.pth --config=configs/miniimagenet.py:pytorch,1shot
"""

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from mtl_jax import config, frozen_episodes, workdir
from mtl_jax.config import command_line, run_data
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate.run import describe, evaluate, with_episodes
from mtl_jax.launch import environment, hosts, program

SHORT_FLAGS = ("split", "num_tasks", "way", "shot")


def main(argv: Sequence[str]) -> int | None:
    """The program."""
    values = flags.FlagValues()
    command_line.define_config(values, required=False)
    flags.DEFINE_string("split", None, "train, val or test", flag_values=values)
    for name in SHORT_FLAGS[1:]:
        flags.DEFINE_integer(name, None, f"short for --config.evaluate.{name}", flag_values=values)
    flags.DEFINE_string(
        "weights", None, "weight file of a reference implementation, instead of a checkpoint", flag_values=values
    )
    flags.DEFINE_string("episodes", None, "file made by python -m mtl_jax.frozen_episodes", flag_values=values)
    flags.DEFINE_string("data", None, "NAME:PATH of other data to test on", flag_values=values)
    words, overrides = split_overrides(argv)
    hosts.define_flags(values)
    command_line.parse(values, words, __doc__)
    hosts.join(values)
    settings = _settings(values, overrides)
    for name in SHORT_FLAGS:
        if values[name].value is not None and any(word.startswith(f"--config.evaluate.{name}=") for word in argv):
            raise ConfigError(f"--{name} and --config.evaluate.{name} are the same; leave one out")
    changes = {name: values[name].value for name in SHORT_FLAGS if values[name].value is not None}
    settings.evaluate.update(changes)
    episodes = frozen_episodes.read(values.episodes) if values.episodes else None
    if episodes:
        settings = with_episodes(settings, episodes, changes)
    config.validate(settings)
    if hosts.is_first():
        workdir.Workdir(values.workdir).check_writable()  # not after an hour's tests
    if settings.runtime.deterministic:
        environment.make_deterministic()
    result = evaluate(
        settings, values.workdir, episodes=episodes, weights=values.weights or "", other_data=values.data is not None
    )
    if hosts.is_first():
        workdir.record_command(values.workdir, hosts.without_flags(argv), environment.device_facts())
        print(describe(result))
    return 0


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits off the --config.a.b=v words if there is no --config: they then change the workdir's own config.

    Returns:
      (the other words, the --config.a.b=v words).
    """
    if any(word.startswith(("--config=", "-config=")) or word in ("--config", "-config") for word in argv):
        return list(argv), []
    overrides = [word for word in argv if word.startswith("--config.")]
    return [word for word in argv if word not in overrides], overrides


def _settings(values: flags.FlagValues, overrides: Sequence[str]) -> ConfigDict:
    run = workdir.Workdir(values.workdir)
    if values.data is not None:
        _check_other_data(values, overrides)
    if values.weights:
        return _settings_for_weights(values, run)
    saved, may_differ = config.read(run.config), config.MAY_DIFFER
    if values.data is not None:
        saved = run_data.with_other(saved, run, values.data)
        may_differ += tuple(f"data.{key}" for key in run_data.OWN_KEYS)
    settings = values.config if values.config is not None else config.override(saved, overrides)
    lines = config.compare(config.to_json(saved), config.to_json(settings), may_differ)
    if lines:
        wants_other = values.data is None and any(line.startswith("data.") for line in lines)
        other = "; to test it on other data give --data=NAME:PATH" if wants_other else ""
        raise ConfigError(
            f"{run.path} was trained with another config: {'; '.join(lines)}; leave these unchanged{other}"
        )
    return settings


def _check_other_data(values: flags.FlagValues, overrides: Sequence[str]) -> None:
    """Checks that nothing else but --data names a data set. Raises ConfigError."""
    if values.weights or values.config is not None:
        raise ConfigError(
            "--data needs a run's own config; without a run, give --config.data.name and --config.data.path"
        )
    if twice := [word for word in overrides if word.startswith(("--config.data.name=", "--config.data.path="))]:
        raise ConfigError(f"--data and {twice[0].partition('=')[0]} mean the same; leave one out")


def _settings_for_weights(values: flags.FlagValues, run: workdir.Workdir) -> ConfigDict:
    if values.config is None:
        raise ConfigError("--weights needs --config=FILE.py, the config of the network in that file")
    if run.config.exists():
        raise ConfigError(f"{run.path} already holds a run; give --weights another --workdir for its results")
    return values.config


if __name__ == "__main__":
    sys.exit(program.run(main))

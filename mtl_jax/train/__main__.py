"""Pre-trains and meta-trains a config in a workdir, from which a stopped run resumes.

python train.py --config=configs/glyphs.py:1shot --workdir=runs/glyphs --config.seed=1
python train.py --config=configs/glyphs.py:1shot --workdir=runs/seeds --num_seeds=3
python train.py --config=configs/glyphs.py:1shot --workdir=runs/glyphs --config.seed=1 --replay=120
"""

import sys
from collections.abc import Sequence

from absl import flags

from mtl_jax import config, workdir
from mtl_jax.config import command_line
from mtl_jax.errors import ConfigError
from mtl_jax.launch import environment, hosts, program
from mtl_jax.train import replay, seeds
from mtl_jax.train.run import dry_run, train


def main(argv: Sequence[str]) -> int | None:
    """The program."""
    values = flags.FlagValues()
    command_line.define_config(values, required=True)
    hosts.define_flags(values)
    flags.DEFINE_bool("dry_run", False, "print the run's steps, memory and least time, and exit", flag_values=values)
    flags.DEFINE_integer(
        "num_seeds", None, "train and test this many seeds, in WORKDIR/seed-0, ...", flag_values=values
    )
    flags.DEFINE_string(
        "replay", None, "STEP or pretrain:STEP: rerun that step of the workdir's run, draw its images and "
        "predictions, report what is not finite, and exit; the run itself is unchanged", flag_values=values,
    )  # fmt: skip
    command_line.parse(values, argv, __doc__)
    modes = [name for name in ("dry_run", "num_seeds", "replay") if values[name].value not in (None, False)]
    if len(modes) > 1 and "replay" in modes:  # a dry run of several seeds is that of one
        raise ConfigError(f"--{modes[0]} and --{modes[1]} cannot be combined; leave one out")
    if values.dry_run:
        path = values.workdir if values.num_seeds is None else str(seeds.seed_path(values.workdir, 0))
        print(dry_run(values.config, path))
        return 0
    if values.replay is not None:
        print(replay.describe(replay.replay(values.config, values.workdir, replay.wanted(values.replay))))
        return 0
    hosts.join(values)
    if values.num_seeds is not None:
        seeds.main(values.config, values.workdir, values.num_seeds, hosts.without_flags(argv))
        return 0
    config.validate(values.config)  # before the workdir is made
    if hosts.is_first():
        workdir.record_command(values.workdir, hosts.without_flags(argv), environment.device_facts())
    train(values.config, values.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))

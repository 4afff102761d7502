"""A run that is given more steps than it was started with: which keys may rise, and what that changes."""

import logging
from collections.abc import Mapping
from typing import Any

from mtl_jax import optimizers
from mtl_jax.errors import CheckpointError
from mtl_jax.workdir import Workdir, write_json_atomic
from mtl_jax.workdir.checkpoint import Checkpoints
from mtl_jax.workdir.workdir import writing

PHASES = ("pretrain", "meta")
_logger = logging.getLogger(__name__)


def raised(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of steps that are higher in the config `now` than in `then`."""
    return [f"{phase}.steps" for phase in PHASES if now[phase]["steps"] > then[phase]["steps"]]


def changed_rates(saved: Mapping[str, Any], metadata: Mapping[str, Any], phase: str, step: int) -> str:
    """What to say where a phase's other number of steps changes its learning rate, else ''.

    Args:
      saved, metadata: of the checkpoint that the run resumes from, and of those that it will write.
      phase: 'pretrain' or 'meta'.
      step: that checkpoint's.
    """
    if "config" not in metadata:
        return ""
    steps, now = saved["config"][phase]["steps"], metadata["config"][phase]
    if steps == now["steps"] or now["decay"] not in optimizers.OVER_ALL_STEPS:
        return ""
    before, after = (100 * fraction({**now, "steps": total}, step) for total in (steps, now["steps"]))
    return (
        f"{phase} step {step}: the phase now has {now['steps']} steps, not {steps}, over which "
        f"config.{phase}.decay='{now['decay']}' lowers the learning rate: it continues at {after:.0f} % of its first "
        f"value, not {before:.0f} %, so the run differs from one with {now['steps']} steps from the start; for that, "
        "give another --workdir"
    )


def fraction(group: Mapping[str, Any], step: int) -> float:
    """The learning rate of a phase's group of keys at a step, as a fraction of the first."""
    options = {"every": group["decay_every"], "factor": group["decay_factor"], "delay": group["decay_delay"]}
    rate = optimizers.schedule(1.0, decay=group["decay"], total=group["steps"], floor=group["decay_floor"], **options)
    return float(rate(step))


def set_meta_training_aside(workdir: Workdir, steps: int) -> None:
    """Moves meta-training that started from a pre-training of fewer steps into a workdir of its own, with a warning.

    Does nothing if there is none. What was moved can still be tested; pre-training continues in the run's own workdir.

    Raises:
      CheckpointError: it cannot be moved.
    """
    metadata = Checkpoints(workdir.checkpoints("meta")).newest_metadata()
    before = metadata["config"]["pretrain"]["steps"] if "config" in metadata else steps
    if before >= steps:
        return
    aside = Workdir(workdir.path / f"after-{before}-pretraining-steps")
    with writing(aside.path, "free space there, or give another --workdir", CheckpointError):
        aside.path.mkdir(exist_ok=True)
        for path in (workdir.data, workdir.digests, workdir.metrics):
            if path.exists():
                (aside.path / path.name).write_bytes(path.read_bytes())
        write_json_atomic(aside.config, metadata["config"])
        # The checkpoints last: without them nothing is left to be moved.
        for name in ("evaluation", "tensorboard/meta", "meta"):
            if (workdir.path / name).exists():
                (aside.path / name).parent.mkdir(exist_ok=True)
                (workdir.path / name).replace(aside.path / name)
    _logger.warning(
        "pre-training continues from %d to %d steps, so meta-training starts over; the earlier one is kept in %s, "
        "itself a workdir", before, steps, aside.path,
    )  # fmt: skip

"""A run on all devices that there are, left alone, and one that is stopped three times; prints what differs at the end.

Run by test_resume in a process of its own, since the number of devices is fixed when JAX starts.
"""

import signal
import sys
from pathlib import Path

import jax
from mtl_jax.configs import default

from mtl_jax import train
from mtl_jax.train import loop
from tests.chaos.runs import WORDS, end, make_data

STEPS = 9
MOMENTS = (("pretrain", 4), ("meta", 2), ("meta", 7))  # the log lines after which a SIGTERM comes


def config(folder: Path):
    """The harness's run, shorter."""
    made = default.get_config()
    short = {f"{phase}.{key}": value for phase in ("pretrain", "meta") for key, value in
             {"steps": STEPS, "val_every": 3, "val_tasks": 20}.items()}  # fmt: skip
    made.update_from_flattened_dict({**WORDS, **short, "data.path": str(folder / "data"), "runtime.skip_nonfinite": 3})
    return made


def stopped(settings, workdir: Path) -> None:
    """Trains with a SIGTERM at each of the moments, and then to the end."""
    for phase, step in MOMENTS:

        def stop(at, scalars, phase=phase, step=step):
            if at == step and f"{phase}/loss" in scalars:
                signal.raise_signal(signal.SIGTERM)

        try:
            train.train(settings, str(workdir), [stop])
        except loop.Stopped:
            continue
        raise AssertionError(f"not stopped at {phase} step {step}")
    train.train(settings, str(workdir))


def main(folder: Path) -> None:
    """Prints the number of devices and the names of what differs."""
    make_data(folder / "data")
    settings = config(folder)
    train.train(settings, str(folder / "whole"))
    stopped(settings, folder / "stopped")
    one, other = end(folder / "whole", STEPS), end(folder / "stopped", STEPS)
    print(
        jax.local_device_count(), sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

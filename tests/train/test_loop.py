"""The loop of a phase, with steps that cost nothing: what is left out as not finite, and what a stopped run resumes."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import NotFiniteError
from mtl_jax.launch.signals import StopRequest
from mtl_jax.train import loop
from mtl_jax.workdir import Workdir
from mtl_jax.workdir.health import Chance
from mtl_jax.workdir.writers import JsonlWriter

STEPS = 12


def _phase(bad, *, skip, per_dispatch=1, stop=None, stop_at=0):
    """Twelve steps whose loss is their number; those in `bad` (from 1) are not finite and leave the parameter alone."""

    def dispatch(state, at):
        steps = np.arange(at + 1, at + per_dispatch + 1)
        finite = ~np.isin(steps, bad)
        if stop_at in steps:
            stop.signal = 15
        moved = {"w": state["w"] + steps[finite].sum()}
        loss = jnp.where(finite, steps.astype(np.float32), jnp.nan)
        metrics = {"loss": loss, "accuracy": jnp.ones(per_dispatch), "finite": jnp.asarray(finite)}
        return moved, {name: value if per_dispatch > 1 else value[0] for name, value in metrics.items()}

    return loop.Phase(
        name="meta", steps=STEPS, state={"w": jnp.zeros(())}, dispatch=dispatch, items=lambda state: {"params": state},
        restore=lambda items, step: items["params"], validate=None, unit="tasks", per_step=1,
        per_dispatch=per_dispatch, log_every=4, val_every=0, checkpoint_every=2, skip=skip,
        head=lambda items: items["params"], chance=Chance(0.2, 0.2),
    )  # fmt: skip


def _run(path, bad, **options):
    stop = StopRequest()
    place = Workdir(path).create()
    metrics, timing = JsonlWriter(place.metrics), JsonlWriter(place.timing)
    files = SimpleNamespace(metrics=metrics, timing=timing)
    try:
        loop.run_phase(
            _phase(bad, stop=stop, **options), place, metadata={"data": "x"}, keep=2, start=0, stop=stop, writers=[],
            **vars(files),
        )  # fmt: skip
    finally:
        metrics.close()
        timing.close()
    return place.metrics.read_bytes()


def _weight(path, step):
    return loop.Checkpoints(path / "meta").read(step).items["params"]["w"]


@pytest.mark.parametrize("per_dispatch", [1, 2])
def test_steps_that_are_not_finite_are_left_out_and_counted(tmp_path, caplog, per_dispatch):
    lines = [json.loads(line) for line in _run(tmp_path, [2, 7], skip=2, per_dispatch=per_dispatch).splitlines()]
    assert lines == [
        {"step": 4, "meta/accuracy": 1.0, "meta/loss": (1 + 3 + 4) / 3, "meta/skipped": 1},
        {"step": 8, "meta/accuracy": 1.0, "meta/loss": (5 + 6 + 8) / 3, "meta/skipped": 2},
        {"step": 12, "meta/accuracy": 1.0, "meta/loss": 10.5, "meta/skipped": 2},
    ]
    assert _weight(tmp_path, 12) == sum(range(1, 13)) - 2 - 7
    assert "meta step 7 is not finite: skipped, as 1 before it" in caplog.text


@pytest.mark.parametrize("per_dispatch", [1, 2])
def test_one_more_than_allowed_stops_the_run_at_the_checkpoint_before_it(tmp_path, per_dispatch):
    with pytest.raises(NotFiniteError, match=r"^meta step 7: .*1 other skipped.*--replay=meta:7 ") as caught:
        _run(tmp_path, [2, 7], skip=1, per_dispatch=per_dispatch)
    assert "\n" not in str(caught.value)
    assert loop.Checkpoints(tmp_path / "meta").steps() == [4, 6]
    # Allowed one more, the same run goes on to its end.
    assert b'"meta/skipped": 2' in _run(tmp_path, [2, 7], skip=2, per_dispatch=per_dispatch)


def test_without_leave_the_first_one_stops_the_run_and_lines_say_nothing_of_skipping(tmp_path):
    with pytest.raises(NotFiniteError, match=r"^meta step 9: the loss or a gradient is not finite;"):
        _run(tmp_path / "a", [9], skip=0)
    assert b"skipped" not in _run(tmp_path / "b", [], skip=0)


@pytest.mark.parametrize("stop_at", [1, 3, 7, 10])
def test_the_count_is_the_same_bytes_in_a_run_that_was_stopped(tmp_path, stop_at):
    whole = _run(tmp_path / "whole", [2, 3, 10], skip=3)
    with pytest.raises(loop.Stopped):
        _run(tmp_path / "stopped", [2, 3, 10], skip=3, stop_at=stop_at)
    assert _run(tmp_path / "stopped", [2, 3, 10], skip=3) == whole
    assert _weight(tmp_path / "stopped", 12) == _weight(tmp_path / "whole", 12)


def test_a_window_without_a_finite_step_has_the_count_alone(tmp_path):
    first = _run(tmp_path, [1, 2, 3, 4], skip=9).splitlines()[0]
    assert json.loads(first) == {"step": 4, "meta/accuracy": 1.0, "meta/skipped": 4}

import io
import logging

import numpy as np
import pytest

from mtl_jax.errors import MtlError
from mtl_jax.workdir.console import Progress, log_to, shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _lines(caplog):
    return [record.getMessage() for record in caplog.records]


def test_plain_lines_come_by_time_and_once_at_the_end(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    with Progress(1000, 100, "meta", per_step=4, interval=15, stream=io.StringIO(), clock=clock) as progress:
        clock.now = 30  # compiling: no part of the rate
        for step in range(101, 133):
            progress.update(step, {"meta/loss": 1.5, "meta/accuracy": 0.456, "meta/other": 1})
            clock.now += 1
    assert _lines(caplog) == [
        "meta 116/1000, mean loss 1.500, mean accuracy 45.6 %, 4 tasks/s, 15 min left",
        "meta 131/1000, mean loss 1.500, mean accuracy 45.6 %, 4 tasks/s, 14 min left",
        "meta 132/1000, mean loss 1.500, mean accuracy 45.6 %, 3.88 tasks/s, 15 min left",
    ]


@pytest.mark.parametrize("per_dispatch", [1, 10])
def test_loss_and_accuracy_are_means_of_the_last_steps_beside_what_guessing_gives(caplog, per_dispatch):
    caplog.set_level(logging.INFO)
    with Progress(1000, 0, "seed 1 (2 of 3) pretrain", chance=1 / 60, stream=io.StringIO(), clock=Clock()) as progress:
        for step in range(per_dispatch, 201, per_dispatch):
            progress.update(step, {"loss": step, "accuracy": step > 150, "hard_loss": 9.0})
    last = np.mean(np.arange(200, 100, -per_dispatch))
    assert _lines(caplog) == [
        f"seed 1 (2 of 3) pretrain 200/1000, mean loss {last:.3f}, mean accuracy 50.0 % (chance 1.67 %)"
    ]


def test_a_phase_without_a_step_prints_nothing_and_one_of_one_step_no_rate(caplog):
    caplog.set_level(logging.INFO)
    Progress(10, 10, "done", stream=io.StringIO()).close()
    with Progress(10, 0, "one", stream=io.StringIO(), clock=Clock()) as progress:
        progress.update(1, {})
    assert _lines(caplog) == ["one 1/10"]


def test_a_terminal_gets_a_bar_and_the_log_no_lines(caplog):
    caplog.set_level(logging.INFO)
    terminal, clock = Terminal(), Clock()
    with Progress(20, 10, "pretrain", unit="images", per_step=64, interval=1, stream=terminal, clock=clock) as progress:
        for step in (11, 12, 20):
            clock.now += 2
            progress.update(step, {"loss": 2.0, "accuracy": 1.0})
    last = terminal.getvalue().split("\r")[-1]
    assert "pretrain 100%" in last and "20/20" in last
    assert "mean loss 2.000, mean accuracy 100.0 %, 144 images/s" in last
    assert _lines(caplog) == []


def test_the_log_is_appended_with_times_and_the_console_has_the_plain_line(tmp_path, capsys):
    path, logger = tmp_path / "run" / "log.txt", logging.getLogger("mtl_jax.train.loop")
    before = logging.getLogger("mtl_jax").level
    for word in ("first", "second"):
        with log_to(path):
            logger.info("%s", word)
            logger.debug("hidden")
            logger.warning("careful")
    logger.info("after")
    lines = path.read_text().splitlines()
    texts = [line.split(" ", 2)[2] for line in lines]
    assert texts == ["INFO first", "WARNING careful", "INFO second", "WARNING careful"]
    assert capsys.readouterr().err.splitlines() == ["first", "warning: careful", "second", "warning: careful"]
    assert logging.getLogger("mtl_jax").level == before and not logging.getLogger("mtl_jax").handlers


def test_a_log_inside_what_is_shown_says_each_line_once(tmp_path, capsys):
    logger = logging.getLogger("mtl_jax.evaluate.maps")
    with shown():
        logger.info("before")
        with log_to(tmp_path / "log.txt", level=logging.WARNING):
            logger.info("hidden")
            logger.warning("careful")
        logger.info("after")
    assert capsys.readouterr().err.splitlines() == ["before", "warning: careful", "after"]
    assert "before" not in (tmp_path / "log.txt").read_text()


def test_a_log_that_cannot_be_opened_is_an_error_and_one_that_fills_up_is_silent(tmp_path, capsys):
    with pytest.raises(MtlError, match=r"cannot be written: .*--workdir"), log_to(tmp_path):
        pass
    with log_to("/dev/full"):
        logging.getLogger("mtl_jax").warning("the disk is full")
    assert capsys.readouterr().err == "warning: the disk is full\n"

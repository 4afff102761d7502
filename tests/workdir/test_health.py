"""Signs that training goes wrong: each told once where it is there, and never in a run that does well."""

import json

import numpy as np
import pytest

from mtl_jax.workdir.health import Chance, Health, Validation

WAY5 = Chance(0.2, 0.2)


def phase(name="meta", chance=WAY5, per_step=4, validations=(), accuracies=(), losses=None, steps=50, ci95=0.005):
    """Lines of a phase by its validations [n]; between two of them `steps` steps of one accuracy and loss."""
    health, lines = Health(name, chance, per_step, head="start"), []
    for number, score in enumerate(validations):
        accuracy = accuracies[number] if len(accuracies) else 0.6
        loss = losses[number] if losses else 1.0
        health.add([loss] * steps, [accuracy] * steps)
        validation = None if score is None else Validation(score, ci95)
        # As a run that is stopped and resumed after every validation
        health = Health(name, chance, per_step, json.loads(json.dumps(health.state)))
        last = number == len(validations) - 1
        lines += health.check(steps * (number + 1), "moved", validation, last=last)
    return lines


def test_validation_that_falls_while_training_rises_is_told_once_and_names_the_best_step():
    accuracies = np.linspace(0.5, 0.9, 8)
    (line,) = phase(validations=[0.40, 0.45, 0.44, 0.42, 0.41, 0.40, 0.39, 0.38], accuracies=accuracies)
    assert line.startswith(
        "meta step 400: validation has fallen from 43.7 % around step 150 to 39.0 % while training accuracy rose from "
        "61.4 % to 84.3 %, a sign of overfitting; fewer config.meta.steps"
    )
    assert line.endswith("config.meta.select='best' takes the checkpoint of step 100")
    (line,) = phase("pretrain", validations=[0.45] * 3 + [0.4] * 3, accuracies=np.linspace(0.1, 0.6, 6))
    assert "config.pretrain.augment" in line


@pytest.mark.parametrize(
    ("validations", "accuracies", "ci95"),
    [
        ([0.40, 0.45, 0.44, 0.445, 0.44, 0.45, 0.44], [0.6] * 7, 0.005),  # it does not rise any more
        ([0.45, 0.40, 0.40, 0.46, 0.41, 0.41, 0.47], np.linspace(0.5, 0.9, 7), 0.005),  # it comes back
        ([0.45] * 3 + [0.40] * 4, np.linspace(0.9, 0.5, 7), 0.005),  # training falls too
        ([0.45] * 3 + [0.40] * 4, np.linspace(0.5, 0.9, 7), 0.04),  # few tasks: it may be chance
        ([0.45, 0.40], [0.5, 0.9], 0.005),  # a short run
        ([0.45] * 3 + [0.40] * 4, np.linspace(0.5, 0.9, 7), None),  # one task
        ([None] * 7, np.linspace(0.5, 0.9, 7), 0.005),
        ([], [], 0.005),
    ],
)
def test_of_a_run_that_does_well_nothing_is_told(validations, accuracies, ci95):
    for name, chance in (("pretrain", Chance(1 / 60, 0.2)), ("meta", WAY5)):
        assert phase(name, chance, validations=validations, accuracies=accuracies, ci95=ci95) == []


def test_noise_alone_is_not_told():
    rng = np.random.default_rng(0)
    for _ in range(200):  # validation that has settled at 45 %, of 600 tasks each, while training goes on rising
        validations = 0.45 + rng.normal(0, 0.008, 40)
        assert phase(validations=validations, accuracies=np.linspace(0.5, 0.9, 40), ci95=0.008) == []


def test_validation_at_chance_is_told_after_three_or_at_the_end():
    (line,) = phase(validations=[0.203, 0.198, 0.201, 0.2, 0.2])
    assert line.startswith(
        "meta step 150: validation is at chance, 20.1 % where guessing gives 20.0 %: check the images"
    )
    assert "config.inner.lr" in line and "config.meta.lr" in line
    (line,) = phase(validations=[0.203])
    assert line.startswith("meta step 50: validation is at chance")
    assert phase(validations=[0.203, 0.25, 0.203]) == phase(validations=[0.203, 0.203, 0.25]) == []
    assert phase(validations=[0.21] * 9, ci95=0.06) == []  # so few tasks tell nothing
    assert phase(validations=[0.203] * 4, steps=3) == []  # nor do so few steps
    assert len(phase(validations=[0.51] * 3, chance=Chance(0.5, 0.5), losses=[0.5] * 3, ci95=0.02)) == 1


def test_a_head_that_does_not_move_is_told():
    for name, rate in (("meta", "config.meta.head_lr"), ("pretrain", "config.pretrain.lr")):
        health = Health(name, WAY5, 4, head="start")
        assert health.check(0, "start", None) == []
        health.add([1.0] * 2, [0.6] * 2)
        (line,) = health.check(2, "start", None)
        assert "step 2: the " in line and "has not moved since the first step" in line and line.endswith(rate)
        assert health.check(4, "start", None) == []


def test_an_inner_loop_that_does_not_move_the_head_is_told():
    (line,) = phase(validations=[0.4, 0.4], losses=[np.log(5) - 1e-3] * 2)
    assert line.startswith("meta step 50: the loss has been 1.608 so far, that of guessing: the inner loop does not")
    assert line.endswith("raise config.inner.lr or config.inner.steps")
    assert phase(validations=[0.4, 0.4], losses=[1.55] * 2) == []


def test_pre_training_at_chance_is_told_once_there_are_enough_images():
    chance = Chance(1 / 64, 0.2)
    (line,) = phase("pretrain", chance, 64, [0.4] * 4, [1 / 64] * 4, steps=250)
    assert line.startswith(
        "pretrain step 1000: training is at chance, 1.6 % in 250 steps, where guessing gives 1.6 %: check"
    )
    assert "the loss is 4.16, that of guessing" in line
    assert phase("pretrain", chance, 64, [0.4] * 4, [0.03] * 4, steps=250) == []
    assert phase("pretrain", Chance(1 / 5000, 0.2), 64, [0.4] * 4, [1 / 5000] * 4, steps=250) == []
    assert phase("pretrain", chance, 64, [0.4] * 4, [1 / 64] * 4) == []  # so few steps tell nothing


def test_what_was_told_is_not_told_again_by_a_resumed_run():
    health = Health("meta", WAY5, 4)
    assert health.tell("rates", "a line") == ["a line"]
    assert Health("meta", WAY5, 4, health.state).tell("rates", "a line") == []

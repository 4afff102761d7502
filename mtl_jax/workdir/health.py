"""Signs that training goes wrong, from the scalars that it logs. Each gives one warning, with advice.

Pure arithmetic on numbers. `train/loop.py` feeds it and logs what it says.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CHECKS = 3  # validations in a row that must agree
POINTS = 0.15  # of the gain over guessing: how much validation must lose before it has fallen
SHORT = {"pretrain": 500, "meta": 50}  # a phase that is younger may well be at chance
SLOW = 1000  # steps until training accuracy must be above chance: of hundreds of classes it rises late
ENOUGH = 20  # how often guessing must be right before training accuracy tells anything
LOSS_OF_GUESSING = 0.003  # how near to ln N a mean loss is that of a head that does not move, as a fraction


class Chance(NamedTuple):
    """Accuracy of guessing: in training, and on validation tasks."""

    training: float
    validation: float


class Validation(NamedTuple):
    """A mean accuracy on validation tasks, and its 95 % interval, or None of one task."""

    score: float
    ci95: float | None


_NEW = {
    "steps": 0, "loss": 0.0, "window": [0, 0.0], "head": "", "validations": 0, "at_chance": 0, "recent": [],
    "best": None, "top": None, "told": {},
}  # fmt: skip


class Health:
    """Looks for signs that a phase goes wrong.

    Validation falls while training accuracy rises; validation is at chance; training is at chance; the head does not
    move. `state` is JSON: as a part of a checkpoint it lets a resumed run say what one that was not stopped says.
    """

    def __init__(
        self, phase: str, chance: Chance, per_step: int, state: Mapping[str, Any] | None = None, head: str = ""
    ) -> None:
        """Watches a phase.

        Args:
          phase: 'pretrain' or 'meta'.
          chance: what guessing gives.
          per_step: images, or tasks, of a step.
          state: of a checkpoint; else `head`, the digest of the head before the first step.
        """
        self._phase, self._chance, self._per_step = phase, chance, per_step
        self._state = _copied(_NEW | {"head": head} | dict(state or {}))

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint carries; later calls leave it alone."""
        return _copied(self._state)

    def add(self, losses: Sequence[float], accuracies: Sequence[float]) -> None:
        """Takes the losses and accuracies of a dispatch's steps; fewer losses mean that some are not finite."""
        if len(losses) != len(accuracies):
            return
        state = self._state
        state["steps"] += len(losses)
        state["loss"] += sum(losses)
        state["window"] = [state["window"][0] + len(accuracies), state["window"][1] + sum(accuracies)]

    def tell(self, kind: str, text: str) -> list[str]:
        """[text] if nothing of this kind was reported before, else []."""
        if kind in self._state["told"]:
            return []
        self._state["told"][kind] = text
        return [text]

    def check(self, step: int, head: str, validation: Validation | None, *, last: bool = False) -> list[str]:
        """The warnings after a step, a line for each new sign.

        Args:
          step: the phase's step.
          head: the digest of its head.
          validation: of this step, or None.
          last: whether the phase ends here.
        """
        at = f"{self._phase} step {step}"
        lines = self._head(at, head) + self._training(at)
        if validation and validation.ci95 is not None:
            lines += self._at_chance(at, validation, last) + self._falling(at, step, validation)
        self._state["window"] = [0, 0.0]
        return lines

    def _head(self, at: str, head: str) -> list[str]:
        state = self._state
        is_meta = self._phase == "meta"
        name = "head" if is_meta else "classifier"
        if state["steps"] and head and state["head"] == head:
            rate = "config.meta.head_lr" if is_meta else "config.pretrain.lr"
            return self.tell("head", f"{at}: the {name} has not moved since the first step; raise {rate}")
        guessing = -math.log(self._chance.training)
        if not is_meta or state["steps"] < SHORT["meta"]:
            return []
        loss = state["loss"] / state["steps"]
        if abs(loss / guessing - 1) > LOSS_OF_GUESSING:
            return []
        text = (
            f"{at}: the loss has been {loss:.3f} so far, that of guessing: the inner loop does not move the head; "
            "raise config.inner.lr or config.inner.steps"
        )
        return self.tell("head", text)

    def _training(self, at: str) -> list[str]:
        chance, (steps, accuracies) = self._chance.training, self._state["window"]
        predictions = steps * self._per_step
        if self._phase == "meta" or self._state["steps"] < SLOW or predictions * chance < ENOUGH:
            return []
        accuracy = accuracies / steps
        if accuracy > chance + 2 * math.sqrt(chance * (1 - chance) / predictions):
            return []
        text = (
            f"{at}: training is at chance, {_percent(accuracy)} in {steps} steps, where guessing gives "
            f"{_percent(chance)}: check the labels; raise config.pretrain.lr if the loss is {-math.log(chance):.2f}, "
            "that of guessing, and lower it if it is more"
        )
        return self.tell("training", text)

    def _at_chance(self, at: str, validation: Validation, last: bool) -> list[str]:
        state, (score, ci95), chance = self._state, validation, self._chance.validation
        assert ci95 is not None  # as `check` sees to
        if state["steps"] < SHORT[self._phase]:
            return []
        state["validations"] += 1
        # Few tasks tell nothing.
        state["at_chance"] = state["at_chance"] + 1 if score - ci95 <= chance and ci95 <= chance / 4 else 0
        is_clear = last and state["at_chance"] == state["validations"] and ci95 <= chance / 10
        if state["at_chance"] < CHECKS and not is_clear:
            return []
        text = (
            f"{at}: validation is at chance, {_percent(score)} where guessing gives {_percent(chance)}: check the "
            "images and labels (python -m mtl_jax.data check), config.data.mean and std, config.inner.lr and steps, "
            f"config.{self._phase}.lr"
        )
        return self.tell("chance", text)

    def _falling(self, at: str, step: int, validation: Validation) -> list[str]:
        state, (steps, accuracies) = self._state, self._state["window"]
        state["recent"] = [*state["recent"], [step, *validation, accuracies / max(steps, 1)]][-CHECKS:]
        if state["top"] is None or validation.score > state["top"][1]:
            state["top"] = [step, validation.score]
        if len(state["recent"]) < CHECKS:
            return []
        _, scores, intervals, rates = zip(*state["recent"], strict=True)
        score, ci95, accuracy = (sum(values) / CHECKS for values in (scores, intervals, rates))
        # The best mean of several, since the best single one is so by luck as well.
        if state["best"] is None or score > state["best"][1]:
            state["best"] = [state["recent"][CHECKS // 2][0], score, ci95, accuracy]
            return []
        best_step, best, best_ci95, before = state["best"]
        least = max(math.hypot(ci95, best_ci95), POINTS * (best - self._chance.validation))
        if max(scores) > best - least or accuracy <= before:
            return []
        better = {
            "pretrain": "fewer config.pretrain.steps, config.pretrain.augment or config.pretrain.weight_decay",
            "meta": "fewer config.meta.steps, a lower config.meta.lr or config.meta.weight_decay",
        }[self._phase]
        text = (
            f"{at}: validation has fallen from {_percent(best)} around step {best_step} to {_percent(score)} while "
            f"training accuracy rose from {_percent(before)} to {_percent(accuracy)}, a sign of overfitting; "
            f"{better} may help, and config.{self._phase}.select='best' takes the checkpoint of step {state['top'][0]}"
        )
        return self.tell("falling", text)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**state, "told": dict(state["told"])}  # all else is replaced, never changed


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"

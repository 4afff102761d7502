"""Choosing an inner loop on validation tasks: its learning rate and its number of steps."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from mtl_jax.evaluation import Protocol


def choose_inner(
    protocol: Protocol,
    accuracies: Callable[[Protocol], np.ndarray],
    rates: Iterable[float],
    steps: Collection[int] = (),
) -> Protocol:
    """The protocol with the inner learning rate and number of steps that are best on validation tasks.

    Args:
      protocol: the protocol of the test; each rate is tried with as many inner steps as it has.
      accuracies: a protocol's accuracies on validation tasks after every inner step, [tasks, steps + 1].
      rates: the rates to try.
      steps: the numbers of steps to choose from; every number from 1 on where it is empty. Ties go to fewer steps.
    """
    scores: dict[tuple[float, int], Any] = {}
    descent: Any = protocol.inner  # with a rate and steps
    for rate in rates:
        inner = descent._replace(lr=rate)
        means = np.asarray(accuracies(protocol._replace(inner=inner))).mean(0)
        for count in steps or range(1, len(means)):
            scores[float(means[count]), -count] = inner._replace(steps=count)
    return protocol._replace(inner=scores[max(scores)])

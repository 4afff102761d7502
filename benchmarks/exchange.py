"""What the devices of a step send one another, from the step's trace."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mtl_jax.train.cost import Trace


class Exchange(NamedTuple):
    """What devices tell each other. bytes: what each of them puts in. rounds: all-reduces that wait for one another."""

    bytes: int
    rounds: int


def exchange(function: Callable[..., Any], *arguments: Any, axis: str, devices: int) -> Exchange:
    """What `function(*arguments)` sums or averages over a mapped axis of that many devices. Nothing is compiled.

    Sums that do not wait for one another count as one round: compilers join them.
    """
    trace = Trace(jax.make_jaxpr(function, axis_env=[(axis, devices)])(*arguments).jaxpr)
    rounds, sent = {}, 0
    for step in trace.steps:
        is_sum = step.name == "psum"
        before = max((rounds.get(array, 0) for array in step.reads), default=0)
        sent += sum(trace.sizes[array] for array in step.reads) * is_sum
        rounds.update(dict.fromkeys(step.makes, before + is_sum))
    return Exchange(sent, max(rounds.values(), default=0))

"""What a training step sends between devices, and what it costs: an estimate on paper, of shapes and assumed rates.

python -m benchmarks.communication [--tflops=371] [--nvlink=200] [--network=12.5] ...

Bytes and operations are those of the traced step (`mtl_jax.train.cost`). Nothing is sent or computed; rates are flags.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from mtl_jax.configs import glyphs, miniimagenet

from benchmarks.exchange import Exchange, exchange
from mtl_jax import parallel
from mtl_jax.config import build
from mtl_jax.train import cost, plan

DEVICES = (8, 64, 512)
CLASSES = 64  # of the base split: the width of pre-training's classifier


class Rates(NamedTuple):
    """The assumptions, in SI units.

    flops: a device's operations a second. least: seconds that a step takes however little it computes. inside, between:
    bytes a second of a device to the others of its host, and of a host to others. near, far: seconds that a message
    takes there. each: devices of a host.
    """

    flops: float
    least: float
    inside: float
    between: float
    near: float
    far: float
    each: int


class Phase(NamedTuple):
    """A step on one device: what it works on, its operations, bytes by what they are, all-reduces in a row."""

    network: str
    what: str
    flops: float
    parts: dict[str, int]
    sent: Exchange


def all_reduce_seconds(sent: Exchange, devices: int, rates: Rates) -> float:
    """The time of a step's sums over `devices`: within each host, among the hosts (by one network card each), back.

    A sum of B bytes over n partners moves 2 (n - 1) / n B of them past the slowest link, in 2 log2(n) messages.
    """
    here, hosts = min(devices, rates.each), math.ceil(devices / rates.each)
    moved = 2 * (here - 1) / here / rates.inside + 2 * (hosts - 1) / hosts / rates.between
    return sent.bytes * moved + sent.rounds * 2 * (math.log2(here) * rates.near + math.log2(hosts) * rates.far)


def efficiency(phase: Phase, devices: int, rates: Rates) -> float:
    """The part of a step that is not spent on sums, none of which is hidden behind the computation."""
    seconds = max(phase.flops / rates.flops, rates.least)
    return seconds / (seconds + all_reduce_seconds(phase.sent, devices, rates))


def settings() -> dict[str, tuple[ConfigDict, tuple[int, int, int]]]:
    """The networks: a config each, and the shape of its stored images."""
    found = {"conv4, 28 px": (glyphs.get_config("1shot"), (28, 28, 1))}
    for name, preset, side in (
        ("resnet12", "tensorflow", 84),
        ("resnet18", "tensorflow", 84),
        ("resnet25", "pytorch", 92),
    ):
        config = miniimagenet.get_config(f"{preset},1shot,{name}")
        seen = config.backbone.resize if name == "resnet18" else config.data.crop or side
        found[f"{name}, {seen} px"] = config, (side, side, 3)
    return found


def meta_phase(name: str, config: ConfigDict, shape: Sequence[int], tasks: int) -> Phase:
    """Meta-training, so many tasks a device."""
    recipe = build.meta_training(config)
    step, arguments = plan.meta_step(recipe, _split(shape), tasks)
    state = arguments[0]
    phi = {name: tree for name, tree in state.learned.items() if name != "head"}
    moves = config.meta.batch_norm == "train"  # frozen averages stay where they are
    parts = {"Φ": _bytes(phi), "BN": _bytes(state.batch_stats) if moves else 0, "head": _bytes(state.learned["head"])}
    flops = cost.estimate(step, *arguments).flops
    return Phase(name, f"meta, tasks: {tasks}", flops, parts, _exchange(plan.meta_step, recipe, shape, tasks))


def pretrain_phase(name: str, config: ConfigDict, shape: Sequence[int], images: int) -> Phase:
    """Pre-training; batch norm's statistics are those of all devices' images."""
    recipe = build.pretraining(config)
    step, arguments = plan.pretrain_step(recipe, _split(shape), images)
    params = arguments[0].params
    parts = {"Θ": _bytes(params["backbone"]), "classifier": _bytes(params["classifier"])}
    flops, sent = cost.estimate(step, *arguments).flops, _exchange(plan.pretrain_step, recipe, shape, images)
    parts["BN"] = sent.bytes - sum(parts.values())
    return Phase(name, f"pre-training, images: {images}", flops, parts, sent)


def _exchange(make: Callable[..., Any], recipe: Any, shape: Sequence[int], amount: int) -> Exchange:
    step, arguments = make(recipe, _split(shape), amount, parallel.AXIS)
    return exchange(step, *arguments, axis=parallel.AXIS, devices=8)


def _split(shape: Sequence[int]) -> SimpleNamespace:
    return SimpleNamespace(images=np.broadcast_to(np.uint8(0), (1, *shape)), class_names=("",) * CLASSES)


def _bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def markdown(phases: Sequence[Phase], rates: Rates) -> str:
    """The table."""
    titles = ["network", "step on a device", "GFLOP", "sent", "of it", "rounds", *(f"at {n} devices" for n in DEVICES)]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for phase in phases:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in phase.parts.items() if size)
        shares = (f"{100 * efficiency(phase, n, rates):.1f} %" for n in DEVICES)
        cells = [phase.network, phase.what, _gigaflops(phase.flops), _size(phase.sent.bytes), parts]
        lines.append(f"| {' | '.join([*cells, str(phase.sent.rounds), *shares])} |")
    return "\n".join(lines)


def _gigaflops(flops: float) -> str:
    return f"{flops / 1e9:,.{0 if flops > 1e11 else 2}f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.2f} kB"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags = {
        "tflops": (371.0, 1e12, "operations a second of a device, in 10^12"),
        "least_ms": (1.0, 1e-3, "the least time of a step"),
        "nvlink": (200.0, 1e9, "GB/s of a device to the others of its host"),
        "network": (12.5, 1e9, "GB/s of a host to the others"),
        "near_us": (5.0, 1e-6, "a message's time within a host"),
        "far_us": (20.0, 1e-6, "a message's time between hosts"),
    }
    for name, (value, _, about) in flags.items():
        parser.add_argument(f"--{name}", type=float, default=value, help=about)
    for name, value, about in (
        ("each", 8, "devices of a host"), ("tasks", 1, "of a device"), ("images", 64, "of a device, in pre-training")
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=about)
    given = vars(parser.parse_args())
    rates = Rates(*(given[name] * unit for name, (_, unit, _) in flags.items()), given["each"])
    found = settings().items()
    phases = [meta_phase(name, *setting, given["tasks"]) for name, setting in found]
    phases += [pretrain_phase(name, *setting, given["images"]) for name, setting in found]
    print(markdown(phases, rates))


if __name__ == "__main__":
    main()

"""`python -m results keep`: tests trained runs on the frozen tasks and keeps the rows of one table."""

import argparse
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import jax

from mtl_jax import ablation, config, metrics, parallel, workdir
from mtl_jax.config import build, run_data
from mtl_jax.errors import ConfigError
from results import measure

FOLDER = Path(__file__).parent
SOURCES = {
    "fc100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, unpacked into D/cifar-100-python",
    "omniglot": "https://github.com/brendenlake/omniglot: images_background.zip and images_evaluation.zip in D",
    "glyphs": "embedded in the package",
}
REDUCED = {"omniglot": "28 x 28 pixels, 1 bit", "fc100": "no; 32 x 32 pixels as they are", "glyphs": "no"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "--run", action="append", required=True, metavar="ROW[+VARIANT]=WORKDIR", help="the first is compared to"
    )
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--shot", type=int, required=True)
    parser.add_argument("--commit", required=True, help="that the runs were trained with")
    parser.add_argument("--note", default="", help="what else must be said of these rows")


def main(flags: argparse.Namespace) -> int:
    """Tests the runs in order and writes a JSON file and a weight file for each."""
    runs, first, dataset = [word.split("=", 1) for word in flags.run], None, None
    for row, path in runs:
        row, _, variant = row.partition("+")
        if row not in ablation.ROWS:
            raise ConfigError(f"--run={row}={path}: expected ROW=WORKDIR with a row of {', '.join(ablation.ROWS)}")
        place = workdir.Workdir(path)
        dataset = dataset or build.dataset(config.read(place.config).data)
        run_data.check(dataset, place, "test")
        started = time.monotonic()
        kept = measure.load(row, path, dataset, way=flags.way, shot=flags.shot)
        measured = measure.test(kept, dataset)
        _write(row, variant, Path(path), kept, measured, first, flags, time.monotonic() - started)
        first = measured if first is None else first
    return 0


def _write(
    row: str, variant: str, path: Path, kept: Any, measured: Any, first: Any, flags: argparse.Namespace, spent: float
) -> None:
    name = row_name(row, variant, kept.settings, flags.way, flags.shot)
    weights = measure.weights_path(name)
    about = {
        "commands": _commands(path), "commit": {"training": flags.commit},
        "minutes_training": minutes(path, _phase(row)), "seconds_testing": round(spent, 1), "device": device(),
        "weights": weights,
        "weights_sha256": measure.keep(kept, FOLDER / weights), "weights_bytes": (FOLDER / weights).stat().st_size,
        "note": flags.note,
    }  # fmt: skip
    record = record_of(row, variant, kept, measured, first) | about
    workdir.write_json_atomic(FOLDER / f"{name}.json", record)
    mean = record["figures"][0]
    print(f"{name}: {metrics.in_percent(mean['accuracy'], mean['ci95'])} %", flush=True)


def row_name(row: str, variant: str, settings: Any, way: int, shot: int) -> str:
    """The name of a row's file."""
    backbone = settings["backbone"]
    network = backbone["name"] + (f"-w{backbone['width']:g}" if backbone["width"] != 1 else "")
    name = f"{settings['data']['name']}-{network}-{way}way-{shot}shot-{row}"
    return name + (f"-{variant.replace(' ', '_')}" if variant else "") + f"-seed{settings['seed']}"


def record_of(row: str, variant: str, kept: Any, measured: Any, first: Any) -> dict[str, Any]:
    """What a row's file says of the network and its figures, `first` being what it is compared to."""
    facts = measure.facts(kept, measured)
    label = ablation.ROWS[row].label + (f"; {variant}" if variant else "")
    return {
        "row": row, "variant": variant, "label": label, **facts, "figures": measure.figures(measured, first),
        "source": SOURCES.get(facts["data"], ""), "reduced": REDUCED.get(facts["data"], ""),
    }  # fmt: skip


def _commands(path: Path) -> list[str]:
    """The commands that trained a run, its pre-training's first, with this machine's paths replaced."""
    settings = config.read(workdir.Workdir(path).config)
    init = settings.pretrain.init
    before = _commands(Path(init)) if init else []
    lines = [json.loads(line) for line in workdir.Workdir(path).commands.read_text().splitlines()]
    commands = dict.fromkeys(_without_paths(line["command"]) for line in lines if "train" in line["command"][:24])
    return [*before, *commands]


def _without_paths(command: str) -> str:
    command = re.sub(r"--config\.data\.path=\S+", "--config.data.path=D", command)
    command = re.sub(r"--config\.pretrain\.init=\S*/", "--config.pretrain.init=runs/", command)
    return re.sub(r"--workdir=\S*/", "--workdir=runs/", command)


def _phase(row: str) -> str:
    """The phase that a row was trained by."""
    return "pretrain" if ablation.ROWS[row].learn == "none" else "meta"


def minutes(path: Path, phase: str) -> float:
    """Wall time of a run's phase, from its rates file: what ran beside it counts, too."""
    lines = [json.loads(line) for line in workdir.Workdir(path).timing.read_text().splitlines()]
    return round(max((line.get(f"{phase}/seconds", 0.0) for line in lines), default=0.0) / 60, 1)


def device() -> str:
    """What a figure's times were taken on."""
    if not parallel.on_cpu():
        return jax.devices()[0].device_kind
    return f"CPU, {os.cpu_count()} cores ({platform.machine()}), shared with other work"

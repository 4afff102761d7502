"""The end of a report: what the run cost, and everything that is needed to get its result again."""

import importlib.metadata
import json
import platform
import re
import shlex

from mtl_jax import config
from mtl_jax.launch import environment
from mtl_jax.report import history, html
from mtl_jax.report.measure import Tested

PACKAGES = ("mtl_jax", "jax", "jaxlib", "flax", "optax", "numpy", "matplotlib", "pillow")
_TRAINING = re.compile(r"python (-m mtl_jax\.train|train\.py) ")  # of the commands in a workdir


def costs(tested: Tested) -> str:
    """Time and memory of the run's phases as HTML."""
    rows = []
    for phase, costs in history.costs(tested.place.timing).items():
        memory = "; ".join(f"{value:,.0f} MB ({name.removesuffix('_memory_mb').replace('_', ' ')})"
                           for name, value in costs.items() if name != "seconds")  # fmt: skip
        seconds = costs.get("seconds", 0)
        duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
        rows.append((history.PHASES.get(phase, phase), duration, memory or "not recorded"))
    return html.table(("phase", "time", "peak memory"), rows) if rows else ""


def origin(tested: Tested) -> str:
    """Data, versions, commands and config of a result as HTML."""
    path = tested.place.path
    started = history.commands(tested.place)
    ran = [f"{record['command']}   # {record['time']}" for record in started]
    f = tested.facts
    sizes = [f"--{name}={f[name]}" for name in ("split", "num_tasks", "way", "shot")]
    is_other = f["trained_on"] and f["trained_on"][0]["fingerprint"] != f["fingerprint"]
    other = [f"--data={tested.settings.data.name}:{tested.settings.data.path}"] if is_other else []
    again = shlex.join(["python", "evaluate.py", f"--workdir={path}", *other, *sizes])
    trained = ", ".join(f"{one['dataset']} {one['fingerprint']}" for one in f["trained_on"] or ()) or "not known"
    trained_with = dict.fromkeys(
        environment.describe_devices(record)
        for record in started if "device" in record and _TRAINING.match(record["command"])
    )  # fmt: skip
    rows = [
        ("data set", f"{tested.dataset.name}, {tested.dataset.format}"), ("data fingerprint", f["fingerprint"]),
        ("trained on", trained), ("trained with", ", ".join(trained_with) or "not known"),
        ("tested with", environment.describe_devices(environment.device_facts())),
        ("episodes (SHA-256)", f["episodes"]), ("Python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in PACKAGES),
    ]  # fmt: skip
    settings = config.to_json(tested.settings)
    parts = [
        html.table(("what", "value"), rows),
        html.code("\n".join([*ran, again])),
        html.folded("Versions at each start", html.code("\n".join(map(json.dumps, started)))) if started else "",
        html.folded("Config", html.table(("key", "value"), [(k, json.dumps(v)) for k, v in html.dotted(settings)])),
    ]
    return "".join(parts)

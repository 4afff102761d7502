"""The JSON files of the folder, and the tables made of them and of nothing else."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax import ablation, metrics
from mtl_jax.metrics import in_percent
from mtl_jax.words import counted

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
NOT_RUN, PUBLISHED = FOLDER / "not_run.json", FOLDER / "published.json"
EFFECTS, ABLATION, LEARNERS, LADDER, SWEEP, PRETRAINED = (
    FOLDER / name for name in ("effects", "ablation", "learners", "ladder", "sweep", "pretrained")
)
OPTIONS = FOLDER / "options" / "glyphs-1shot.json"
# The tables: their page, and the name of the markers between which they stand there.
PLACES = {
    "short": ("README.md", "results"),
    "long": ("docs/results.md", "results"),
    "effects": ("docs/results.md", "effects"),
    "ablation": ("docs/results.md", "ablation"),
    "learners": ("docs/results.md", "learners"),
    "options": ("docs/fidelity.md", "options"),
    "ladder": ("docs/results.md", "ladder"),
    "sweep": ("docs/meta_training.md", "sweep"),
    "pretrained": ("docs/results.md", "pretrained"),
}
ORDER = ("train_head", "ft_all", "ss_all", "ss_all_hard")


def measured_rows() -> dict[str, dict[str, Any]]:
    """The records of all measured rows by name, in the tables' order."""
    paths = set(FOLDER.glob("*.json")) - {NOT_RUN, PUBLISHED}
    found = {path.stem: json.loads(path.read_text()) for path in paths}
    return dict(sorted(found.items(), key=lambda item: _place(item[1])))


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    row = ORDER.index(record["row"]) if record["row"] in ORDER else len(ORDER)
    network = record["data"], record["backbone"], record["width"]
    return *network, record["seed"], record["way"], record["shot"], record.get("variant", ""), row


def short_table() -> str:
    """README's: the rows of published.json, what was published beside what was measured over 10,000 tasks."""
    columns = "5-way", "method", "published, 1 / 5-shot", "measured, 1-shot", "measured, 5-shot", "seed", "trained on"
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    measured = measured_rows()
    for row in json.loads(PUBLISHED.read_text()):
        published = f"{' / '.join(row['published'])} %" if "published" in row else "-"
        records = [measured[row["measured"].format(shot)] for shot in (1, 5)] if "measured" in row else []
        figures = [_cell(record["figures"][1]) for record in records] or ["not run", "not run"]
        seed, device = (str(records[0]["seed"]), records[0]["device"].split(",")[0]) if records else ("", "")
        lines.append("| " + " | ".join([row["what"], row["row"], published, *figures, seed, device]) + " |")
    return "\n".join(lines)


def _network(record: Mapping[str, Any]) -> str:
    width = f" (width {record['width']:g})" if record["width"] != 1 else ""
    seed = f", seed {record['seed']}" if record["seed"] else ""
    return f"{record['data']}, `{record['backbone']}`{width}, {record['way']}-way{seed}"


def _cell(figure: Mapping[str, Any]) -> str:
    return f"{in_percent(figure['accuracy'], figure['ci95'])} %"


def long_table() -> str:
    """The page's: a line a row and shot, with the difference to the first row over 10,000 tasks, then what to run."""
    columns = "data, network", "shot", "row", "600 tasks", "10,000 tasks", "difference to the first row", "inner loop"
    columns += ("training", "file")
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for name, record in measured_rows().items():
        few, many = record["figures"]
        inner = f"{record['inner_steps']} steps at {record['inner_lr']:.3g}"
        cells = _network(record), record["shot"], record["label"], _cell(few), _cell(many), _difference(many), inner
        device = "" if record["device"].startswith("CPU") else f", {record['device']}"
        cells += (f"{record['minutes_training']:g} min{device}", f"[json](../results/{name}.json)")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", "Not run:", "", *_not_run()])


def _difference(figure: Mapping[str, Any]) -> str:
    if "difference" not in figure:
        return "-"
    return in_percent(figure["difference"], figure["difference_ci95"], "+")


def _not_run() -> list[str]:
    rows = json.loads(NOT_RUN.read_text())
    lines = ["| data, network | shot | needs | command |", "| --- | --- | --- | --- |"]
    return lines + [f"| {row['what']} | {row['shot']} | {row['needs']} | `{row['command']}` |" for row in rows]


def effects_table() -> str:
    """The page's: what options of evaluation change, a line a network and variant."""
    columns = "data, network", "row", "shot", "evaluation", "10,000 tasks", "difference to the first row", "inner loop"
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for name, record in measured_rows().items():
        path = EFFECTS / f"{name}.json"
        for entry in json.loads(path.read_text())["variants"] if path.exists() else ():
            options = ", ".join(f"`{key}={value}`" for key, value in entry["options"].items())
            inner = f"{entry['inner_steps']} steps at {entry['inner_lr']:.3g}"
            cells = _network(record), record["label"], record["shot"], f"{entry['label']} {options}".strip()
            lines.append("| " + " | ".join(map(str, (*cells, _cell(entry), _difference(entry), inner))) + " |")
    return "\n".join(lines)


def ablation_tables(folder: Path) -> str:
    """A table a run of `python -m mtl_jax.ablation`: of the paper's rows, or of base-learners."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        lines += [f"`{run['command']}`, {run['minutes']:g} minutes:", "", ablation.markdown(run["rows"])]
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def options_table() -> str:
    """What single options change on glyphs: a line a variant."""
    command = "`python -m results options --workdir=runs/options`"
    if not OPTIONS.exists():
        return f"Not run: {command}"
    run, lines = json.loads(OPTIONS.read_text()), [f"{command}:", ""]
    columns = "changed", f"{run['num_tasks']:,} tasks", "difference to the first row", "inner loop at test"
    lines += ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for entry in run["variants"]:
        options = ", ".join(f"`{key}={value}`" for key, value in entry["options"].items()) or "nothing"
        cells = options, _cell(entry), _difference(entry), f"{entry['inner_steps']} steps at {entry['inner_lr']:.3g}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ladder_table() -> str:
    """FC100's recipe, a line a rung and seed; differences are paired over 10,000 tasks to the rung it is built on."""
    columns = "part", "width, epochs, seed", "1-shot", "difference", "5-shot", "difference"
    columns += ("logistic", "centroids", "features as they are", "training")
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    found = [json.loads(path.read_text()) for path in LADDER.glob("*.json")]
    for record in sorted(found, key=_ladder_place):
        below = LADDER / f"{ladder_name(record['after'], record)}.npz"
        by_head = {(entry["head"], entry["shot"]): entry for entry in record["entries"]}
        cells = [record["label"], f"{record['width']:g}, {record['epochs']}, {record['seed']}"]
        for shot in (1, 5):
            cells.append(_cell(by_head["mtl", shot]))
            cells.append(_ladder_difference(record, below, f"{shot}-mtl") if below.exists() else "-")
        for head in ("logistic", "centroid", "mtl_plain"):
            cells.append(" / ".join(f"{100 * by_head[head, shot]['accuracy']:.2f}" for shot in (1, 5)))
        lines.append("| " + " | ".join([*cells, f"{record['minutes_training']:g} min"]) + " |")
    return "\n".join(lines) if found else "Not run."


def ladder_name(rung: str | None, like: Mapping[str, Any]) -> str:
    """The name of a rung's record with the width, epochs and seed of another."""
    return f"fc100-w{like['width']:g}-{like['epochs']}epochs-{rung}-seed{like['seed']}"


def _ladder_place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["width"], record["epochs"], record["seed"], record["number"]


def _ladder_difference(record: Mapping[str, Any], below: Path, key: str) -> str:
    rungs = LADDER / f"{ladder_name(record['rung'], record)}.npz", below
    own, other = (np.load(path)[key] / record["queries"] for path in rungs)
    difference = metrics.paired_difference(own, other)
    return f"{100 * difference.mean:+.2f} ± {100 * difference.ci95:.2f}"


def sweep_table() -> str:
    """What meta-training adds by validation, a line a variant."""
    found = [json.loads(path.read_text()) for path in sorted(SWEEP.glob("*.json"))]
    columns = "variant", "changed", "shot, seed", "before", "best", "gain", "tasks until then"
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for record in sorted(found, key=lambda r: (r["width"], r["seed"], r["shot"], -r["best"])):
        options = ", ".join(f"`{key}={value}`" for key, value in record["options"].items()) or "nothing"
        cells = (ablation.ROWS[record["row"]].label, options, f"{record['shot']}, {record['seed']}")
        figures = (f"{100 * record[name]:.2f} %" for name in ("before", "best"))
        gain = f"{100 * (record['best'] - record['before']):+.2f}"
        lines.append(
            "| " + " | ".join([*cells, *figures, gain, str(record["best_step"] * record["tasks_per_step"])]) + " |"
        )
    return "\n".join(lines) if found else "Not run."


def pretrained_table() -> str:
    """MTL on a network of others, a table a data set and shot."""
    lines = []
    for path in sorted(PRETRAINED.glob("*.json")):
        record = json.loads(path.read_text())
        device = "" if record["device"] == "cpu" else f" on {record['device']}"
        lines += [f"{record['data']}, {record['way']}-way {record['shot']}-shot, `{record['command']}`, "
                  f"{record['minutes']:g} minutes{device}:", "", pretrained_rows(record), ""]  # fmt: skip
    return "\n".join(lines).rstrip("\n") or "Not run."


def pretrained_rows(record: Mapping[str, Any]) -> str:
    """The table of one record of `results.pretrained`."""
    seeds, tasks = counted(len(record["seeds"]), "seed"), record["num_tasks"]
    columns = "row", "learned below the head", f"accuracy, mean of {seeds}, {tasks:,} tasks"
    columns += ("more than the first row, paired", "of each seed", "interval over seeds", "inner loop of seed 0")
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for number, row in enumerate(record["rows"]):
        cells = [row["label"], f"{row['learned']:,}", _cell(row), "-", "-", "-"]
        if number:
            spread = row["difference_seeds_ci95"]
            cells[3:] = [
                _difference(row), ", ".join(f"{100 * one['difference']:+.2f}" for one in row["seeds"]),
                "-" if spread is None else f"± {100 * spread:.2f}",
            ]  # fmt: skip
        cells.append(f"{row['seeds'][0]['inner_steps']} steps at {row['seeds'][0]['inner_lr']:.3g}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {
    "short": short_table,
    "long": long_table,
    "effects": effects_table,
    "ablation": functools.partial(ablation_tables, ABLATION),
    "learners": functools.partial(ablation_tables, LEARNERS),
    "options": options_table,
    "ladder": ladder_table,
    "sweep": sweep_table,
    "pretrained": pretrained_table,
}


def with_table(text: str, table: str, marker: str) -> str:
    """A page with the table put between its markers. Raises ValueError where it has none."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    return f"{before}{begin}{table}\n{end}{after}"


def write_tables() -> None:
    """Writes all tables into their pages."""
    for kind, (page, marker) in PLACES.items():
        path = ROOT / page
        path.write_text(with_table(path.read_text(), TABLES[kind](), marker))

"""The result's file as a Markdown table, or in three sentences, and the pages that carry either between two markers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
SUMMARY = "<!-- bench: summary -->", "<!-- bench: summary end -->"


class PageError(ValueError):
    """A page without the two markers."""


def seconds(value: float) -> str:
    """Three digits and a unit: 12.3 s, 45.6 ms, 3.2 h."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (600, 1, "s"), (6000, 1 / 60, "min")):
        if value < limit:
            return f"{_digits(value * factor)} {unit}"
    return f"{_digits(value / 3600)} h"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def gigabytes(value: float | None) -> str:
    """Bytes in units of 10^9."""
    return "" if value is None else f"{value / 1e9:.2f} GB"


def markdown(results: Mapping[str, Any]) -> str:
    """The table with the machine's line before it and the rivals' settings after it."""
    titles = ("row", "what", "mtl_jax", "against", "", "times as fast", "of the limit", "i: peak memory")
    lines = [_machine(results), "", f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    lines += [_line(result) for result in results["rows"]]
    settings = {result["row"]: result.get("rival_setting") for result in results["rows"]}
    used = "; ".join(f"{row}: {setting}" for row, setting in settings.items() if setting)
    return "\n".join([*lines, *(["", f"PyTorch's fastest setting: {used}."] if used else [])])


def _machine(results: Mapping[str, Any]) -> str:
    m = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    rate = results["matmul_flops_per_second"] / 1e9
    note = "Tiny sizes, which say nothing about speed. " if results["quick"] else ""
    accelerator = f"{m['accelerator']}; " if m.get("accelerator") else ""
    dtype, times = m.get("dtype", "float32"), m.get("times", 1)
    note += "Networks and the limit in bfloat16. " if dtype == "bfloat16" else ""
    note += f"Rows a, b and c with {times} times the tasks or images. " if times > 1 else ""
    return (
        f"{note}{accelerator}{m['processor']}, {m['cores']} cores, {m['memory_bytes'] / 1e9:.0f} GB, {m['system']}; "
        f"Python {m['python']}, {versions}; commit {m['commit']}. "
        f"The limit: matrix products at {rate:.0f} GFLOP/s. The whole run took {results['total_seconds'] / 60:.1f} min."
    )


def _line(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return f"| {result['row']} | {result['what']} | failed | | | | | |"
    rival = "rival_seconds" in result
    memory = " / ".join(gigabytes(result[key]) for key in ("peak_bytes", "rival_peak_bytes") if key in result)
    cells = [
        result["row"], result["what"], seconds(result["seconds"]),
        result["against"] if rival else "", seconds(result["rival_seconds"]) if rival else "",
        f"{_digits(result['ratio'])}" if rival else "",
        f"{100 * result['fraction']:.0f} %" if "fraction" in result else "", memory,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def summary(results: Mapping[str, Any]) -> str:
    """README's three sentences: what a user gains, and where PyTorch is faster. Wants rows a to e."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for result in results["rows"]:
        rows.setdefault(result["row"], []).append(result)
    from_images = [row for row in rows["e"] if row["what"].startswith("600 ")]
    (ready,) = (row for row in rows["e"] if "rival_seconds" not in row)
    of_pytorch = [row for row in rows["d"] if str(row.get("against", "")).startswith("PyTorch")]
    whole, alone = (_range(row["ratio"] for row in chosen) for chosen in (from_images, of_pytorch))
    slower = _range(rows[letter][0]["ratio"] for letter in "abc")
    cores, images = results["machine"]["cores"], from_images[0]["seconds"]
    return (
        f"On {cores} CPU cores, 10,000 test tasks take {ready['seconds']:.1f} s once the features are there; 600 tasks "
        f"from images to accuracy take {images:.0f} s; PyTorch takes {whole} times as long when it embeds "
        "the images again for every task, as both of the authors' implementations do.\n"
        f"Adapting heads to stored features is {alone} times as fast as in PyTorch: the lower figure with all tasks in "
        "one PyTorch batch, the higher task by task.\n"
        f"Training steps of the ResNets on a CPU are slower than PyTorch's, at {slower} times its speed."
    )


def _range(values: Iterable[float]) -> str:
    low, *_, high = sorted(values)
    return f"{low:.2f} to {high:.2f}" if high < 1 else f"{low:.0f} to {high:.0f}"


def carried(page: Path, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """What a page has between two markers. Raises PageError where it has not both."""
    return _parts(page, markers)[1].strip()


def insert(page: Path, results: Mapping[str, Any]) -> None:
    """Puts the summary between a page's markers if it has those, else the table. Raises PageError without either."""
    is_short = SUMMARY[0] in page.read_text(encoding="utf-8")
    before, _, after = _parts(page, SUMMARY if is_short else (BEGIN, END))
    page.write_text(f"{before}\n{summary(results) if is_short else markdown(results)}\n{after}", encoding="utf-8")


def _parts(page: Path, markers: tuple[str, str]) -> tuple[str, str, str]:
    text, (begin, end) = page.read_text(encoding="utf-8"), markers
    if text.count(begin) != 1 or text.count(end) != 1:
        raise PageError(f"{page}: needs the lines {begin} and {end}, once each")
    before, rest = text.split(begin)
    inside, after = rest.split(end)
    return before + begin, inside, end + after

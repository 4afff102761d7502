"""Writes a notebook beside each script of this folder: `python examples/notebooks.py`. A test compares them.

A script is divided at its lines `# %% Title` and `# %% [markdown]`. The first cell installs the package, so that a
notebook also runs on a hosted service.
"""

import configparser
import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent


def address() -> str:
    """The repository's, from setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(FOLDER.parent / "setup.cfg", encoding="utf-8")
    return setup["metadata"]["url"]


def scripts() -> list[Path]:
    """The examples."""
    return sorted(path for path in FOLDER.glob("*.py") if path != Path(__file__))


def notebook(script: Path) -> str:
    """A script as the text of a notebook, without outputs."""
    cells = [("code", f"%pip install -q git+{address()}")]
    for part in re.split(r"^# %% ?", script.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        if title == "[markdown]":
            cells.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()))
        else:
            cells.append(("code", f"# {title}\n{body}".strip()))
    content = {
        "cells": [_cell(number, kind, text) for number, (kind, text) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, kind: str, text: str) -> dict[str, object]:
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook(script), encoding="utf-8")

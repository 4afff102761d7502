"""The tables of keys in docs/configs.md, from configs/default.py: python tests/docs_configs.py writes them anew."""

import re
from pathlib import Path

from mtl_jax.configs import default

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configs.md"
BEGIN, END = "<!-- keys: python tests/docs_configs.py -->\n", "<!-- /keys -->\n"


def tables() -> str:
    """A table a group: key, default, and the comment beside it in configs/default.py."""
    config = default.get_config()
    source = (ROOT / "configs" / "default.py").read_text()
    lines = [f"\n`seed`: {_comment(source, 'config.seed = ')}; default `{config.seed}`."]
    for group in re.findall(r"config\.(\w+) = _\1\(\)", source):
        part = source[source.index(f"def _{group}() ") :].partition("\n\n\n")[0]
        lines += [f"\n### {group}\n", f"| `{group}` | default | |", "| --- | --- | --- |"]
        for key, value in sorted(config[group].items(), key=lambda item: part.index(f'"{item[0]}": ')):
            lines += _rows(part, f"{group}.{key}", key, value)
    return "\n".join(lines) + "\n\n"


def _rows(source: str, name: str, key: str, value) -> list[str]:
    if hasattr(value, "items"):
        inner = source[source.index(f'"{key}": {{') :]
        return [row for each, held in value.items() for row in _rows(inner, f"{name}.{each}", each, held)]
    written = "unset" if value is None else f"`{value}`" if value != "" else "`''`"
    meaning = _comment(source, f'"{key}": ')
    return [f"| `{name}` | {written} | {meaning} |"]


def _comment(source: str, start: str) -> str:
    line = next(line for line in source.split("\n") if line.strip().startswith(start))
    found = re.search(r"  # (.+)$", line)
    return found[1].replace("|", "\\|") if found else ""


def written(text: str) -> str:
    """The page's text with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))

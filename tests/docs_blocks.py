"""README and docs/ as the tests read them: their code blocks, what kind each is, and what it needs.

A block is fenced (``` or ~~~) or indented by four spaces. Its language says what it is; where there is none, a block is
commands if each of its commands begins with a known program. `<!-- needs: gpu -->` on the line before a block says that
it cannot run in CI, and `<!-- run -->` that its training is short and runs in full instead of with --dry_run.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = (  # `make site` writes index.md
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.name != "index.md"),
)
NEEDS = ("gpu", "cluster", "download", "time", "browser")
SHELL, PYTHON = ("sh", "bash", "shell"), ("python", "py")
DATA = ("text", "json", "toml", "yaml", "csv", "console", "html")  # shown, not run
PROGRAM = re.compile(r"(\w+=\S* )*(python3?|make|pip|git|tensorboard|kill|\.venv/bin/\w+|\.ci/run|srun|sbatch|ssh) ?")
_MARK = re.compile(r"<!--\s*(needs:\s*([\w, ]+?)|run)\s*-->")


class Block(NamedTuple):
    """A block of code: where it begins, its language as written, its text, what it needs, whether it runs in full."""

    page: str
    line: int
    language: str
    text: str
    needs: tuple[str, ...] = ()
    in_full: bool = False

    @property
    def kind(self) -> str:
        """'shell', 'python', 'data', or '' where that cannot be told."""
        if self.language:
            known = {"shell": SHELL, "python": PYTHON, "data": DATA}
            return next((kind for kind, names in known.items() if self.language in names), "")
        return "shell" if all(PROGRAM.match(command) for command in commands(self)) else ""


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in its order."""
    found, lines, number, mark = [], (ROOT / page).read_text().split("\n"), 0, ""
    while number < len(lines):
        line = lines[number]
        fence = re.match(r"( *)(```+|~~~+)\s*(\w*)", line)
        is_indented = line.startswith("    ") and not lines[number - 1].strip() and not _in_list(lines, number)
        if not fence and not is_indented:
            mark = line if _MARK.search(line) else mark if not line.strip() else ""
            number += 1
            continue
        begin = number + 1
        if fence:
            number = next(n for n in range(begin, len(lines)) if lines[n].strip() == fence[2])
            text = "\n".join(part.removeprefix(fence[1]) for part in lines[begin:number])
            number += 1
        else:
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            text = "\n".join(part[4:] for part in lines[begin - 1 : number]).rstrip("\n")
        found.append(Block(page, begin, fence[3] if fence else "", text, *_marks(mark)))
        mark = ""
    return found


def _in_list(lines: list[str], number: int) -> bool:
    """Whether an indented line goes on an item of a list."""
    before = next((line for line in reversed(lines[:number]) if line.strip() and not line.startswith("    ")), "")
    return bool(re.match(r" *([-*]|\d+\.) ", before))


def _marks(line: str) -> tuple[tuple[str, ...], bool]:
    found = _MARK.search(line)
    if not found or not found[2]:
        return (), found is not None
    return tuple(re.split(r"[, ]+", found[2])), False


def commands(block: Block) -> list[str]:
    """The commands of a block: continued lines joined, comments and empty lines left out."""
    joined = re.sub(r" *\\\n *", " ", block.text)
    plain = [re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ") for line in joined.split("\n")]
    return [line for line in plain if line]

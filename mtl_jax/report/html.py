"""One self-contained HTML page: no network; it follows the reader's light or dark mode and the width of the screen."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from mtl_jax.errors import MtlError
from mtl_jax.workdir import write_bytes_atomic, writing

STYLE = """
:root { color-scheme: light dark; --ink: #1d232a; --pale: #59636e; --paper: #fff; --line: #d5dae0; --card: #f5f7f9; --mark: #1f6fb2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d7dce2; --pale: #9aa4af; --paper: #171b20; --line: #39414a; --card: #20262d; --mark: #6cb4ee } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem } p { margin: .4rem 0 }
a { color: var(--mark) } nav a { display: inline-block; margin-right: .8rem; padding: .2rem 0 }
.headline { font-size: 1.6rem; font-weight: 600; margin: .8rem 0 0 } .pale { color: var(--pale) }
picture img { display: block; max-width: 100%; height: auto; margin: .5rem 0 }
.scroll { overflow-x: auto; overflow-wrap: normal; max-width: 100% } .scroll picture img { max-width: none }
.wide { width: calc(100vw - 3rem); max-width: none; margin-left: calc(50% - 50vw + 1.5rem) }
.warning { border-left: .3rem solid #d55e00; padding: .3rem .8rem; background: var(--card) } .pair { display: flex; flex-wrap: wrap; gap: 1rem } .pair > div { flex: 1 1 20rem; min-width: 0 }
table { border-collapse: collapse; width: max-content; margin: .5rem 0; font-size: .9rem }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  max-width: 30rem; min-width: 4.5rem; overflow-wrap: break-word }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
pre { background: var(--card); padding: .7rem; overflow-x: auto; font-size: .85rem; border-radius: .3rem }
summary { cursor: pointer; color: var(--mark); padding: .3rem 0 }
"""  # noqa: E501


class Picture(NamedTuple):
    """A picture as PNG for light and for dark pages; `alt` says in words what it shows; `name` is its file's."""

    name: str
    light: bytes
    dark: bytes
    alt: str


class Section(NamedTuple):
    """A heading with what stands under it, HTML already."""

    title: str
    body: str


def page(
    title: str, headline: str, facts: Sequence[str], sections: Sequence[Section], *, style: str = "", script: str = ""
) -> str:
    """The whole page.

    Args:
      title, headline, facts: plain text; the headline is the result, `facts` are the lines below it.
      sections: in their order; those without a body are left out.
      style, script: CSS and JavaScript of the sections, besides the page's own style.
    """
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#s{i}">{text(section.title)}</a>' for i, section in enumerate(shown))
    parts = [f'<section id="s{i}"><h2>{text(s.title)}</h2>{s.body}</section>' for i, s in enumerate(shown)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head><body>"
        f'<h1>{text(title)}</h1><p class="headline">{text(headline)}</p>'
        f"{''.join(f'<p class=pale>{text(line)}</p>' for line in facts)}<nav>{links}</nav>{''.join(parts)}"
        f"{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def text(value: Any) -> str:
    """Any value as escaped text."""
    return html.escape(str(value))


def paragraph(value: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(value)}</p>"


def warning(value: str) -> str:
    """A paragraph that stands out."""
    return f'<p class="warning">{text(value)}</p>'


def picture(drawn: Picture) -> str:
    """A picture with its dark form, inside the page."""
    light, dark = (f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (drawn.light, drawn.dark))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{text(drawn.alt)}"></picture>'
    )


class Album:
    """Collects the pictures of a page, which are also written as files beside it."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []

    def add(self, name: str, alt: str, themes: tuple[bytes, bytes]) -> str:
        """Keeps a picture, given as PNG for light and for dark pages, and returns it as HTML."""
        self.pictures.append(Picture(name, *themes, alt))
        return picture(self.pictures[-1])


class Page(NamedTuple):
    """A page, its pictures, and its result and protocol as plain text."""

    html: str
    pictures: list[Picture]
    headline: str
    facts: str


def write(built: Page, folder: Path) -> None:
    """Writes index.html and the light pictures into a folder. Raises MtlError."""
    with writing(folder, "give another --output"):
        for drawn in built.pictures:
            write_bytes_atomic(folder / f"{drawn.name}.png", drawn.light)
        write_bytes_atomic(folder / "index.html", built.html.encode())


def make_folder(folder: Path) -> None:
    """Makes the folder of a page, before anything is computed. Raises MtlError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtlError(f"{folder}: cannot be made: {error.strerror}; give another --output") from error


def scrolling(content: str) -> str:
    """A picture that keeps its size and scrolls if the column is narrower."""
    return f'<div class="scroll">{content}</div>'


def wide(content: str) -> str:
    """A picture of many small parts: it keeps its size, takes the window's whole width, and scrolls beyond that."""
    return f'<div class="scroll wide">{content}</div>'


def side_by_side(parts: Sequence[str]) -> str:
    """Parts in one line where the screen is wide enough, one under the other where not."""
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls by itself on a narrow screen; columns of numbers are set to the right."""
    numbers = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(header))]

    def line(cells: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if number else ''}>{text(cell)}</{tag}>"
            for cell, number in zip(cells, numbers, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{line(header, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) or str(cell).lstrip("+-").replace(".", "", 1).replace(" %", "").isdigit()


def folded(title: str, body: str) -> str:
    """A part that opens when its title is pressed."""
    return f"<details><summary>{text(title)}</summary>{body}</details>"


def code(value: str) -> str:
    """Lines as they are."""
    return f"<pre>{text(value)}</pre>"


def dotted(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """The values of nested groups by dotted names."""
    return list(flatten_dict(config, sep=".").items())

"""Draws README's picture of the method and its badges: `python docs/images/draw.py`. A test compares them.

Text and shapes are plain SVG, so that no font, program or network is needed to make or to show them.
"""

import configparser
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "panel": "#f6f8fa", "edge": "#d1d9e0",
              "frozen": "#d8dee4", "learned": "#f2a33c", "adapted": "#4c8dff", "on": "#1f2328"},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "panel": "#151b23", "edge": "#3d444d",
             "frozen": "#3d444d", "learned": "#d98a1f", "adapted": "#3b78e7", "on": "#f0f6fc"},
}  # fmt: skip
WIDTH, HEIGHT, PANEL, GAP = 960, 372, 300, 30
TITLE = "Pre-train the network; then learn its scale and shift from many small tasks; then adapt a head to new classes"


class Drawing:
    """Lines of SVG in the colours of a theme."""

    def __init__(self, width: float, height: float, colours: dict[str, str], title: str) -> None:
        self.colours = colours
        self.lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-label="{escape(title)}" font-family="{FONT}">',
            f"<title>{escape(title)}</title>",
        ]

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, *, edge: str = "", round: float = 6
    ) -> None:
        """A rectangle; `fill` and `edge` are names of colours."""
        stroke = f' stroke="{self.colours[edge]}"' if edge else ""
        self.lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round:g}" '
            f'fill="{self.colours.get(fill, fill)}"{stroke}/>'
        )

    def text(
        self, x: float, y: float, text: str, size: float, *, fill: str = "ink", bold: bool = False, middle: bool = False
    ) -> None:
        """One line of text; y is its baseline."""
        weight, anchor = ' font-weight="600"' if bold else "", ' text-anchor="middle"' if middle else ""
        colour = self.colours.get(fill, fill)
        self.lines.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{weight}{anchor}>{escape(text)}</text>'
        )

    def arrow(self, x: float, y: float, length: float, *, down: bool = False, colour: str = "soft") -> None:
        """An arrow to the right, or down."""
        to_x, to_y = (x, y + length) if down else (x + length, y)
        corners = ((-5, -8), (5, -8)) if down else ((-8, -5), (-8, 5))
        points = " ".join(f"{to_x + a:g},{to_y + b:g}" for a, b in ((0, 0), *corners))
        end_x, end_y = (to_x, to_y - 7) if down else (to_x - 7, to_y)
        colour = self.colours[colour]
        self.lines += [
            f'<path d="M{x:g} {y:g}L{end_x:g} {end_y:g}" stroke="{colour}" stroke-width="2.5"/>',
            f'<polygon points="{points}" fill="{colour}"/>',
        ]

    def svg(self) -> str:
        """The file."""
        return "\n".join([*self.lines, "</svg>", ""])


def method(theme: str) -> str:
    """The three phases: what is frozen, learned and adapted in each."""
    title = (
        "Pre-train the network; then learn its scale and shift from many small tasks; then adapt a head to new classes"
    )
    d = Drawing(WIDTH, HEIGHT, THEMES[theme], title)
    phases = (
        ("1  Pre-train", "many images, base classes", "learned", "", "classifier", "learned", "one ordinary training"),
        ("2  Meta-train", "many small tasks, base classes", "frozen", "learned", "first head", "learned",
         "scored after the head has adapted"),
        ("3  Adapt", "1 to 5 images of each new class", "frozen", "frozen", "head", "adapted",
         "20 gradient steps on the head"),
    )  # fmt: skip
    for number, (name, data, network, scales, head, head_fill, note) in enumerate(phases):
        x = 10 + number * (PANEL + GAP - 10)
        d.box(x, 10, PANEL, 312, "panel", edge="edge", round=10)
        d.text(x + 18, 44, name, 23, bold=True)
        d.text(x + 18, 70, data, 17, fill="soft")
        d.arrow(x + PANEL / 2, 82, 26, down=True)
        for layer in range(3):
            y = 114 + 38 * layer
            d.box(x + 46, y, 132 if scales else 208, 30, network)
            if scales:
                d.box(x + 184, y, 70, 30, scales)
        d.text(x + 46 + (66 if scales else 104), 172, "network", 17, fill="on", middle=True)
        if scales:
            for y, word in ((136, "scale"), (174, "and"), (212, "shift")):
                d.text(x + 219, y - 2, word, 16, fill="on", middle=True)
        d.arrow(x + PANEL / 2, 226, 20, down=True)
        d.box(x + 76, 250, 148, 30, head_fill)
        d.text(x + PANEL / 2, 271, head, 17, fill="on", middle=True)
        d.text(x + PANEL / 2, 308, note, 16, fill="soft", middle=True)
        if number:
            d.arrow(x - GAP + 12, 166, 17)
    for x, colour, text in (
        (118, "frozen", "frozen"), (300, "learned", "learned from the base classes"),
        (658, "adapted", "adapted to the new classes"),
    ):  # fmt: skip
        d.box(x, 340, 22, 22, colour, edge="edge", round=4)
        d.text(x + 32, 357, text, 18)
    return d.svg()


def badge(label: str, value: str) -> str:
    """A badge of two fields, in colours that are legible on light and on dark pages."""
    left, right = (7.1 * len(text) + 14 for text in (label, value))
    d = Drawing(left + right, 20, {}, f"{label}: {value}")
    d.box(0, 0, left + right, 20, "#3f4a56", round=4)
    d.box(left, 0, right, 20, "#2f6f44", round=4)
    d.box(left, 0, 6, 20, "#2f6f44", round=0)
    for x, width, text in ((0, left, label), (left, right, value)):
        d.text(x + width / 2, 14, text, 12, fill="#ffffff", middle=True)
    return d.svg()


def files() -> dict[str, str]:
    """All pictures by their file names. What the badges say is read from setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    classifiers = setup["metadata"]["classifiers"].split("\n")
    versions = [line.rpartition(":: ")[2] for line in classifiers if "Python :: 3." in line]
    return {
        **{f"method-{theme}.svg": method(theme) for theme in THEMES},
        "badge-licence.svg": badge("licence", setup["metadata"]["license"]),
        "badge-python.svg": badge("Python", " | ".join(versions)),
        "badge-tests.svg": badge("tests", "make test"),
    }


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")

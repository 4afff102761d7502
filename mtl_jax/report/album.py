"""The pictures of a page: drawn for light and for dark readers, put into the page, kept for files of their own."""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from mtl_jax.report import html, run_plots
from mtl_jax.report.html import Picture


class Page(NamedTuple):
    """A page, its pictures, and its first lines as plain text."""

    html: str
    pictures: list[Picture]
    headline: str
    facts: str


class Album:
    """Remembers the pictures of a page."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []

    def add(self, name: str, alt: str, draw: Callable[[], Figure]) -> str:
        """Draws a picture (`draw` is called once a theme) and returns it as HTML; `alt` says in words what it shows."""
        found = Picture(name, *run_plots.both_themes(draw), alt)
        self.pictures.append(found)
        return html.picture(found)

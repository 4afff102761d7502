"""Measures and draws a line of text. Letters that the default font lacks are drawn with another that has them.

A letter that no font here has is drawn as its code point, such as U+732B, so that names stay different.
"""

import functools
import unicodedata
from collections.abc import Iterable

from PIL import ImageDraw, ImageFont

from mtl_jax.data.lettering import fonts

Runs = tuple[tuple[str, ImageFont.FreeTypeFont], ...]


def shorten(name: str, length: int = 14) -> str:
    """The end of a name that is too long: class names with folders in them differ at their ends."""
    return name if len(name) <= length else "…" + name[len(name) - length + 1 :]


def fitting(name: str, wide: float, before: str = "") -> str:
    """`before` and as much of the end of a name as is `wide` pixels wide."""
    name = _drawable(name)
    lengths = (n for n in range(len(name), 1, -1) if width(before + shorten(name, n)) <= wide)
    return before + shorten(name, next(lengths, 1))


def width(text: str) -> float:
    """How many pixels a line of text takes."""
    return sum(font.getlength(part) for part, font in _runs(text))


def draw(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: str, anchor: str = "la") -> None:
    """Draws a line of text.

    Args:
      pen: of the picture.
      place: (x, y) of the anchor.
      text: the line; line breaks are drawn as spaces.
      fill: its colour.
      anchor: where `place` is in the text, two letters as in Pillow: 'l' left or 'm' middle; 'a' top or 'm' middle.
    """
    x, y = place
    runs = _runs(text)
    if [font for _, font in runs] == [fonts.default()]:
        pen.text((x, y), runs[0][0], fill=fill, font=fonts.default(), anchor=anchor)
        return
    ascent, descent = fonts.default().getmetrics()
    x -= width(text) / 2 if anchor[0] == "m" else 0
    baseline = y + (ascent if anchor[1] == "a" else (ascent - descent) / 2)
    for part, font in runs:
        pen.text((x, baseline), part, fill=fill, font=font, anchor="ls")
        x += font.getlength(part)


def without_font(texts: Iterable[str]) -> str:
    """The letters of texts that no font here has, each once, in the order of their code points."""
    letters = {letter for text in texts for letter in _normal(text)}
    return "".join(sorted(letter for letter in letters if not _is_invisible(letter) and not fonts.having(letter)))


@functools.lru_cache(4096)
def _runs(text: str) -> Runs:
    """The text in parts of one font each."""
    parts: list[tuple[str, ImageFont.FreeTypeFont]] = []
    for letter in _drawable(text):
        last = parts[-1][1] if parts else fonts.default()
        is_mark = unicodedata.category(letter)[0] == "M"
        is_script = is_mark or not fonts.has(fonts.default(), letter)  # one font for a word, and for a letter's marks
        stays = _is_invisible(letter) or (is_script and fonts.has(last, letter))
        font = last if stays else fonts.having(letter) or fonts.default()
        if parts and font is last:
            parts[-1] = (parts[-1][0] + letter, font)
        else:
            parts.append((letter, font))
    return tuple(parts) or (("", fonts.default()),)


def _drawable(text: str) -> str:
    """Text with a code point for each letter that no font has."""
    if text.isascii() and text.isprintable():
        return text
    drawable, was_code = "", False
    for letter in _normal(text):
        is_code = not _is_invisible(letter) and not fonts.having(letter)
        drawable += " " * (was_code and is_code) + (f"U+{ord(letter):04X}" if is_code else letter)
        was_code = is_code
    return drawable


def _normal(text: str) -> str:
    """Text in the form that fonts have letters for, in one line."""
    return "".join(" " if letter.isspace() or unicodedata.category(letter) == "Cc" else letter
                   for letter in unicodedata.normalize("NFC", text))  # fmt: skip


def _is_invisible(letter: str) -> bool:
    """Whether a character only says how its neighbours are drawn: a joiner, a direction, a variation."""
    return unicodedata.category(letter) == "Cf" or 0xFE00 <= ord(letter) <= 0xFE0F

"""Which font has a letter: DejaVu Sans, which comes with matplotlib, or one of this machine's."""

import functools
from pathlib import Path

import numpy as np
from PIL import ImageFont

SIZE = 11  # pixels
# Fonts that have every letter and show each as the same box or as nothing.
NO_LETTERS = ("lastresort", "adobeblank", "notdef")
UNUSUAL = ("bold", "italic", "oblique", "black", "light", "thin", "mono", "serif", "condensed", "display", "emoji")


def default() -> ImageFont.FreeTypeFont:
    """DejaVu Sans: Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew, Arabic and many signs."""
    import matplotlib

    return _opened(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")))


@functools.cache
def having(letter: str) -> ImageFont.FreeTypeFont | None:
    """A font that has a letter: the default one, else a plain one of this machine's; None: no font here has it."""
    if _has(default().path, letter):
        return default()
    path = next((path for path in _of_this_machine() if _has(path, letter)), None)
    return _opened(path) if path else None


def has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font has a letter."""
    return _has(font.path, letter)


@functools.cache
def _opened(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, SIZE)


@functools.cache
def _of_this_machine() -> list[str]:
    from matplotlib import font_manager  # slow; it lists all fonts of the machine

    def unusual(path: str) -> tuple[int, str]:
        name = Path(path).stem.lower().replace("sansserif", "")
        return sum(word in name for word in UNUSUAL), name

    paths = [path for path in font_manager.findSystemFonts() if not Path(path).stem.lower().startswith(NO_LETTERS)]
    return sorted(paths, key=unusual)


def _has(path: str, letter: str) -> bool:
    letters = _letters(path)
    place = np.searchsorted(letters, ord(letter))
    return bool(place < len(letters) and letters[place] == ord(letter))


@functools.cache
def _letters(path: str) -> np.ndarray:
    """The code points that a font has, sorted; none of a font that cannot be drawn with."""
    from matplotlib.ft2font import FT2Font

    try:
        _opened(path)
        return np.array(sorted(FT2Font(path).get_charmap()), np.int64)
    except (OSError, RuntimeError, ValueError):  # a damaged font, or one of fixed bitmaps
        return np.zeros(0, np.int64)

"""A picture of sorted photographs: a block for each class, the most certain first, with file name and probability."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mtl_jax.data import pictures
from mtl_jax.data.lettering import text
from mtl_jax.data.lettering.text import fitting, shorten

COLUMNS = 10
MAX_IMAGES = 500
CELL, LINE, MARGIN = 104, 14, 8  # pixels: a thumbnail with its gap, a line of text, the border
PAPER, INK, PALE = "white", "black", "#666666"


def save(path: Path, predictions: Sequence[Any], thumbnails: Sequence[np.ndarray]) -> None:
    """Writes the sheet of `draw` as a PNG file, and says which letters no font here has.

    Raises:
      DataError: it cannot be written.
    """
    pictures.save(draw(predictions, thumbnails), path)
    shown = {name for row in predictions for name in (Path(row.file).name, row.answer, row.runner_up)}
    if letters := text.without_font(shown):
        some = letters[:20] + ("..." if len(letters) > 20 else "")
        print(
            f"warning: no font on this machine has {some}; {path} shows their code points, such as "
            f"U+{ord(letters[0]):04X}; install a font that has them, such as Noto Sans",
            file=sys.stderr,
        )


def draw(predictions: Sequence[Any], thumbnails: Sequence[np.ndarray]) -> Image.Image:
    """The sheet; of more than `MAX_IMAGES` images the first of each class, with a note that says how many.

    Args:
      predictions: with `file`, `answer`, `probability`, `runner_up`, `runner_up_probability` of each image.
      thumbnails: uint8 [h, w, C] of each.
    """
    groups = defaultdict(list)
    for i, prediction in enumerate(predictions):
        groups[prediction.answer].append(i)
    most = max(COLUMNS, MAX_IMAGES // max(1, len(groups)))
    blocks = [
        (name, len(rows), sorted(rows, key=lambda i: -predictions[i].probability)[:most])
        for name, rows in sorted(groups.items())
    ]
    heights = [LINE + 6 + -(-len(rows) // COLUMNS) * (CELL + 2 * LINE) for _, _, rows in blocks]
    size = (2 * MARGIN + COLUMNS * CELL, 2 * MARGIN + sum(heights) + (0 if blocks else LINE))
    sheet = Image.new("RGB", size, PAPER)
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for (name, count, rows), height in zip(blocks, heights, strict=True):
        shown = "" if len(rows) == count else f" (the {len(rows)} most certain)"
        text.draw(pen, (MARGIN, top), f"{shorten(name, 60)}: {count}{shown}", INK)
        for number, i in enumerate(rows):
            corner = (MARGIN + number % COLUMNS * CELL, top + LINE + 6 + number // COLUMNS * (CELL + 2 * LINE))
            _draw_cell(sheet, pen, corner, thumbnails[i], predictions[i])
        top += height
    return sheet


def _draw_cell(sheet: Image.Image, pen: Any, corner: Any, thumbnail: np.ndarray, prediction: Any) -> None:
    x, y = corner
    pixels = thumbnail[:, :, 0] if thumbnail.shape[2] == 1 else thumbnail
    sheet.paste(Image.fromarray(pixels), (x, y))
    text.draw(pen, (x, y + CELL - 6), fitting(Path(prediction.file).name, CELL - 6), INK)
    answer, other = f"{100 * prediction.probability:.0f} %", prediction.runner_up
    if other and prediction.runner_up_probability == prediction.probability:  # unknown: what it might have been
        answer = fitting(other, CELL - 6, f"{answer}? ")
    elif other:
        answer = fitting(other, CELL - 6, f"{answer}, or ")
    text.draw(pen, (x, y + CELL - 6 + LINE), answer, PALE)

"""A picture of sorted photographs: a block for each class, the most certain first, with file name and probability."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mtl_jax.data import pictures
from mtl_jax.data.pictures import fitting, label_font, shorten

COLUMNS = 10
MAX_IMAGES = 500
CELL, LINE, MARGIN = 104, 14, 8  # pixels: a thumbnail with its gap, a line of text, the border
PAPER, INK, PALE = "white", "black", "#666666"


def save(path: Path, predictions: Sequence[Any], thumbnails: Sequence[np.ndarray]) -> None:
    """Writes the sheet of `draw` as a PNG file. Raises DataError where it cannot be written."""
    pictures.save(draw(predictions, thumbnails), path)


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
    pen, font, top = ImageDraw.Draw(sheet), label_font(), MARGIN
    for (name, count, rows), height in zip(blocks, heights, strict=True):
        shown = "" if len(rows) == count else f" (the {len(rows)} most certain)"
        pen.text((MARGIN, top), f"{shorten(name, 60)}: {count}{shown}", fill=INK, font=font)
        for number, i in enumerate(rows):
            corner = (MARGIN + number % COLUMNS * CELL, top + LINE + 6 + number // COLUMNS * (CELL + 2 * LINE))
            _draw_cell(sheet, pen, font, corner, thumbnails[i], predictions[i])
        top += height
    return sheet


def _draw_cell(sheet: Image.Image, pen: Any, font: Any, corner: Any, thumbnail: np.ndarray, prediction: Any) -> None:
    x, y = corner
    pixels = thumbnail[:, :, 0] if thumbnail.shape[2] == 1 else thumbnail
    sheet.paste(Image.fromarray(pixels), (x, y))
    pen.text((x, y + CELL - 6), fitting(Path(prediction.file).name, CELL - 6, font), fill=INK, font=font)
    text, other = f"{100 * prediction.probability:.0f} %", prediction.runner_up
    if other and prediction.runner_up_probability == prediction.probability:  # unknown: what it might have been
        text = fitting(other, CELL - 6, font, f"{text}? ")
    elif other:
        text = fitting(other, CELL - 6, font, f"{text}, or ")
    pen.text((x, y + CELL - 6 + LINE), text, fill=PALE, font=font)

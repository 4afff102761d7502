"""Pictures of images, drawn by Pillow: rows of them with labels and answers, some of each class, one task."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mtl_jax.data.dataset import Dataset, Split
from mtl_jax.data.lettering import text
from mtl_jax.data.lettering.text import fitting
from mtl_jax.errors import DataError
from mtl_jax.workdir import write_bytes_atomic, writing

# Blue and vermilion, as in Okabe and Ito's palette: people with any common colour blindness tell them apart. Both are
# readable on white and on black.
RIGHT, WRONG = "#2b83c4", "#D55E00"
LABEL_WIDTH, LINE = 170, 15  # pixels of a row's label and of a line of text
GAP, FRAMED_GAP = 2, 10  # pixels between images, and between those with frames
SMALLEST, FRAMED_SMALLEST = 48, 64  # pixels that an image takes at least
LARGEST = 96  # pixels of a framed image at most; others too where they are to be small
DASH, SPACE, THICK = 8, 4, 4  # pixels of the frame of a wrong answer


class Theme(NamedTuple):
    """The colours of a page."""

    paper: str
    ink: str


LIGHT, DARK = Theme("#ffffff", "#000000"), Theme("#171b20", "#d7dce2")


class Tile(NamedTuple):
    """An image, uint8 [H, W, C] with C 1 or 3; of a query image also the answered class, and whether it is right."""

    image: np.ndarray
    answer: str = ""
    is_right: bool = True


Row = tuple[str, Sequence[Tile | None]]  # a label and its images; None leaves a place free


def class_grid(dataset: Dataset, classes: int = 8, images: int = 10) -> Image.Image:
    """A picture with a row for each of the first, evenly spaced classes of every split."""
    rows: list[Row] = []
    for split in dataset.splits.values():
        table = split.table()
        for c in np.linspace(0, len(table.counts) - 1, min(classes, len(table.counts))).astype(int):
            shown = split.images[table.indices[c, : table.counts[c]][:images]]
            rows.append((f"{split.name}: {split.class_names[c]}", [*map(Tile, shown)]))
    return grid(rows)


def episode_grid(split: Split, *, way: int, shot: int, query: int, seed: int = 0) -> Image.Image:
    """A picture of one task: a row for each class, the support images first, then the query images after a gap.

    NumPy draws the task: compiling the sampler of the programs would take longer than the picture. Where a split has
    fewer classes, or a class fewer images, the picture has fewer.
    """
    rng, table = np.random.default_rng(seed), split.table()
    rows: list[Row] = []
    for c in rng.permutation(len(table.counts))[:way]:
        chosen = rng.permutation(table.indices[c, : table.counts[c]])[: shot + query]
        tiles = [*map(Tile, split.images[chosen])]
        rows.append((f"{split.name}: {split.class_names[c]}", [*tiles[:shot], None, *tiles[shot:]]))
    return grid(rows)


def episode(
    support: np.ndarray,
    query: np.ndarray,
    query_labels: Sequence[int],
    predictions: Sequence[int],
    class_names: Sequence[str],
    *,
    caption: str = "support images | query images",
    theme: Theme = LIGHT,
) -> Image.Image:
    """A task with its answers: a row for each class, the support images first, then the query images.

    A right answer has a thin frame; a wrong one has a thick dashed frame, and the answered class stands under it.

    Args:
      support: uint8 [N K, H, W, C], by class; may be empty.
      query: uint8 [B, H, W, C].
      query_labels, predictions: [B], each 0..N-1.
      class_names: [N].
      caption: the line on top; how many answers are right is added.
      theme: the colours.

    Raises:
      ValueError: the sizes do not belong together.
    """
    labels, predictions, way = np.asarray(query_labels), np.asarray(predictions), len(class_names)
    if not way or len(support) % way or not len(query) == len(labels) == len(predictions):
        raise ValueError(f"{way} classes, {len(support)} support images, {len(query)} queries, {len(labels)} labels, "
                         f"{len(predictions)} predictions do not make an episode")  # fmt: skip
    shot, short = len(support) // way, _without_folder(class_names)
    rows: list[Row] = []
    for c, name in enumerate(class_names):
        examples = [*map(Tile, support[c * shot : (c + 1) * shot])]
        answered = [
            Tile(query[i], short[predictions[i]], bool(predictions[i] == c)) for i in np.flatnonzero(labels == c)
        ]
        rows.append((name, [*examples, *([None] if shot else []), *answered]))
    right = int((labels == predictions).sum())
    return grid(rows, title=f"{caption}: {right} of {len(labels)} right", theme=theme, largest=LARGEST)


def _without_folder(names: Sequence[str]) -> list[str]:
    """Names without their folder where it is the same for all, to fit under an image."""
    parts = [name.rpartition("/") for name in names]
    return [name for *_, name in parts] if len({folder for folder, *_ in parts}) == 1 else [*names]


def task_episode(
    split: Split, support: np.ndarray, query: np.ndarray, predictions: Sequence[int], **options: Any
) -> Image.Image:
    """The `episode` of a task in a split, from positions (support [N, K], query [N, Q]) and predictions [N Q]."""
    names = [split.class_names[split.labels[row[0]]] for row in support]
    labels = np.repeat(np.arange(len(names)), query.shape[1])
    images = split.images[support.ravel()], split.images[query.ravel()]
    return episode(*images, labels, predictions, names, **options)


def grid(rows: Sequence[Row], *, title: str = "", theme: Theme = LIGHT, largest: int | None = None) -> Image.Image:
    """Rows of images of one size as one picture; small images are magnified by a whole factor.

    `largest` is the most pixels that an image's shorter side takes; None: images are never made smaller.
    """
    tiles = [tile for _, row in rows for tile in row if tile]
    framed = any(tile.answer for tile in tiles)
    gap, below = (FRAMED_GAP, LINE) if framed else (GAP, 0)
    width, height = _shown_size(tiles[0].image, FRAMED_SMALLEST if framed else SMALLEST, largest)
    columns, top = max(len(row) for _, row in rows), LINE + gap if title else gap // 2 * framed
    whole = max(LABEL_WIDTH + columns * (width + gap), round(text.width(title)) + 8)
    picture = Image.new("RGB", (whole, top + len(rows) * (height + gap + below)), theme.paper)
    draw = ImageDraw.Draw(picture)
    if title:
        text.draw(draw, (4, 2), title, theme.ink)
    for label, row in rows:
        said = fitting(label, LABEL_WIDTH - 8)
        text.draw(draw, (4, top + height // 2), said, theme.ink, "lm")
        for column, tile in enumerate(row):
            if tile:
                left = LABEL_WIDTH + column * (width + gap)
                picture.paste(_resized(tile.image, (width, height)), (left, top))
                if tile.answer:
                    _draw_answer(draw, tile, (left, top, left + width - 1, top + height - 1))
        top += height + gap + below
    return picture


def _shown_size(image: np.ndarray, smallest: int, largest: int | None) -> tuple[int, int]:
    height, width = image.shape[:2]
    side = min(height, width)
    if largest and side > largest:
        return round(width * largest / side), round(height * largest / side)
    factor = max(1, -(-smallest // side))
    return width * factor, height * factor


def _resized(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    smaller = picture.width > size[0]
    return picture.resize(size, Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)


def _draw_answer(draw: ImageDraw.ImageDraw, tile: Tile, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    if tile.is_right:
        draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), outline=RIGHT, width=2)
        return
    for x in range(left - THICK, right + THICK, DASH + SPACE):
        for y in (top - THICK, bottom + 1):
            draw.rectangle((x, y, min(x + DASH, right + THICK + 1) - 1, y + THICK - 1), fill=WRONG)
    for y in range(top - THICK, bottom + THICK, DASH + SPACE):
        for x in (left - THICK, right + 1):
            draw.rectangle((x, y, x + THICK - 1, min(y + DASH, bottom + THICK + 1) - 1), fill=WRONG)
    said = fitting(tile.answer, right - left + FRAMED_GAP, before="✗ ")
    text.draw(draw, ((left + right) // 2, bottom + THICK + 2), said, WRONG, "ma")


def beside(*parts: Image.Image) -> Image.Image:
    """Pictures side by side, on the paper of the first."""
    size = (sum(part.width for part in parts), max(part.height for part in parts))
    joined, left = Image.new("RGB", size, parts[0].getpixel((0, 0))), 0
    for part in parts:
        joined.paste(part, (left, 0))
        left += part.width
    return joined


def below(*parts: Image.Image) -> Image.Image:
    """Pictures below each other, on the paper of the first."""
    size = (max(part.width for part in parts), sum(part.height for part in parts))
    joined, top = Image.new("RGB", size, parts[0].getpixel((0, 0))), 0
    for part in parts:
        joined.paste(part, (0, top))
        top += part.height
    return joined


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def save(picture: Image.Image, path: Path) -> None:
    """Writes a picture as a PNG file, whole or not at all. Raises DataError where it cannot be written."""
    with writing(path, error_type=DataError):
        write_bytes_atomic(path, png(picture))

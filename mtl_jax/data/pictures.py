"""PNG grids: some images of some classes, and one task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtl_jax.data.dataset import Dataset, Split

LABEL_WIDTH = 170
GAP = 2
SMALLEST = 48  # pixels that an image takes at least


def class_grid(dataset: Dataset, classes: int = 8, images: int = 10) -> Image.Image:
    """Returns a picture with a row for each of the first, evenly spaced classes of every split."""
    rows = []
    for split in dataset.splits.values():
        table = split.table()
        for c in np.linspace(0, len(table.counts) - 1, min(classes, len(table.counts))).astype(int):
            rows.append(
                (f"{split.name}: {split.class_names[c]}", split.images[table.indices[c, : table.counts[c]][:images]])
            )
    return grid(rows)


def episode_grid(split: Split, *, way: int, shot: int, query: int, seed: int = 0) -> Image.Image:
    """Returns a picture of one task: a row a class, the support images first, then the query images after a gap.

    It is drawn by NumPy: a picture is not worth compiling the sampler of the programs. Where a split has fewer classes,
    or a class fewer images, there are fewer in it.
    """
    rng, table, rows = np.random.default_rng(seed), split.table(), []
    for c in rng.permutation(len(table.counts))[:way]:
        chosen = rng.permutation(table.indices[c, : table.counts[c]])[: shot + query]
        between = np.full_like(split.images[:1], 255)
        images = np.concatenate([split.images[chosen[:shot]], between, split.images[chosen[shot:]]])
        rows.append((f"{split.name}: {split.class_names[c]}", images))
    return grid(rows)


def grid(rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Returns labelled rows of images [n, H, W, C] as one picture; small images are magnified by a whole factor."""
    height, width = rows[0][1].shape[1:3]
    factor = max(1, -(-SMALLEST // min(height, width)))
    columns = max(len(images) for _, images in rows)
    size = (LABEL_WIDTH + columns * (width * factor + GAP), len(rows) * (height * factor + GAP))
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), label_font()
    for i, (label, images) in enumerate(rows):
        top = i * (height * factor + GAP)
        draw.text((4, top + height * factor // 2), label[:28], fill="black", font=font, anchor="lm")
        for j, image in enumerate(images):
            tile = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
            tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            picture.paste(tile, (LABEL_WIDTH + j * (width * factor + GAP), top))
    return picture


def label_font() -> ImageFont.FreeTypeFont:
    """Returns a font that has the letters of all class names here."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 11)

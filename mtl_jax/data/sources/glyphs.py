"""The embedded data set: letters in the fonts that come with matplotlib, rendered and distorted by Pillow.

Classes are split by script: train has Latin (with its extensions), Greek and Cyrillic, val Armenian, test Georgian.
Letters that look the same in any face are one class (Latin A, Greek Alpha). If such a class has letters of two splits
(Latin o, Armenian oh), it is in the later split only, so that the evaluation splits are complete.
Every image is rotated by up to 35 degrees, scaled by 0.6 to 1.25, sheared and shifted. It has a faint second letter
behind, noise and, half of the time, inverted contrast. All this depends on class, face and the image's number only.
"""

import dataclasses
import functools
import math
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtl_jax.data.dataset import SPLITS
from mtl_jax.data.source import Contents, Source

# script -> split, first and last code point
SCRIPTS = {
    "Latin": ("train", 0x0041, 0x024F),
    "Greek": ("train", 0x0370, 0x03FF),
    "Cyrillic": ("train", 0x0400, 0x052F),
    "Armenian": ("val", 0x0530, 0x058F),
    "Georgian": ("test", 0x10A0, 0x10FF),
}
FACES = tuple(
    f"{family}{style}"
    for family, styles in (
        ("DejaVuSans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSerif", ("", "-Bold", "-Italic", "-BoldItalic")),
        ("STIXGeneral", ("", "Bol", "Italic", "BolIta")),
    )
    for style in styles
)
MIN_FACES = 8  # letters in fewer faces are left out
IMAGES_PER_CLASS = 48
SIZE = 32
RECIPE = 1  # part of the cache's key; raise it when the images change

CANVAS = 48  # side in pixels of the square in whose middle a letter is drawn
FONT_SIZE = 25

Letter = tuple[str, int]  # face, code point


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """The images of one class; rendered when they are read.

    letters: its letters, one for each face.
    others: all letters of its split; one of them is faintly behind each image.
    seed: differs from class to class.
    """

    letters: Sequence[Letter]
    others: Sequence[Letter]
    seed: int
    turns: int = 0

    def __len__(self) -> int:
        return IMAGES_PER_CLASS

    def name(self, index: int) -> str:
        return ""

    def where(self, index: int) -> str:
        return f"glyphs, letter {chr(self.letters[0][1])!r}, image {index}"

    def read(self, index: int) -> np.ndarray:
        rng = np.random.default_rng([RECIPE, self.seed, index])
        draws = rng.random(16, np.float32).tolist()  # one call: many small ones would take longer than the images
        front = distorted(draw(*self.letters[index % len(self.letters)]), draws[:5])
        behind = distorted(draw(*self.others[int(draws[10] * len(self.others))]), draws[5:10])
        return compose(front, behind, rng.standard_normal(front.shape, np.float32), draws[11:])


def source() -> Source:
    """Returns the glyphs, to be rendered when they are read."""
    return Source("glyphs", [("glyphs", RECIPE, 0)], lambda _: read(), "glyphs")


def read() -> Contents:
    """Returns split -> class -> images; class names are like 'Greek/03A9 Ω'."""
    faces = faces_by_letter()
    classes: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for letters in same_looking(faces):
        script = max((script_of(code) for code in letters), key=list(SCRIPTS).index)
        split = SCRIPTS[script][0]
        own = [code for code in letters if SCRIPTS[script_of(code)][0] == split]
        script = script_of(own[0])
        classes[split][f"{script}/{own[0]:04X} {chr(own[0])}"] = own
    return {split: _as_glyphs(named, faces) for split, named in classes.items()}


def _as_glyphs(named: Mapping[str, Sequence[int]], faces: Mapping[int, Sequence[str]]) -> Mapping[str, Glyphs]:
    drawn = {name: one_per_face(letters, faces) for name, letters in named.items()}
    everything = [letter for name in sorted(drawn) for letter in drawn[name]]
    return {name: Glyphs(drawn[name], everything, seed=named[name][0]) for name in sorted(drawn)}


def one_per_face(letters: Sequence[int], faces: Mapping[int, Sequence[str]]) -> list[Letter]:
    """Returns the first of a class's letters in every face that has any."""
    first: dict[str, int] = {}
    for code in letters:
        for face in faces[code]:
            first.setdefault(face, code)
    return [(face, first[face]) for face in FACES if face in first]


def script_of(code: int) -> str:
    """Returns the script of a code point, which must be in a range of `SCRIPTS`."""
    return next(script for script, (_, first, last) in SCRIPTS.items() if first <= code <= last)


@functools.cache
def font(face: str) -> ImageFont.FreeTypeFont:
    """Returns one of matplotlib's fonts, with basic layout: not every build of Pillow has the other engine."""
    import matplotlib

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    return ImageFont.truetype(str(file), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def faces_by_letter() -> Mapping[int, Sequence[str]]:
    """Returns code point -> faces, for the letters of all scripts that at least `MIN_FACES` faces have."""
    from matplotlib.ft2font import FT2Font

    faces: dict[int, list[str]] = defaultdict(list)
    for face in FACES:
        known = FT2Font(font(face).path).get_charmap()
        for _, first, last in SCRIPTS.values():
            for code in range(first, last + 1):
                if code in known and unicodedata.category(chr(code)).startswith("L"):
                    faces[code].append(face)
    return {code: faces[code] for code in sorted(faces) if len(faces[code]) >= MIN_FACES}


def same_looking(faces: Mapping[int, Sequence[str]]) -> list[list[int]]:
    """Returns groups of letters: two whose bitmaps are the same in any face are in one group (union-find)."""
    parent = {code: code for code in faces}

    def root(code: int) -> int:
        while parent[code] != code:
            parent[code] = code = parent[parent[code]]
        return code

    seen: dict[tuple[str, tuple[int, int], bytes], int] = {}
    for code, where in faces.items():
        for face in where:
            bitmap = cut_out(face, code)
            first = seen.setdefault((face, bitmap.size, bitmap.tobytes()), code)
            one, other = sorted((root(first), root(code)))
            parent[other] = one
    groups: dict[int, list[int]] = defaultdict(list)
    for code in faces:
        groups[root(code)].append(code)
    return list(groups.values())


def cut_out(face: str, code: int) -> Image.Image:
    """Returns a letter's bitmap without margins: its position makes no difference, since images are shifted."""
    canvas = Image.new("L", (3 * FONT_SIZE, 3 * FONT_SIZE))
    ImageDraw.Draw(canvas).text((FONT_SIZE, FONT_SIZE), chr(code), fill=255, font=font(face))
    return canvas.crop(canvas.getbbox())


@functools.cache
def draw(face: str, code: int) -> Image.Image:
    """Returns a letter in the middle of a canvas, shrunk if it is too large for the final image."""
    letter = cut_out(face, code)
    longest = max(letter.size)
    if longest > SIZE - 4:
        shrink = (SIZE - 4) / longest
        size = tuple(max(1, round(side * shrink)) for side in letter.size)
        letter = letter.resize(size, Image.Resampling.BILINEAR)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(letter, ((CANVAS - letter.width) // 2, (CANVAS - letter.height) // 2))
    return canvas


def distorted(canvas: Image.Image, draws: Sequence[float]) -> np.ndarray:
    """Returns a canvas rotated, sheared, scaled and shifted by five numbers in [0, 1), uint8 [SIZE, SIZE]."""
    angle, shear = math.radians(70 * draws[0] - 35), 0.6 * draws[1] - 0.3
    scale = 0.6 + 0.65 * draws[2]
    x, y = SIZE / 2 + 6 * draws[3] - 3, SIZE / 2 + 6 * draws[4] - 3  # the new position of the letter's middle
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    # The inverse of scale * rotation @ [[1, shear], [0, 1]]: Pillow maps the result's pixels to the canvas.
    a, b, c, d = cos + shear * sin, sin - shear * cos, -sin, cos
    data = (a, b, CANVAS / 2 - a * x - b * y, c, d, CANVAS / 2 - c * x - d * y)
    return np.asarray(canvas.transform((SIZE, SIZE), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))


def compose(front: np.ndarray, behind: np.ndarray, noise: np.ndarray, draws: Sequence[float]) -> np.ndarray:
    """Returns a letter over a fainter one, with noise, inverted half of the time: uint8 [SIZE, SIZE]."""
    ink = np.maximum(front * (0.6 + 0.4 * draws[0]), behind * (0.15 + 0.3 * draws[1]))
    light = 0.08 * 255 + 0.84 * ink + 0.84 * 255 * (0.02 + 0.1 * draws[2]) * noise
    light = (light.clip(0, 255) + 0.5).astype(np.uint8)
    return light if draws[3] < 0.5 else 255 - light

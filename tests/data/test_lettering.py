"""Text on pictures: fonts for every script, code points where there is none."""

import itertools

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw

from mtl_jax.data.lettering import fonts, text

CAT, SUN = "猫", "日"


def _font(path, letters):
    """A font whose letters are squares, 0.6 em wide."""
    names = [".notdef", *(f"letter{ord(letter)}" for letter in letters)]
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 600), (500, 600), (500, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets which fonts this machine has, besides the default one."""

    def clear():
        for cached in (fonts.having, fonts._of_this_machine, fonts._letters, text._runs):
            cached.cache_clear()

    def install(**letters_of_font):
        paths = [_font(tmp_path / f"{name}.ttf", letters) for name, letters in letters_of_font.items()]
        (tmp_path / "damaged.ttf").write_bytes(b"no font")
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "damaged.ttf"), *paths])
        clear()

    yield install
    clear()


def _drawn(line, anchor="la"):
    picture = Image.new("L", (200, 40), 255)
    text.draw(ImageDraw.Draw(picture), (60, 10), line, "black", anchor)
    return np.asarray(picture) < 128


def test_a_letter_is_drawn_with_a_font_that_has_it(machine):
    machine(Han=CAT + SUN)
    assert fonts.having(CAT).getname()[0] == "Han"
    assert fonts.having("é") is fonts.default() and not text.without_font(["猫 é, ☃", "日\n"])
    both = [font.getname()[0] for _, font in text._runs(f"a{CAT}{SUN}: 3")]
    assert both == ["DejaVu Sans", "Han", "DejaVu Sans"]
    # The letter is a filled square on the line's base, 0.4 em wide.
    ink = _drawn(CAT)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and 4 <= len(columns) <= 5
    assert abs(rows[-1] - np.flatnonzero(_drawn("H").any(1))[-1]) <= 1
    assert text.width(CAT) == pytest.approx(0.6 * fonts.SIZE, abs=1)


def test_letters_without_a_font_are_code_points_and_said(machine):
    machine()
    assert text.without_font([CAT, "a", SUN + CAT]) == SUN + CAT
    np.testing.assert_array_equal(_drawn(f"{CAT}{SUN} x"), _drawn("U+732B U+65E5 x"))
    names = [a + b for a, b in itertools.product(CAT + SUN, repeat=2)]
    assert len({_drawn(name).tobytes() for name in names}) == 4  # boxes would all look the same


def test_a_plain_font_is_taken_before_others_and_marks_stay_with_their_letter(machine):
    machine(AHan_BoldItalic=CAT, LastResort=CAT + SUN, Han=CAT + "\u0301" + "\u20dd", Mono_Symbols=SUN)
    assert fonts.having(CAT).getname()[0] == "Han"
    assert fonts.having(SUN).getname()[0] == "Mono_Symbols"
    assert [part for part, _ in text._runs(CAT + "\u0301\u200d")] == [CAT + "\u0301\u200d"]
    assert [part for part, _ in text._runs("u\u0308")] == ["ü"]


@pytest.mark.parametrize("wide", [5, 30, 60, 98])
def test_what_fits_is_the_end_of_the_name_whatever_its_letters(machine, wide):
    machine()
    for name in (CAT * 9, "W" * 30, "ab" + SUN * 3 + ".png"):
        fitted = text.fitting(name, wide)
        assert fitted == "…" or text.width(fitted) <= wide
        assert fitted.startswith("…") and (fitted == "…" or text._drawable(name).endswith(fitted[1:]))
    assert text.fitting("cat", 98) == "cat"
    assert [text.shorten("abcdef", n) for n in (1, 2, 5, 6)] == ["…", "…f", "…cdef", "abcdef"]


def test_the_anchor_is_the_same_with_every_font(machine):
    machine(Han=CAT)
    for anchor in ("la", "lm", "ma"):
        plain, mixed = _drawn("HHHH", anchor), _drawn(f"HHH{CAT}", anchor)
        bottoms = [np.flatnonzero(ink.any(1))[-1] for ink in (plain, mixed)]
        assert abs(bottoms[0] - bottoms[1]) <= 1
        centres = [np.flatnonzero(ink.any(0)).mean() for ink in (plain, mixed)]
        assert abs(centres[0] - centres[1]) <= 2

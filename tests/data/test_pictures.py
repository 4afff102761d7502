"""Pictures of episodes: what is drawn is what was given, and right and wrong answers differ without colour."""

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from mtl_jax.data import pictures
from mtl_jax.data.lettering.text import width
from mtl_jax.data.pictures import DARK, LIGHT, RIGHT, WRONG, Tile
from mtl_jax.errors import DataError


@pytest.fixture
def said(monkeypatch):
    """The texts that are drawn, in their order."""
    texts, draw = [], ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **options):
        texts.append(text)
        return draw(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def _episode(predictions, size=8, channels=1, **options):
    images = np.random.default_rng(0).integers(0, 256, (10, size, size, channels), np.uint8)
    names = options.pop("names", ["cat", "dog"])
    return images, pictures.episode(images[:4], images[4:], [0, 0, 0, 1, 1, 1], predictions, names, **options)


def _pixels(picture, colour):
    return (np.asarray(picture) == ImageColor.getrgb(colour)).all(-1)


def test_wrong_answers_are_named_and_framed_in_another_style(said):
    _, picture = _episode([0, 0, 1, 1, 1, 1])
    assert [text for text in said if "✗" in text] == ["✗ dog"]
    assert [text for text in said if "right" in text] == ["support images | query images: 5 of 6 right"]
    right, wrong = _pixels(picture, RIGHT), _pixels(picture, WRONG)
    # One tile and the line under it have the colour of a wrong answer, five have that of a right one.
    columns = np.flatnonzero(wrong.any(0))
    assert columns.max() - columns.min() < 64 + 2 * pictures.FRAMED_GAP
    assert right.sum() == 5 * (68 * 68 - 64 * 64)
    # The frames differ without their colours: that of a right answer is a thin line, the other thick and broken.
    assert _runs(right.any(1)) == [68, 68]
    upper = np.flatnonzero(wrong.any(1))[0]
    line = wrong[upper : upper + pictures.THICK, columns.min() : columns.max() + 1]
    assert (line == line[0]).all() and len(_runs(line[0])) > 4


def _runs(mask):
    """The lengths of the runs of True in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize(("size", "shown"), [(8, 64), (28, 84), (32, 64), (84, 84), (224, 96)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_are_shown_in_a_readable_one(size, shown, channels):
    images, picture = _episode([0, 0, 0, 1, 1, 1], size, channels)
    step = shown + pictures.FRAMED_GAP
    assert picture.size[0] == pictures.LABEL_WIDTH + 6 * step
    top = pictures.LINE + pictures.FRAMED_GAP
    first = np.asarray(picture)[top : top + shown, pictures.LABEL_WIDTH :][:, :shown]
    if shown >= size:  # magnified by a whole factor, pixel by pixel
        factor = shown // size
        np.testing.assert_array_equal(first[::factor, ::factor], np.broadcast_to(images[0], (size, size, 3)))


def test_names_of_any_length_keep_their_ends_and_stay_in_their_place(said):
    long = "alphabets/Georgian/with a long path/" + "W" * 60 + "/10A2"
    _episode([1, 0, 0, 1, 1, 1], names=["x", long])
    labels, answers = [t for t in said if t.startswith("…")], [t for t in said if "✗ …" in t]
    assert len(labels) == len(answers) == 1
    assert all(text.endswith("/10A2") for text in labels + answers)
    assert width(labels[0]) <= pictures.LABEL_WIDTH and width(answers[0]) <= 64 + pictures.FRAMED_GAP
    said.clear()
    _, picture = _episode([0] * 6, caption="a very long caption " * 20)
    assert picture.width >= width(said[0])


def test_a_dark_picture_has_the_same_size_and_dark_paper():
    (_, light), (_, dark) = (_episode([0] * 6, theme=theme) for theme in (LIGHT, DARK))
    assert light.size == dark.size
    for picture, theme in ((light, LIGHT), (dark, DARK)):
        assert _pixels(picture, theme.paper)[:, -3:].all() and _pixels(picture, theme.paper)[:, :4].all()
    assert _pixels(dark, DARK.ink).any() and _pixels(light, LIGHT.ink).any()


def test_an_episode_without_support_images_has_no_gap():
    images = np.zeros((2, 84, 84, 3), np.uint8)
    picture = pictures.episode(images[:0], images, [0, 1], [0, 0], ["cat", "dog"])
    assert picture.width == pictures.LABEL_WIDTH + 84 + pictures.FRAMED_GAP


def test_sizes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="do not make an episode"):
        _episode([0, 0, 1])


def test_pictures_are_joined_whole():
    red, blue = Image.new("RGB", (4, 6), "red"), Image.new("RGB", (3, 2), "blue")
    assert (pictures.beside(red, blue).size, pictures.below(red, blue).size) == ((7, 6), (4, 8))
    assert pictures.beside(red, blue).getpixel((4, 0)) == pictures.below(red, blue).getpixel((0, 6)) == (0, 0, 255)
    assert pictures.beside(red, blue).getpixel((5, 5)) == (255, 0, 0)  # the paper of the first


def test_a_place_may_be_left_free():
    image = np.zeros((64, 64, 1), np.uint8)
    picture = np.asarray(pictures.grid([("x", [Tile(image), None, Tile(image)])]).convert("L"))
    assert _runs(picture[5, pictures.LABEL_WIDTH :] == 0) == [64, 64]


def test_saved_pictures_are_png_and_the_same_bytes_twice(tmp_path):
    for name in ("a.png", "b.png"):
        pictures.save(_episode([0] * 6)[1], tmp_path / "new" / name)
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.png", "b.png"))
    assert first.startswith(b"\x89PNG") and first == second


def test_a_path_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"a\.png: cannot be written"):
        pictures.save(Image.new("RGB", (2, 2)), tmp_path / "file" / "a.png")


def test_a_folder_that_all_classes_share_is_left_out_of_the_answers(said):
    _episode([1, 0, 0, 1, 1, 1], names=["Georgian/10A2", "Georgian/10A3"])
    assert "✗ 10A3" in said and "Georgian/10A2" in said
    said.clear()
    _episode([1, 0, 0, 1, 1, 1], names=["Georgian/10A2", "Greek/10A2"])
    assert "✗ 10A2" not in said

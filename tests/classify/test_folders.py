"""Photographs by what files hold: in support and query, in any folder, under any name; what is left out is named."""

import importlib.util
import unicodedata

import numpy as np
import pytest
from PIL import Image

from mtl_jax.classify import folders
from mtl_jax.errors import DataError

# A name that says nothing or something wrong, and the format that the file has.
NAMES = {
    "a.jfif": "JPEG", "b.avif": "AVIF", "c.jp2": "JPEG2000", "d": "PNG", "e.txt": "WEBP", "f.jpg": "PNG",
    "g.JPG_original": "JPEG", "h.gif.bak": "GIF", "i.mpo": "MPO", "j.csv": "BMP", "k.pgm": "PPM", "l.TIF": "TIFF",
}  # fmt: skip
OTHERS = {
    "notes.txt": (b"not an image", "not an image but data that starts with b'not an i'"),
    "page.jpg": (b"<!DOCTYPE html><p>404", "not an image but an HTML page"),
    "clip.mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isom", "not an image but a video"),
    "photo.NEF": (b"FUJIFILMCCD-RAW ", "not an image but a camera's raw file"),
    "Icon\r": (b"", "the file is empty"),
}


def _image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8))


def _write(folder, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, kind) in enumerate(names.items()):
        _image(seed).save(folder / name, kind)


def test_the_content_decides_and_all_else_is_named(tmp_path):
    _write(tmp_path / "cat")
    _write(tmp_path / "dog", {"x": "PNG"})
    for name, (content, _) in OTHERS.items():
        (tmp_path / "cat" / name).write_bytes(content)
    (tmp_path / "labels.csv").write_text("file,label")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"not named: a hidden file")
    support, query = folders.find_support(tmp_path), folders.find_images(tmp_path)
    assert query.files == [*sorted(f"cat/{name}" for name in NAMES), "dog/x"]
    assert support.files == [tmp_path / file for file in query.files]
    assert support.classes == ["cat"] * len(NAMES) + ["dog"]
    assert support.left_out == query.left_out and len(query.left_out) == len(OTHERS) + 1
    for name, (_, reason) in OTHERS.items():
        assert any(line.startswith(f"{tmp_path / 'cat' / name}: {reason}") for line in query.left_out)
    assert query.left_out[-1].startswith(f"{tmp_path / 'labels.csv'}: not an image")


def test_what_should_be_an_image_but_is_empty_is_kept_so_that_reading_it_fails(tmp_path):
    _write(tmp_path, {"a.png": "PNG"})
    (tmp_path / "b.jpg").write_bytes(b"")
    assert folders.find_images(tmp_path).files == ["a.png", "b.jpg"]


@pytest.mark.parametrize("installed", [True, False])
def test_a_heic_photograph_is_read_or_its_package_is_named(tmp_path, monkeypatch, installed):
    heif = pytest.importorskip("pillow_heif")
    _write(tmp_path / "cat", {"a.jpg": "JPEG"})
    heif.from_pillow(_image(9)).save(tmp_path / "cat/IMG_1.HEIC")
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    support = folders.find_support(tmp_path)
    assert len(support.files) == 1 + installed
    wanted = [] if installed else [f"{tmp_path / 'cat/IMG_1.HEIC'}: a HEIC image needs pillow-heif (pip install "]
    assert all(line.startswith(start) for line, start in zip(support.left_out, wanted, strict=True))
    if not installed:
        (tmp_path / "cat/a.jpg").rename(tmp_path / "cat/a.jpg.part")
        (tmp_path / "dog").mkdir()
        (tmp_path / "cat/IMG_1.HEIC").rename(tmp_path / "dog/IMG_1.HEIC")
        with pytest.raises(DataError, match=r"dog: a class without images; 1 file is left out: .*pip install .*; add"):
            folders.find_support(tmp_path)


def test_a_cameras_raw_file_beside_its_jpeg_is_left_out(tmp_path):
    _write(tmp_path / "cat", {"a.jpg": "JPEG", "b.tif": "TIFF"})
    _image().save(tmp_path / "cat/a.DNG", "TIFF", tiffinfo={50706: b"\1\4\0\0"})
    support = folders.find_support(tmp_path)
    assert [file.name for file in support.files] == ["a.jpg", "b.tif"]
    assert support.left_out == [f"{tmp_path / 'cat/a.DNG'}: not an image but a camera's raw file"]


def test_images_in_a_class_folder_and_below_are_one_class(tmp_path):
    for place in ("cat", "cat/more", "cat/more/old", "dog/x", "dog/y", "hen"):
        _write(tmp_path / place, {"1.png": "PNG"})
    support = folders.find_support(tmp_path)
    assert {name: support.classes.count(name) for name in support.classes} == {"cat": 3, "dog": 2, "hen": 1}


def test_characters_in_alphabets_are_classes_of_their_own(tmp_path):
    for place in ("Greek/character01", "Greek/character02", "Latin/character01"):
        _write(tmp_path / place, {"1.png": "PNG"})
    assert folders.find_support(tmp_path).classes == ["Greek/character01", "Greek/character02", "Latin/character01"]


def test_a_class_called_the_same_in_two_unicode_forms_is_one(tmp_path):
    for form in ("NFC", "NFD"):
        _write(tmp_path / unicodedata.normalize(form, "Müller"), {f"{form}.png": "PNG"})
    assert folders.find_support(tmp_path).classes == [unicodedata.normalize("NFC", "Müller")] * 2


@pytest.mark.parametrize("content", [None, b"text"])
def test_a_class_folder_without_images_is_refused(tmp_path, content):
    _write(tmp_path / "cat", {"1.png": "PNG"})
    (tmp_path / "cat/empty").mkdir()  # in a class folder an empty folder is none
    (tmp_path / "dog/old").mkdir(parents=True)
    if content:
        (tmp_path / "dog/old/a.txt").write_bytes(content)
    reason = r"; 1 file is left out: .*a\.txt: not an image" if content else "; add some"
    with pytest.raises(DataError, match=rf"dog: a class without images{reason}"):
        folders.find_support(tmp_path)
    _write(tmp_path / "dog/old", {"1.png": "PNG"})
    assert folders.find_support(tmp_path).classes == ["cat", "dog"]


def test_a_folder_without_images_says_what_is_there(tmp_path):
    for find in (folders.find_images, folders.find_support):
        with pytest.raises(DataError, match=f"^{tmp_path}: has no images$"):
            find(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=r"has no images; 2 files are left out, such as .*a\.txt: not an image but"):
        folders.find_support(tmp_path)
    images, left_out = folders.find_images(tmp_path)
    assert not images and len(left_out) == 2

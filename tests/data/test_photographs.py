"""Photographs as cameras and telephones leave them: read by their content, whatever the file is called."""

import io
import logging
import sys
import threading
import unicodedata
import warnings
import zipfile

import data_layouts
import numpy as np
import pytest
from mtl_jax.configs import default
from PIL import Image

from mtl_jax import data
from mtl_jax.data import __main__ as program
from mtl_jax.data import decode, transforms
from mtl_jax.data.damage import quiet
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

PIXELS = data_layouts.pixels()[:, :, :, :24]  # of unequal sides
HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(99)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FRAMES = [Image.fromarray(PIXELS[0, i]) for i in range(2)]
KINDS = {
    "JPEG": encoded(FRAMES[0], "JPEG"),
    "MPO": encoded(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]),
    **{kind: encoded(FRAMES[0], kind) for kind in ("PNG", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")},
    "GIF": encoded(FRAMES[0].convert("L"), "GIF"),
}


def load(root, **options) -> data.Dataset:
    return data.load("folder", str(root), cache_dir=str(root.parent / "cache"), **options)


@pytest.fixture
def root(tmp_path):
    for label in range(2):
        for i in range(3):
            file = tmp_path / "data" / "test" / f"c{label}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data_layouts.png(PIXELS[label, i]))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["image", "image.jfif", "image.JPG.download", "image.png", "image.txt"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_known_by_content(kind, name, tmp_path):
    (tmp_path / name).write_bytes(KINDS[kind])
    known = {"MPO": "JPEG"}.get(kind, kind)
    assert decode.image_kind(tmp_path / name) == decode.image_kind(KINDS[kind][:64]) == known
    assert decode.read_image(tmp_path / name, Transform(convert=kind == "GIF", channels=3)).shape == (32, 24, 3)


def test_data_sets_of_every_kind_are_read(root):
    for number, content in enumerate(KINDS.values()):
        (root / "test" / "c1" / f"IMG_{number}.x").write_bytes(content)
    archive = root.parent / "data.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in root.rglob("*.*"):
            out.write(file, file.relative_to(root))
    for place in (root, archive):
        found = load(place, convert=True, channels=3, allow="repeated_images")  # several have the same pixels
        assert found.splits["test"].counts.tolist() == [3, 3 + len(KINDS)]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%PDF-1.7", "a PDF file"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file"),
        (b"<?xml version='1.0'?><annotation/>", "an XML file"),
        (b"\xff\x0a" + bytes(9), "a JPEG XL image"),
        (b"BMW, Audi, Skoda", "data that starts with"),
        (b"P5 and P6 are courses", "data that starts with"),
    ],
)
def test_other_files_are_left_out_by_name(content, what, root):
    (root / "test" / "c1" / "IMG_1.MOV").write_bytes(content)
    with pytest.raises(DataError, match=rf"c1/IMG_1\.MOV: .*({what})"):
        load(root)
    found = load(root, skip_corrupt=True)
    assert len(found.skipped) == 1 and "c1/IMG_1.MOV" in found.skipped[0] and "skip" not in found.skipped[0]


def test_only_the_start_of_what_is_no_image_is_read(root):
    with open(root / "test" / "c1" / "clip.mov", "wb") as file:
        file.write(b"\0\0\0\x14ftypqt  ")
        file.truncate(1 << 40)  # more than fits in memory
    with pytest.raises(DataError, match=r"clip\.mov: not an image but a video"):
        load(root)


def test_raw_photographs_are_not_their_previews(tmp_path):
    tags = {254: 1, 330: 8}
    (tmp_path / "a.NEF").write_bytes(encoded(FRAMES[0], "TIFF", tiffinfo=tags))
    with pytest.raises(DataError, match=r"a\.NEF: not an image but a camera's raw file; export it as JPEG"):
        decode.read_image(tmp_path / "a.NEF", Transform())


def test_each_heic_is_named_with_what_to_install(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for number in range(3):
        (root / "test" / "c1" / f"IMG_{number}.HEIC").write_bytes(HEIC)
    assert decode.image_kind(HEIC) == "HEIC"
    task = ["--way=2", "--shot=1", "--query=1"]
    assert program.main(["check", "folder", str(root), *task]) == 2
    lines = capsys.readouterr().out
    for number in range(3):
        assert f"IMG_{number}.HEIC: a HEIC image needs pillow-heif (pip install 'mtl_jax[heic]')" in lines


def test_heic(root):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    heif.from_pillow(FRAMES[0]).save(file, exif=exif.tobytes())
    pixels = decode.decode(file.getvalue(), "a", Transform())  # upright: its pixels are turned when it is decoded
    assert pixels.shape == (24, 32, 3)
    with pytest.raises(DataError, match="damaged") as caught:
        decode.decode(file.getvalue()[:-50], "a", Transform())
    assert "\n" not in str(caught.value)


def test_a_build_of_pillow_without_avif_says_so(monkeypatch):
    monkeypatch.setattr(decode.features, "check", lambda name: name != "avif")
    with pytest.raises(DataError, match=r"a: a AVIF|an? AVIF image needs another build of Pillow \(pip install --up"):
        decode.decode(KINDS["AVIF"], "a", Transform())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "MPO"])
def test_large_images_are_read_reduced(kind, monkeypatch):
    monkeypatch.setattr(transforms, "FULL_PIXELS", 500_000)
    monkeypatch.setattr(transforms, "REDUCED_PIXELS", 100_000)
    smooth = FRAMES[0].resize((601, 1001), Image.Resampling.BICUBIC)
    options = {"save_all": True, "append_images": [smooth]} if kind == "MPO" else {}
    pixels = decode.decode(encoded(smooth, kind, **options), "a", Transform())
    assert pixels.shape == (251, 151, 3)
    reference = np.asarray(smooth.reduce(4), float)
    assert np.abs(pixels - reference).mean() < 4


def test_size_of_reduction():
    sizes = {(8000, 6000): 1, (8160, 6144): 2, (12000, 9000): 4, (16320, 12240): 4, (40000, 30000): 8}
    assert {size: transforms.reduction(size) for size in sizes} == sizes


def test_bound_in_pixels_is_an_option(root):
    with pytest.raises(DataError, match=r"24 x 32 pixels, over max_pixels, 0\.0007 million; raise data\.max_pixels"):
        load(root, max_pixels=700)
    assert len(load(root, max_pixels=768).splits["test"].images) == 6
    with pytest.raises(DataError, match=r"data\.max_pixels: 0; it must be positive"):
        load(root, max_pixels=0)
    assert default.get_config().data.max_pixels == transforms.MAX_PIXELS


def test_pillow_warns_nobody(recwarn, capfd):
    warnings.simplefilter("always")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\1\0\0\0"  # cut
    damaged = encoded(FRAMES[0], "JPEG", exif=exif)
    assert decode.decode(damaged, "a", Transform()).shape == (32, 24, 3)
    wide = encoded(Image.new("L", (10_000, 9_500)), "PNG")  # over Pillow's own limit
    assert decode.decode(wide, "a", Transform()).shape == (2375, 2500, 1)
    assert not recwarn.list and capfd.readouterr().err == ""


def test_filters_of_warnings_survive_threads():
    before = list(warnings.filters)

    def work() -> None:
        for _ in range(200):
            with quiet:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before and not logging.getLogger("PIL.TiffImagePlugin").disabled


def move(root, file: str, place: str) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / file).rename(root / place)


def test_folders_below_a_class_folder_are_its_own(root, caplog):
    reference = load(root)
    move(root, "test/c1/2.png", "test/c1/more/and/2.png")
    (root / "test" / "c1" / "empty").mkdir()
    for file in (0, 1, 2):
        move(root, f"test/c0/{file}.png", f"test/c0/{2020 + file}/{file}.png")
    found = load(root)
    assert found.fingerprint == reference.fingerprint and found.splits["test"].class_names == ("c0", "c1")
    assert "2 of 2 classes combine the images of several folders (such as c0: c0/2020, c0/2021, c0/2022)" in caplog.text


def test_images_beside_class_folders_are_named(root, caplog):
    (root / "test" / "loose").write_bytes(KINDS["AVIF"])
    assert load(root / "test", fractions=(0, 0, 1)).splits["test"].class_names == ("c0", "c1")
    assert "left out 1 image outside any class folder, such as loose" in caplog.text


def test_alphabets_have_characters(root):
    for file in (0, 1, 2):
        move(root, f"test/c0/{file}.png", f"test/Latin/character01/{file}.png")
        move(root, f"test/c1/{file}.png", f"test/Latin/character02/{file}.png")
    (root / "test" / "c0").rmdir()
    (root / "test" / "c1").rmdir()
    assert load(root).splits["test"].class_names == ("Latin/character01", "Latin/character02")


def test_a_name_in_two_normal_forms_is_one_class(root):
    for form, label in (("NFC", 0), ("NFD", 1)):
        (root / "test" / f"c{label}").rename(root / "test" / unicodedata.normalize(form, "Müller"))
    found = load(root).splits["test"]
    assert found.class_names == ("Müller",) and found.counts.tolist() == [6]

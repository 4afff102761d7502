"""Every bad input gets one line that names the file, what was found and what to do; nothing is left half-written."""

import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import data_layouts
import numpy as np
import pytest
from PIL import Image

from mtl_jax import data
from mtl_jax.data import __main__ as program
from mtl_jax.data.sources import safe_pickle
from mtl_jax.errors import DataError

PIXELS = data_layouts.pixels()


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


COLOUR = Image.fromarray(PIXELS[0, 0])
JPEG = encoded(COLOUR, "JPEG")
PNG = encoded(COLOUR, "PNG")


def bomb(width: int, height: int) -> bytes:
    """Returns a PNG that says it is `width` x `height` and has no such data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(COLOUR, "JPEG", exif=exif)


def animated() -> bytes:
    return encoded(COLOUR, "GIF", save_all=True, append_images=[Image.fromarray(PIXELS[1, 0])])


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64), "PNG")


CORRUPT = {  # file name, content, message; skip_corrupt leaves these out
    "truncated JPEG": (
        "a.jpg",
        JPEG[:-60],
        r"a\.jpg: damaged image \(.*truncated.*\); replace it, or skip it with",
    ),
    "truncated PNG": ("a.png", PNG[:-1500], r"a\.png: damaged image \(.*\); replace it, or skip it with"),
    "broken PNG": ("a.png", PNG[:60] + b"\0" * 30 + PNG[90:], r"a\.png: damaged image \(.*\); replace it"),
    "header only": ("a.jpg", JPEG[:20], r"a\.jpg: not an image but "),
    "zero bytes": (
        "a.png",
        b"",
        r"a\.png: the file is empty \(0 bytes\); replace it, or skip it with --skip-corrupt",
    ),
    "text": ("a.png", b"no image", r"a\.png: not an image but data that starts with b'no image'; replace it"),
    "HTML": (
        "a.jpg",
        b"\n<!DOCTYPE html><p>quota",
        r"a\.jpg: not an image but an HTML page \(a download that failed\?\)",
    ),
    "LFS": ("a.jpg", b"version https://git-lfs.github.com/spec/v1\n", r"a\.jpg: not an image but a Git LFS pointer"),
    "pixel bomb": (
        "a.png",
        bomb(50_000, 50_000),
        r"a\.png: 50000 x 50000 pixels, over max_pixels, 250 million; raise",
    ),
    "large image": (
        "a.png",
        bomb(25_001, 10_000),
        r"a\.png: 25001 x 10000 pixels, over max_pixels, 250 million; raise data\.max_pixels \(--max-pixels\), or",
    ),
}
UNUSUAL = {  # file name, content, message; convert takes these
    "16 bits": (
        "a.png",
        sixteen_bit(),
        r"a\.png: the image has 16 bits a channel; convert it, or take it as its upper 8",
    ),
    "CMYK": (
        "a.jpg",
        encoded(COLOUR.convert("CMYK"), "JPEG"),
        r"a\.jpg: the image has the colour space CMYK; convert it",
    ),
    "palette": (
        "a.png",
        encoded(COLOUR.convert("P"), "PNG"),
        r"a\.png: the image has a palette; convert it, or .* as RGB",
    ),
    "alpha": (
        "a.png",
        encoded(COLOUR.convert("RGBA"), "PNG"),
        r"a\.png: the image has an alpha channel; .*seen on white",
    ),
    "transparency": ("a.png", encoded(COLOUR, "PNG", transparency=(1, 2, 3)), r"a\.png: the image has transparency"),
    "EXIF": (
        "a.jpg",
        rotated(),
        r"a\.jpg: the image has an EXIF orientation \(6\); convert it, or take it as turned upr",
    ),
    "animated": (
        "a.gif",
        animated(),
        r"a\.gif: the image has 2 frames; convert it, or take it as its first frame with",
    ),
}


@pytest.fixture
def root(tmp_path):
    """A good test part of two classes; what a test adds to it is bad."""
    for label in range(2):
        (tmp_path / "data" / "test" / f"c{label}").mkdir(parents=True)
        for i in range(3):
            (tmp_path / "data" / "test" / f"c{label}" / f"{i}.png").write_bytes(data_layouts.png(PIXELS[label, i]))
    return tmp_path / "data"


def refused(place, message: str, name: str = "folder", **options) -> None:
    """Asserts that loading is refused in one line, and that nothing stays in the cache."""
    cache = place.parent / "cache"
    with pytest.raises(DataError, match=message) as caught:
        data.load(name, str(place), cache_dir=str(cache), **options)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_images(case, root, caplog):
    name, content, message = CORRUPT[case]
    (root / "test" / "c1" / name).write_bytes(content)
    refused(root, message)
    refused(root, message, convert=True)
    found = data.load("folder", str(root), cache_dir=str(root.parent / "cache"), skip_corrupt=True)
    assert len(found.skipped) == 1 and name in found.skipped[0]
    assert found.splits["test"].counts.tolist() == [3, 3]
    assert "1 of 7 images left out: " in caplog.text


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_images(case, root):
    name, content, message = UNUSUAL[case]
    (root / "test" / "c1" / name).write_bytes(content)
    refused(root, message)
    refused(root, message, skip_corrupt=True)
    found = data.load("folder", str(root), cache_dir=str(root.parent / "cache"), convert=True, allow="repeated_images")
    split = found.splits["test"]
    stored = split.images[list(split.file_names).index(f"test/c1/{name}".encode())].astype(int)
    assert np.abs(stored - converted(case)).mean() < {"CMYK": 40, "EXIF": 40, "palette": 40, "animated": 40}.get(
        case, 1
    )


def converted(case: str) -> np.ndarray:
    """Returns about what each unusual image should become, int [32, 32, 3]."""
    if case == "16 bits":
        return np.repeat(np.arange(1024).reshape(32, 32, 1) * 64 >> 8, 3, axis=2)
    if case == "EXIF":
        return np.asarray(Image.open(io.BytesIO(JPEG)).transpose(Image.Transpose.ROTATE_270)).astype(int)
    if case == "CMYK":
        return np.asarray(Image.open(io.BytesIO(UNUSUAL["CMYK"][1])).convert("RGB")).astype(int)
    return PIXELS[0, 0].astype(int)


def test_alpha_is_seen_on_white(root):
    image = COLOUR.convert("RGBA")
    image.putalpha(0)
    (root / "test" / "c1" / "a.png").write_bytes(encoded(image, "PNG"))
    split = data.load("folder", str(root), cache_dir=str(root.parent / "cache"), convert=True).splits["test"]
    assert np.all(split.images[list(split.file_names).index(b"test/c1/a.png")] == 255)


def test_float_images_cannot_be_read(root):
    (root / "test" / "c1" / "a.tiff").write_bytes(encoded(Image.fromarray(np.ones((32, 32), np.float32)), "TIFF"))
    for convert in (False, True):
        refused(
            root, r"a\.tiff: an image of mode F, which is not 8-bit; convert it to 8-bit RGB or grey", convert=convert
        )


def test_dangling_link(root):
    (root / "test" / "c1" / "a.png").symlink_to(root / "nowhere.png")
    refused(root, r"test/c1/a\.png: a link to nothing \(.*nowhere\.png\); fix it, or move it elsewhere")


def test_link_to_a_folder_above(root):
    (root / "test" / "c1" / "loop").symlink_to(root)
    refused(root, r"loop: the link leads back to a folder above it; move it elsewhere")


def test_name_that_is_not_utf8(root):
    with open(os.fsencode(root / "test" / "c1") + b"/\xe9.png", "wb") as file:
        file.write(PNG)
    refused(root, r"data: the file name b'test/c1/\\xe9\.png' is not UTF-8; rename it")


def test_hidden_files_are_ignored(root):
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
        (root / "test" / "c1" / name).write_bytes(b"junk")
    for folder in (".git", "__MACOSX"):
        (root / "test" / folder).mkdir()
        (root / "test" / folder / "0.png").write_bytes(b"junk")
    found = data.load("folder", str(root), cache_dir=str(root.parent / "cache"))
    assert found.splits["test"].class_names == ("c0", "c1") and len(found.splits["test"].images) == 6


def test_other_files_in_a_class(root):
    (root / "test" / "c1" / "notes.txt").write_text("hello")
    refused(root, r"test/c1/notes\.txt: not an image but data that starts with b'hello'; replace it, or skip it")
    os.rename(root / "test" / "c1" / "notes.txt", root / "test" / "notes.txt")  # in no class: not in the way
    os.rename(root / "test" / "c1" / "0.png", root / "test" / "a")
    refused(root, r"test/a: the image is not in a class folder; move it into one")


def test_empty_class(root):
    (root / "test" / "c2").mkdir()
    refused(root, r"data/test/c2: the class folder has no images; add some, or move it elsewhere")


def test_class_of_corrupt_images_only(root):
    (root / "test" / "c2").mkdir()
    (root / "test" / "c2" / "0.png").write_bytes(b"")
    refused(root, r"class 'c2' of split test has no readable image; add some, or move it elsewhere", skip_corrupt=True)


def test_one_split_missing(root):
    os.rename(root / "test", root / "train")
    refused(
        root, r"data: the splits found are train, missing are val, test; give all three, or only test for evaluation"
    )


def test_two_folders_for_a_split(root):
    (root / "testing" / "c0").mkdir(parents=True)
    (root / "testing" / "c0" / "0.png").write_bytes(PNG)
    refused(root, r"data: both test/ and testing/ are the test split; make one of them")


def test_sizes_and_colours_that_differ(root):
    (root / "test" / "c1" / "3.png").write_bytes(encoded(COLOUR.resize((40, 32)), "PNG"))
    refused(root, r"c1/3\.png: 40 x 32 pixels where the first image has 32 x 32; set data\.image_size")
    (root / "test" / "c1" / "0.png").write_bytes(encoded(COLOUR.resize((40, 32)), "PNG"))
    refused(root, r"c1/0\.png: 40 x 32 pixels where .*c0/0\.png has 32 x 32; set data\.image_size")


def test_colour_among_grey(root):
    for label in range(2):
        for i in range(3):
            place = root / "test" / f"c{label}" / f"{i}.png"
            Image.open(place).convert("L").save(place)
    (root / "test" / "c1" / "3.png").write_bytes(PNG)
    refused(root, r"c1/3\.png: in colour where the first image of every class is grey; set data\.channels to 3 or 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, r"data\.channels: 4; it must be 1 or 3"),
        ({"image_size": -1}, r"data\.image_size: -1, .*negative"),
        ({"image_size": 84, "resize": 80}, r"data\.resize: 80 is under data\.image_size: 84; it must not be"),
        ({"resize": 80}, r"data\.resize: 80 without data\.image_size; say what to crop to"),
        ({"lists": "/nowhere.json"}, r"/nowhere\.json: not lists of classes \(.*\); data\.lists must be a folder"),
    ],
)
def test_options_that_cannot_be(options, message, root):
    refused(root, message, **options)


def test_names_and_paths(root, tmp_path):
    refused(root, r"data\.name: 'mini' is unknown; it must be one of glyphs, omniglot", name="mini")
    refused(tmp_path / "nowhere", r"nowhere: no such file or folder; data\.path must name the data set")
    with pytest.raises(DataError, match=r"data\.path: fc100 needs the folder or file that holds it"):
        data.load("fc100")
    (tmp_path / "other").mkdir()
    refused(tmp_path / "other", r"other: no known format; expected class folders in train/, val/ and test/")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", r"file: neither a folder nor a tar or zip archive")


def test_unsplit_classes(root):
    refused(root / "test", r"test: classes without a split; set data\.fractions \(for example 0\.5,0\.25,0\.25")
    refused(root / "test", r"test: 2 classes: too few for a \w+ fraction of 0\.", fractions=(0.8, 0.1, 0.1))
    refused(root / "test", r"data\.fractions: \(0\.5, 0\.1\); give three numbers", fractions=(0.5, 0.1))
    lists = {"train": ["c0"], "val": ["c1"], "test": ["c9"]}
    refused(root / "test", r"test: 1 of the 3 listed classes are missing, such as 'c9'", lists=lists)
    refused(root / "test", r"test: class 'c0' is listed twice", lists={**lists, "test": ["c0"]})
    refused(root / "test", r"test: the lists have a split 'tests'; the splits are", lists={"tests": ["c0"]})
    refused(root / "test", r"60 of the 60|100 of the 100 listed classes are missing", name="cifar_fs")


def csv_folder(tmp_path, text: str, name: str = "a.png"):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / name).write_bytes(PNG)
    (tmp_path / "data" / "test.csv").write_text(text)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,size\na.png,x\n", r"test\.csv: the header is 'file,size'; it must have the columns filename and label"),
        ("", r"test\.csv: the header is ''; it must have the columns filename and label"),
        ("filename,label\na.png,x\nb.png,x\n", r"test\.csv, line 3: there is no image 'b\.png'; put it into images/"),
        ("filename,label\na.png\n", r"test\.csv, line 2: 1 field; expected a file name and a label"),
    ],
)
def test_bad_csv(text, message, tmp_path):
    refused(csv_folder(tmp_path, text), message)


def test_csv_with_ambiguous_name(tmp_path):
    place = csv_folder(tmp_path, "filename,label\na.png,x\n")
    for folder in ("one", "two"):
        (place / folder).mkdir()
        (place / "images" / "a.png").replace(place / folder / "a.png")
        (place / "images" / "a.png").write_bytes(PNG)
    (place / "images" / "a.png").unlink()
    refused(place, r"test\.csv, line 2: 'a\.png' may be one/a\.png or two/a\.png; write the path into the list")


def arrays(tmp_path, **held):
    (tmp_path / "data").mkdir(exist_ok=True)
    np.savez(tmp_path / "data" / "test.npz", **held)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"images": PIXELS[0], "labels": [0, 0, 1, 1, 1, -1]}, r"test\.npz: label -1 of image 5 is out of range"),
        ({"images": PIXELS[0], "labels": [0, 1]}, r"test\.npz: 6 images but 2 labels; each image needs one"),
        (
            {"images": PIXELS[0], "labels": np.arange(6) + 0.5},
            r"test\.npz: the labels are float64 \[6\]; expected one int",
        ),
        ({"images": PIXELS[0] / 255, "labels": [0] * 6}, r"test\.npz: the images are float64; they must be uint8"),
        ({"images": PIXELS[0][..., :2], "labels": [0] * 6}, r"test\.npz: the images have the shape \[6, 32, 32, 2\]"),
        ({"labels": [0] * 6}, r"test\.npz: has labels; one of images, data, .* is needed"),
        (
            {"images": PIXELS[0], "labels": [0, 0, 0, 1, 1, 2], "class_names": ["a", "b"]},
            r"test\.npz: label 2 of image 5 is out of range; labels must be from 0 to 1",
        ),
    ],
)
def test_bad_arrays(held, message, tmp_path):
    refused(arrays(tmp_path, **held), message)


def test_damaged_array_files(tmp_path):
    place = arrays(tmp_path, images=PIXELS[0], labels=[0] * 6)
    whole = (place / "test.npz").read_bytes()
    for content, message in (
        (whole[:5000], r"test\.npz: not a readable \.npz file \(.*\) but data that starts with b'PK"),
        (b"<html>quota exceeded", r"test\.npz: not a readable \.npz file \(.*\) but an HTML page"),
    ):
        (place / "test.npz").write_bytes(content)
        refused(place, message)
    np.savez(place / "test.npz", images=np.array([{}], object), labels=[0])
    objects = (
        r": an array of Python objects, which NumPy keeps as a pickle; save the images as one uint8 array, images="
    )
    refused(place, r"test\.npz, images\.npy" + objects)
    np.savez_compressed(place / "test.npz", images=np.array([{}], object), labels=[0])
    refused(place, r"test\.npz, images\.npy" + objects)
    (place / "test.npz").unlink()
    np.save(place / "test_images.npy", np.array([{}], object))
    np.save(place / "test_labels.npy", np.zeros(1, int))
    refused(place, r"test_images\.npy" + objects)


def pickles(tmp_path, content: bytes, name: str = "mini-imagenet-cache-test.pkl"):
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"<html>Google Drive",
            r"cache-test\.pkl: not a pickle but an HTML page \(a download that failed\?\); download it",
        ),
        (b"", r"cache-test\.pkl: not a pickle but an empty file; download it again"),
        (b"junk", r"cache-test\.pkl: not a pickle, or a damaged one \(.*\); download it again"),
        (pickle.dumps({"image_data": PIXELS[0]})[:-99], r"not a pickle, or a damaged one \(.*\); download it again"),
        (
            b"cos\nsystem\n(S'touch x'\ntR.",
            r"the pickle asks for os\.system, which is not data and might run code; only",
        ),
        (pickle.dumps([1, 2]), r"cache-test\.pkl: holds list, without labels; expected a dict of images and labels"),
        (
            pickle.dumps({"image_data": PIXELS[0], "class_dict": {"a": [0, 6]}}),
            r"class_dict has image 6 of 'a', but there are 6",
        ),
        (
            pickle.dumps({"image_data": PIXELS[0], "class_dict": {"a": [0, 1, 2], "b": [2, 3, 4, 5]}}),
            r"class_dict has image 2 in two classes, 'a' and 'b'",
        ),
        (
            pickle.dumps({"image_data": PIXELS[0], "class_dict": {"a": [0]}}),
            r"class_dict leaves image 1 without a class",
        ),
    ],
)
def test_bad_pickles(content, message, tmp_path):
    refused(pickles(tmp_path, content), message)


def test_a_pickle_larger_than_the_free_memory(tmp_path, monkeypatch):
    place = pickles(tmp_path, pickle.dumps({"image_data": PIXELS[0], "class_dict": {"a": range(6)}}))
    monkeypatch.setattr(safe_pickle, "free_memory", lambda: 1000)
    refused(place, r"test\.pkl: a pickle is loaded whole, and its 0\.0 GB are more than the 0\.0 GB of free memory")


def test_free_memory_is_known_here():
    assert safe_pickle.free_memory() > 1 << 20


def test_array_files_that_belong_together(tmp_path):
    place = pickles(tmp_path, b"", "test_images_png.pkl")
    refused(place, r"test_images_png\.pkl: the file with the labels is not beside it; put it there")
    pickles(tmp_path, b"", "test.pkl")
    pickles(tmp_path, b"", "FC100_test.pickle")
    refused(place, r"data: both FC100_test\.pickle and test\.pkl are the test split; keep one of them")


def test_array_files_in_an_archive(tmp_path):
    place = arrays(tmp_path, images=PIXELS[0], labels=[0] * 6)
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(place / "test.npz", "test.npz")
    refused(
        tmp_path / "data.tar", r"data\.tar: pickles and arrays are not read from archives; unpack it and name the fol"
    )


def test_bad_cifar(tmp_path):
    data_layouts.cifar_python(tmp_path / "data", PIXELS, "fc100")
    batch = tmp_path / "data" / "cifar-100-python" / "test"
    held = pickle.loads(batch.read_bytes())
    for fine, message in (
        ([100] * 100, r"cifar-100-python/test: label 100 is out of range; labels must be from 0 to 99"),
        ([0] * 99, r"cifar-100-python/test: 100 images but 99 labels"),
    ):
        batch.write_bytes(pickle.dumps({**held, b"fine_labels": fine}))
        refused(tmp_path / "data", message, name="fc100")
    batch.write_bytes(pickle.dumps([]))
    refused(tmp_path / "data", r"test: holds list; expected the dict of cifar-100-python", name="fc100")


def tar_with(tmp_path, name: str, kind: bytes = tarfile.REGTYPE, link: str = ""):
    place = tmp_path / "data.tar"
    with tarfile.open(place, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, len(PNG) if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(PNG))
    return place


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "../test/c/0.png",
            tarfile.REGTYPE,
            r"data\.tar: the member '\.\./test/c/0\.png' leads outside of the archive",
        ),
        (
            "/test/c/0.png",
            tarfile.REGTYPE,
            r"data\.tar: the member '/test/c/0\.png' leads outside of the archive; do not",
        ),
        ("test/c/0.png", tarfile.SYMTYPE, r"data\.tar: the member 'test/c/0\.png' is a link or a device; unpack"),
        ("test/c/0.png", tarfile.LNKTYPE, r"data\.tar: the member 'test/c/0\.png' is a link or a device; unpack"),
        ("test/c/0.png", tarfile.CHRTYPE, r"data\.tar: the member 'test/c/0\.png' is a link or a device; unpack"),
    ],
)
def test_unsafe_tars(name, kind, message, tmp_path):
    refused(tar_with(tmp_path, name, kind, "/etc/passwd"), message)


def test_unsafe_and_damaged_zips(tmp_path):
    place = tmp_path / "data.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("../test/c/0.png", PNG)
    refused(place, r"data\.zip: the member '\.\./test/c/0\.png' leads outside of the archive; do not use this file")
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("test/c/0.png", PNG)
    raw = bytearray(place.read_bytes())
    raw[200] ^= 255
    place.write_bytes(raw)
    refused(place, r"data\.zip/test/c/0\.png: damaged member \(.*\); download the archive again")


def test_truncated_tars(tmp_path):
    place = tar_with(tmp_path, "test/c/0.png")
    whole = place.read_bytes()
    place.write_bytes(whole[:1000])
    refused(
        place,
        r"data\.tar/test/c/0\.png: the archive ends within it|data\.tar: damaged archive \(.*\); download it again",
    )
    place = tmp_path / "data.tar.gz"
    with tarfile.open(place, "w:gz") as tar:
        for i in range(4):
            member = tarfile.TarInfo(f"test/c/{i}.png")
            member.size = len(PNG)
            tar.addfile(member, io.BytesIO(PNG))
    place.write_bytes(place.read_bytes()[:-2000])
    refused(place, r"data\.tar\.gz: damaged archive \(.*\); download it again")


def test_archives_too_large_to_be_images(tmp_path, monkeypatch):
    from mtl_jax.data.sources import archives

    monkeypatch.setattr(archives, "MAX_MEMBER", 100)
    refused(
        tar_with(tmp_path, "test/c/0.png"), r"data\.tar: the member 'test/c/0\.png' has \d+ bytes, more than an image"
    )


def test_program_ends_with_one_line_and_status_2(root, capsys):
    (root / "test" / "c1" / "0.png").write_bytes(b"")
    status = program.main(["prepare", "folder", str(root), "--cache-dir", str(root.parent / "cache")])
    output = capsys.readouterr()
    assert status == 2 and output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and "0.png" in output.err


def test_program_from_the_command_line(root):
    (root / "test" / "c1" / "3.png").write_bytes(b"")
    command = [
        sys.executable,
        "-m",
        "mtl_jax.data",
        "prepare",
        "folder",
        str(root),
        "--cache-dir",
        str(root / ".cache"),
    ]
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode == 2 and "Traceback" not in bad.stderr and bad.stderr.count("\n") == 1
    good = subprocess.run([*command, "--skip-corrupt"], capture_output=True, text=True)
    assert good.returncode == 0 and "1 image left out" in good.stdout and "fingerprint" in good.stdout

"""`python -m mtl_jax.data check`: what it finds, its pictures, and its exit status."""

import shutil

import data_layouts
import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import __main__ as program
from mtl_jax.data import facts
from mtl_jax.data.cache import reader


@pytest.fixture
def root(tmp_path):
    data_layouts.class_folders(tmp_path / "data", data_layouts.pixels(), "fc100")
    return tmp_path / "data"


@pytest.fixture
def check(root, capsys):
    def run(*flags: str, name: str = "fc100", path: str = str(root)) -> tuple[int, str]:
        common = ["--cache-dir", str(root.parent / "cache"), "--shot", "1"]
        if "--query" not in flags:
            common += ["--query", "5"]
        status = program.main(["check", name, path, *common, *flags])
        return status, capsys.readouterr().out

    return run


def test_all_is_well(check, root):
    status, output = check()
    assert status == 0
    lines = output.splitlines()
    assert lines[0] == "format: class folders"
    assert lines[1].startswith(f"cache: {root.parent / 'cache'}/fc100-") and lines[1].endswith(" (not prepared yet)")
    assert "train: 60 classes, 360 images, 6 a class, sizes 32x32 (360), modes RGB (360)" in lines
    assert "note: 6 images a class, the paper's fc100 has 600" in lines
    assert lines[-1] == "all is well"
    assert not (root.parent / "cache").exists()


def test_the_fingerprint_is_that_of_the_cache(check, root, capsys):
    program.main(["prepare", "fc100", str(root), "--cache-dir", str(root.parent / "cache")])
    prepared = capsys.readouterr().out.split("fingerprint ")[1][:32]
    status, output = check()
    assert status == 0 and f"fingerprint {prepared}: not a known variant" in output
    assert "not prepared yet" not in output


def test_known_variants_are_named(check, monkeypatch):
    fingerprint = check()[1].split("fingerprint ")[1][:32]
    monkeypatch.setattr(facts, "known_fingerprints", lambda: {fingerprint: "a friend"})
    assert f"fingerprint {fingerprint}: a friend" in check()[1]


def test_classes_are_listed_on_request(check):
    assert "test\tbaby\t6" in check("--classes")[1].splitlines()
    assert "test\tbaby\t6" not in check()[1]


def test_problems_are_listed_all(check, root):
    (root / "test" / "baby" / "7.png").write_bytes(b"<html>")
    (root / "test" / "baby" / "8.png").write_bytes(b"")
    Image.new("RGB", (40, 32)).save(root / "test" / "bee" / "9.png")
    Image.new("CMYK", (32, 32)).save(root / "test" / "bee" / "8.jpg")
    shutil.copy(root / "train" / "apple" / "0.png", root / "val" / "bear" / "9.png")
    (root / "val" / "apple").mkdir()
    Image.new("RGB", (32, 32), "red").save(root / "val" / "apple" / "0.png")
    status, output = check()
    assert status == 2
    problems = [line.removeprefix("problem: ") for line in output.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 8 and output.splitlines()[-1] == "8 problems"
    for part in (
        "baby/7.png: not an image but an HTML page",
        "baby/8.png: the file is empty (0 bytes)",
        "bee/8.jpg: the image has the colour space CMYK",
        "images are of 2 sizes; set --image-size to bring all to one",
        "split val has 1 class with fewer images than --shot=1 plus --query=5; 'apple' has 1",
        "class 'apple' is in train and in val",
        "class 'apple' is in val; in the paper's fc100 it is in train",
        "val/bear/9.png: the same image as ",
    ):
        assert any(part in problem for problem in problems), part
    assert "fingerprint" not in output


def test_too_few_classes_and_images(check, root):
    status, output = check("--way", "21", "--query", "6")
    assert status == 2
    assert "problem: split test has 20 classes, fewer than --way=21" in output
    assert "problem: split train has 60 classes with fewer images than --shot=1 plus --query=6; 'apple' has 6" in output


def test_many_problems_are_shortened(check, root):
    for place in list((root / "train").iterdir())[:15]:
        (place / "bad.png").write_bytes(b"")
    output = check()[1]
    assert output.count("the file is empty") == 10 and "problem: ... and 5 more of this kind" in output


def test_published_duplicates_are_notes(check, root, monkeypatch):
    shutil.copy(root / "train" / "apple" / "0.png", root / "val" / "bear" / "9.png")
    status, output = check()
    assert status == 2
    fingerprint = output.split("fingerprint ")[1][:32]
    monkeypatch.setattr(facts, "known_fingerprints", lambda: {fingerprint: "a friend"})
    status, output = check()
    assert status == 0 and "(as in the published data)" in output


def test_missing_split(check, root):
    shutil.rmtree(root / "val")
    status, output = check()
    assert status == 2 and "missing are val; give all three, or only test" in output


def test_bad_path_is_one_line(check, capsys):
    assert check(path="/nowhere")[0] == 2


def test_cache_place_by_variable(check, root, monkeypatch, capsys):
    monkeypatch.setenv(reader.VARIABLE, "/somewhere/else")
    program.main(["check", "fc100", str(root), "--shot", "1", "--query", "1"])
    assert "cache: /somewhere/else/fc100-" in capsys.readouterr().out


def test_pictures(check, root):
    status, output = check("--png", str(root.parent / "a.png"))
    assert status == 0 and "a.png" in output and "a-episode.png" in output
    classes = np.asarray(Image.open(root.parent / "a.png"))
    episode = np.asarray(Image.open(root.parent / "a-episode.png"))
    assert classes.shape == (24 * 66, 170 + 6 * 66, 3)
    assert episode.shape == (5 * 66, 170 + 7 * 66, 3)
    # The first tile is the first stored image, twice magnified.
    from mtl_jax import data

    first = data.load("fc100", str(root), cache_dir=str(root.parent / "cache")).splits["train"].images[0]
    np.testing.assert_array_equal(classes[:64:2, 170:234:2], first)

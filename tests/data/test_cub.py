"""CUB-200-2011 in a small fake of its published layout: all 200 class folders, one or two images in each."""

import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from mtl_jax import data
from mtl_jax.data import __main__ as program
from mtl_jax.errors import DataError

NAMES = [f"{number:03d}.Bird_{number % 7}" for number in range(1, 201)]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """The folder that the archive is unpacked in; bird 1 has two images, one of them grey and of another size."""
    parent, rng = tmp_path_factory.mktemp("birds"), np.random.default_rng(0)
    root = parent / "CUB_200_2011"
    for name in NAMES:
        (root / "images" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / name / f"{name[4:]}_0001_1.jpg")
    Image.fromarray(rng.integers(0, 256, (12, 10), np.uint8)).save(root / "images" / NAMES[0] / "grey.jpg")
    (root / "attributes").mkdir()
    (root / "attributes" / "certainties.txt").write_text("1 not visible\n")
    (root / "classes.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(NAMES, 1)))
    (parent / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    return parent


@pytest.fixture
def load(tmp_path):
    return lambda path, **options: data.load(
        "cub", str(path), cache_dir=str(tmp_path / "cache"), **{"image_size": 8, **options}
    )


def test_the_usual_split_is_by_number(parent, load):
    found = load(parent / "CUB_200_2011")
    assert found.format == "CUB-200-2011"
    # Chen et al.: of the classes counted from 0, the even ones; those that leave 1 by 4; those that leave 3.
    wanted = {"train": NAMES[0::2], "val": NAMES[1::4], "test": NAMES[3::4]}
    assert {name: list(split.class_names) for name, split in found.splits.items()} == wanted
    assert [len(split.class_names) for split in found.splits.values()] == [100, 50, 50]
    assert found.splits["train"].images.shape == (101, 8, 8, 3)
    assert found.splits["test"].class_names[:2] == (NAMES[3], NAMES[7]) and NAMES[3].startswith("004.")


def test_it_is_read_from_the_parent_the_images_and_the_archive(parent, load, tmp_path):
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(parent / "CUB_200_2011", "CUB_200_2011")
        tar.add(parent / "attributes.txt", "attributes.txt")
    paths = parent, parent / "CUB_200_2011", parent / "CUB_200_2011" / "images", tmp_path / "CUB_200_2011.tgz"
    assert len({load(path).fingerprint for path in paths}) == 1


def test_fractions_come_before_the_usual_split(parent, load):
    assert list(load(parent, fractions=(0, 0, 1)).splits) == ["test"]


def test_a_class_that_is_missing_is_named(parent, load, tmp_path):
    shutil.copytree(parent / "CUB_200_2011" / "images", tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / NAMES[41])
    with pytest.raises(DataError, match=r"199 folders, not the 200 classes .*; 042 is missing"):
        load(tmp_path / "images")


def test_check_knows_how_many_images_there_are(parent, capsys):
    program.main(["check", "cub", str(parent), "--image-size=8", "--shot=1", "--query=0"])
    assert "note: 201 images, the published cub has 11788" in capsys.readouterr().out

"""mini-ImageNet and tieredImageNet from a small ILSVRC2012, in each of the forms that people have it in."""

import io
import tarfile
import threading

import data_layouts
import numpy as np
import pytest
from PIL import Image

from mtl_jax import data
from mtl_jax.data import facts
from mtl_jax.data.cache import build, resume
from mtl_jax.data.decode import CorruptImage
from mtl_jax.data.sources import find
from mtl_jax.data.sources.splitting import Splitting
from mtl_jax.errors import DataError

CLASSES = {"train": "n01532829", "val": "n01855672", "test": "n01930112"}
NUMBERS = (1, 3)  # of the images of a class in mini-ImageNet
FILES = (7, 36, 9900)  # numbers in the file names of the images of a class, of which the first and last are listed


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(facts, "miniimagenet", lambda: {split: {name: NUMBERS} for split, name in CLASSES.items()})
    known = facts.class_splits
    monkeypatch.setattr(facts, "ilsvrc_images", lambda name: len(FILES))
    tiered = {split: [name] for split, name in CLASSES.items()}
    monkeypatch.setattr(facts, "class_splits", lambda name: tiered if name == "tieredimagenet" else known(name))


def image(name: str, number: int) -> Image.Image:
    rng = np.random.default_rng([int(name[1:]), number])
    return Image.fromarray(rng.integers(0, 256, (60 + number % 7, 90, 3), np.uint8))


def jpeg(name: str, number: int) -> bytes:
    file = io.BytesIO()
    picture = image(name, number)
    (picture.convert("CMYK") if number == 36 else picture).save(file, "JPEG")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def class_tar(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in reversed(FILES):
            add(tar, f"{name}_{number}.JPEG", jpeg(name, number))
    return file.getvalue()


def write_train_tar(root):
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as tar:
        for name in (*CLASSES.values(), "n02999999"):
            add(tar, f"{name}.tar", class_tar(name))
    return root / "ILSVRC2012_img_train.tar"


def write_folder_with_train_tar(root):
    write_train_tar(root)
    return root


def write_class_tars(root):
    (root / "train").mkdir()
    for name in CLASSES.values():
        (root / "train" / f"{name}.tar").write_bytes(class_tar(name))
    return root


def write_class_folders(root):
    for name in (*CLASSES.values(), "n02999999"):
        folder = root / "ILSVRC" / "Data" / "CLS-LOC" / "train" / name
        folder.mkdir(parents=True)
        for number in FILES:
            (folder / f"{name}_{number}.JPEG").write_bytes(jpeg(name, number))
    return root


WRITERS = (write_train_tar, write_folder_with_train_tar, write_class_tars, write_class_folders)


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_mini_imagenet(write, tmp_path):
    (tmp_path / "data").mkdir()
    place = write(tmp_path / "data")
    found = data.load("miniimagenet", str(place), cache_dir=str(tmp_path / "cache"))
    assert found.format.startswith("ILSVRC2012 ")
    for split, name in CLASSES.items():
        images = found.splits[split].images
        assert images.shape == (2, 84, 84, 3) and found.splits[split].class_names == (name,)
        names = [n.decode().rsplit("/", 1)[-1] for n in found.splits[split].file_names]
        assert sorted(names) == [f"{name}_7.JPEG", f"{name}_9900.JPEG"]
        for stored, file in zip(images, names, strict=True):
            number = int(file.split("_")[1].removesuffix(".JPEG"))
            whole = Image.open(io.BytesIO(jpeg(name, number))).resize((84, 84), Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(stored, np.asarray(whole))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found.cache.rsplit("/", 1)[-1]]


def test_tiered_imagenet_has_all_images_and_any_size(tmp_path):
    (tmp_path / "data").mkdir()
    place = write_train_tar(tmp_path / "data")
    options = {"image_size": 32, "resize": 40, "cache_dir": str(tmp_path / "cache")}
    found = data.load("tieredimagenet", str(place), **options)
    for split, name in CLASSES.items():
        images = found.splits[split].images
        assert images.shape == (3, 32, 32, 3)  # the CMYK one too
        order = list(found.splits[split].file_names)
        stored = images[order.index(f"{name}_7.JPEG".encode())]
        # 67 x 90 pixels have become 40 x 60, of which the middle was taken.
        picture = (
            Image.open(io.BytesIO(jpeg(name, 7))).resize((60, 40), Image.Resampling.BILINEAR).crop((14, 4, 46, 36))
        )
        np.testing.assert_array_equal(stored, np.asarray(picture))


def test_other_folders_are_not_taken_for_it(tmp_path):
    for number, (split, name) in enumerate(CLASSES.items()):
        (tmp_path / "data" / split / name).mkdir(parents=True)
        place = tmp_path / "data" / split / name / f"{name}00000005.png"
        place.write_bytes(data_layouts.png(data_layouts.pixels()[number, 0]))
    found = data.load("miniimagenet", str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert found.format == "class folders"


def test_missing_classes(tmp_path):
    (tmp_path / "data").mkdir()
    place = write_class_tars(tmp_path / "data")
    (place / "train" / "n01855672.tar").unlink()
    with pytest.raises(
        DataError, match=r"data: 1 of the 3 classes of miniimagenet are missing, such as n01855672; download"
    ):
        data.load("miniimagenet", str(place), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["miniimagenet", "tieredimagenet"])
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("published", [2, 4])
def test_a_class_with_another_number_of_images_is_refused(published, write, name, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    place = write(tmp_path / "data")
    monkeypatch.setattr(facts, "ilsvrc_images", lambda name: published if name == "n01855672" else len(FILES))
    with pytest.raises(DataError, match=rf"class n01855672 has 3 images, in ILSVRC2012 it has {published}; unpack"):
        data.load(name, str(place), cache_dir=str(tmp_path / "cache"))


def test_an_image_lost_from_a_folder_is_noticed_in_what_was_prepared_before(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    place = write_class_folders(tmp_path / "data")
    data.load("miniimagenet", str(place), cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(facts, "ilsvrc_images", lambda name: 4)
    with pytest.raises(DataError, match="has 3 images, in ILSVRC2012 it has 4"):
        data.load("miniimagenet", str(place), cache_dir=str(tmp_path / "cache"))


def test_the_published_numbers_of_images(monkeypatch):
    monkeypatch.undo()
    fewer = facts._json("ilsvrc2012.json")["fewer"]
    assert 1300 * (1000 - len(fewer)) + sum(fewer.values()) == 1_281_167  # Russakovsky et al. (2015), table 2
    assert len(fewer) == 105 and (min(fewer.values()), max(fewer.values())) == (732, 1299)
    tiered = {
        split: sum(map(facts.ilsvrc_images, names)) for split, names in facts.class_splits("tieredimagenet").items()
    }
    assert tiered == {"train": 448_695, "val": 124_261, "test": 206_209}  # Ren et al. (2018)
    for classes in facts.miniimagenet().values():
        for name, numbers in classes.items():
            assert max(numbers) <= facts.ilsvrc_images(name)


def test_damaged_tars(tmp_path):
    (tmp_path / "data").mkdir()
    place = write_class_tars(tmp_path / "data")
    tar = place / "train" / "n01930112.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-12000])
    with pytest.raises(CorruptImage, match=r"n01930112\.tar/n01930112_\d+\.JPEG: the archive ends within it; download"):
        data.load("tieredimagenet", str(place), cache_dir=str(tmp_path / "cache"))
    tar.write_bytes(b"x" * 1024 + whole[1024:])
    with pytest.raises(DataError, match=r"n01930112\.tar: damaged archive at byte 0 \(.*\); download it again"):
        data.load("tieredimagenet", str(place), cache_dir=str(tmp_path / "cache2"))


def test_a_stopped_preparation_goes_on(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    place = write_train_tar(tmp_path / "data")
    decoded = []
    decode = build.class_block

    def stops_at_test(split, name, images, work):
        if split == "test" and len(decoded) == 2:
            raise KeyboardInterrupt
        decoded.append(split)
        return decode(split, name, images, work)

    monkeypatch.setattr(build, "class_block", stops_at_test)
    options = {"cache_dir": str(tmp_path / "cache"), "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        data.load("miniimagenet", str(place), **options)
    left, lock = sorted((tmp_path / "cache").iterdir())
    assert lock.name == f"{left.name}.lock"
    assert {file.name for file in left.iterdir()} == {"train-n01532829.npz", "val-n01855672.npz"}
    decoded.append("again")
    found = data.load("miniimagenet", str(place), **options)
    assert decoded == ["train", "val", "again", "test"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found.cache.rsplit("/", 1)[-1]]
    monkeypatch.setattr(build, "class_block", decode)
    other = data.load("miniimagenet", str(place), cache_dir=str(tmp_path / "other"))
    assert other.fingerprint == found.fingerprint
    for split in CLASSES:
        np.testing.assert_array_equal(found.splits[split].images, other.splits[split].images)


def test_two_preparations_take_turns(tmp_path):
    entered, inside = [], threading.Event()
    folder = tmp_path / "folder"

    def prepare(number):
        with resume.kept_blocks(folder, wanted=True) as place:
            assert place.is_dir()
            entered.append((number, folder.exists()))
            inside.set()
            if not folder.exists():
                threading.Event().wait(0.2)
                folder.mkdir()

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert [there for _, there in entered] == [False, True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("levels", ["", "ILSVRC2012", "imagenet/ILSVRC2012"])
@pytest.mark.parametrize("write", WRITERS[1:])
def test_it_is_found_from_a_folder_above(write, levels, tmp_path):
    (tmp_path / "data" / levels).mkdir(parents=True)
    (tmp_path / "data" / "README").write_text("about")
    write(tmp_path / "data" / levels)
    source = find.find("miniimagenet", str(tmp_path / "data"), Splitting())
    assert source.format.startswith("ILSVRC2012 ") and set(source.read(tmp_path)) == set(CLASSES)


def test_two_copies_below_a_folder_are_not_chosen_from(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_class_tars(tmp_path / "data" / name)
    with pytest.raises(DataError, match=r"data: both .*one and .*two have images of ILSVRC2012; name one of them"):
        find.find("miniimagenet", str(tmp_path / "data"), Splitting())


@pytest.mark.parametrize("above", ["", "mini/"])
def test_split_folders_whose_files_have_their_original_names_are_split_folders(above, tmp_path):
    for split, name in CLASSES.items():
        (tmp_path / "data" / above / split / name).mkdir(parents=True)
        (tmp_path / "data" / above / split / name / f"{name}_7.JPEG").write_bytes(jpeg(name, 7))
    assert find.find("miniimagenet", str(tmp_path / "data"), Splitting()).format == "class folders"

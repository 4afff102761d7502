"""The layouts in which data sets of papers circulate, each in a small fake."""

import json
import tarfile
from pathlib import Path

import data_layouts
import numpy as np
import pytest

from mtl_jax import data
from mtl_jax.data import facts
from mtl_jax.data.sources import find, splitting
from mtl_jax.errors import DataError

PIXELS = data_layouts.pixels()
PNG = data_layouts.png(PIXELS[0, 0])
EACH, CLASSES = 2, 6
BIRDS = [f"{number:03d}.Bird" for number in range(1, 201)]


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    """Writes files below a folder, and returns it."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def images(names: dict[str, list[str]]) -> dict[str, bytes]:
    """An image for every file of every class."""
    return {
        file: data_layouts.png(PIXELS[label % 100, i % 6])
        for label, files in enumerate(names.values())
        for i, file in enumerate(files)
    }


def found(root: Path, name: str = "folder", **options) -> tuple[str, dict[str, dict[str, int]]]:
    """The format that is recognised, and split -> class -> number of images, each of which is read."""
    source = find.find(name, str(root), splitting.Splitting(**options))
    contents = source.read(root)
    for held in (held for classes in contents.values() for held in classes.values()):
        assert all(len(held.read(i)) for i in range(len(held)))
    return source.format, {
        split: {name: len(held) for name, held in classes.items()} for split, classes in contents.items()
    }


def refused(root: Path, message: str, name: str = "folder", **options) -> None:
    with pytest.raises(DataError, match=message) as caught:
        found(root, name, **options)
    assert "\n" not in str(caught.value) and "remove" not in str(caught.value)


SPLIT_OF = {"a": "train", "b": "train", "c": "val", "d": "val", "e": "test", "f": "test"}
FILES = {name: [f"images/{name}{i}.png" for i in range(EACH)] for name in SPLIT_OF}
WANTED = {s: {n: EACH for n in SPLIT_OF if SPLIT_OF[n] == s} for s in data.SPLITS}


def table(split: str, folder: str = "") -> str:
    rows = [f"{folder}{file[7:]},{name}" for name in SPLIT_OF if SPLIT_OF[name] == split for file in FILES[name]]
    return "\n".join(["filename,label", *rows])


@pytest.mark.parametrize("folder", ["", "split/", "splits/", "lists/ravi/"])
@pytest.mark.parametrize("spelled", [("train", "val", "test"), ("Train", "valid", "Test")])
def test_images_with_lists_in_a_folder_of_their_own(spelled, folder, tmp_path):
    lists = {f"{folder}{name}.csv": table(split) for name, split in zip(spelled, data.SPLITS, strict=True)}
    assert found(write(tmp_path, images(FILES) | lists)) == ("images with CSV files", WANTED)


def test_two_sets_of_lists_are_not_chosen_from(tmp_path):
    lists = {f"{folder}/{split}.csv": table(split) for folder in ("ravi", "ren") for split in data.SPLITS}
    refused(write(tmp_path, images(FILES) | lists), r"both .*ravi/test\.csv and .*ren/test\.csv list the test split")


def test_one_table_with_a_column_of_splits(tmp_path):
    spelled = {"train": "Train", "val": "validation", "test": "TEST"}
    rows = [f"{i},{spelled[SPLIT_OF[n]]},{n},{file[7:]}" for n in SPLIT_OF for i, file in enumerate(FILES[n])]
    root = write(tmp_path, images(FILES) | {"labels.csv": "\n".join([",Data Set,class,file", *rows])})
    assert found(root) == ("images with a CSV file", WANTED)
    write(root, {"labels.csv": "file,class,split\na0.png,a,3\n"})
    refused(root, r"labels\.csv: '3' of image images/a0\.png is not a split; the splits are train, val, test")


def test_one_table_without_splits_is_split_by_fractions(tmp_path):
    rows = [f"{file[7:]},{name}" for name in SPLIT_OF for file in FILES[name]]
    root = write(tmp_path, images(FILES) | {"labels.csv": "\n".join(["id,breed", *rows]), "sample.csv": "id\na0\n"})
    _, contents = found(root, fractions=(0.5, 0.2, 0.3))
    assert [len(contents[split]) for split in data.SPLITS] == [3, 1, 2]
    refused(root, r"labels\.csv: classes without a split; set data\.fractions")


@pytest.mark.parametrize("folders", ["{split}/{name}/", "{name}/"])
@pytest.mark.parametrize(
    "lists",
    [
        {
            "train.csv": "id,label\n0001,cat\n",
            "test.csv": "id\n0002\n",
            "sample_submission.csv": "id,label\n0002,cat\n",
        },
        {
            "train.csv": "filename,label\nx0.png,a\n",
            "val.csv": "filename,label\ny.png,b\n",
            "test.csv": "filename,label\nz.png,c\n",
        },
        {"train.csv": b"\x81\x00\xff", "classes.csv": "id,class\n0,a\n"},
        {"labels.csv": "image,label,split\nq.png,a,train\n"},
    ],
)
def test_tables_of_a_competition_do_not_block_class_folders(lists, folders, tmp_path):
    if "labels.csv" in lists and folders == "{name}/":
        pytest.skip("there the table says what the splits are")
    names = {n: [f"{folders.format(split=SPLIT_OF[n], name=n)}{i}.png" for i in range(EACH)] for n in SPLIT_OF}
    root = write(tmp_path, images(names) | lists)
    rule = splitting.Splitting(lists={s: list(WANTED[s]) for s in WANTED}).lists if folders == "{name}/" else None
    assert found(root, lists=rule)[1] == WANTED


def test_split_folders_with_a_table_in_each(tmp_path):
    files = {name: [f"{SPLIT_OF[name]}/{i}{name}.png" for i in range(EACH)] for name in SPLIT_OF}
    lists = {
        f"{split}/metadata.csv": "\n".join(
            ["file_name,label", *(f"{file.partition('/')[2]},{n}" for n in WANTED[split] for file in files[n])]
        )
        for split in data.SPLITS
    }
    assert found(write(tmp_path, images(files) | lists)) == ("images with CSV files", WANTED)


def test_mini_imagenets_files_in_one_folder(tmp_path):
    paper = facts.miniimagenet()
    names = {
        name: [f"images/{name}{number:08d}.jpg" for number in classes[name][:EACH]]
        for classes in paper.values()
        for name in sorted(classes)[:2]
    }
    root = write(tmp_path, images(names) | {"README.txt": "about"})
    wanted = {split: dict.fromkeys(sorted(classes)[:2], EACH) for split, classes in paper.items()}
    for name in ("miniimagenet", "folder"):
        assert found(root, name) == ("mini-ImageNet's images in one folder", wanted)
    assert found(root / "images", "miniimagenet")[1] == wanted
    assert list(found(root, fractions=(0, 0, 1))[1]) == ["test"]
    write(root, {"images/cat.jpg": PNG})
    refused(root, r"images/cat\.jpg: not named like mini-ImageNet's images; move it elsewhere")
    (root / "images" / "cat.jpg").rename(root / "images" / "n9999999900000001.jpg")
    refused(root, r"n9999999900000001\.jpg: n99999999 is not a class of mini-ImageNet; move it elsewhere")


@pytest.fixture
def birds(tmp_path):
    """CUB-200-2011's root: the lists call the files by number; there is more beside."""
    files = {name: [f"CUB_200_2011/images/{name}/{name[4:]}_{i}.jpg" for i in range(EACH)] for name in BIRDS}
    numbered = [(name, file.split("/", 2)[2]) for name in BIRDS for file in files[name]]
    lists = {
        "images.txt": "".join(f"{n} {file}\r\n" for n, (_, file) in enumerate(numbered, 1)),
        "image_class_labels.txt": "".join(f"{n} {BIRDS.index(name) + 1}\n" for n, (name, _) in enumerate(numbered, 1)),
        "classes.txt": "".join(f"{n} {name}\n" for n, name in enumerate(BIRDS, 1)),
        "train_test_split.txt": "1 0\n",
        "attributes/certainties.txt": "1 not visible\n",
        "parts/parts.txt": "1 back\n",
    }
    segmentations = {f"segmentations/{name}/{name[4:]}_0.png": PNG for name in BIRDS[:2]}
    lists = {f"CUB_200_2011/{name}": content for name, content in lists.items()}
    return write(tmp_path / "cub", images(files) | lists | segmentations | {"attributes.txt": "1 x\n"})


@pytest.mark.parametrize("name", ["cub", "folder"])
def test_cubs_root_is_read_by_its_lists(name, birds):
    for root in (birds, birds / "CUB_200_2011"):
        format, contents = found(root, name)
        assert format == "CUB-200-2011" and [len(contents[split]) for split in data.SPLITS] == [100, 50, 50]
        assert set(contents["train"].values()) == {EACH} and next(iter(contents["val"])) == BIRDS[1]
    assert len(found(birds, name, fractions=(0, 0, 1))[1]["test"]) == 200


@pytest.mark.parametrize(
    ("list_", "content", "message"),
    [
        (
            "images.txt",
            "1 001.Bird/none.jpg\n",
            r"images\.txt, image 1: there is no image 'images/001\.Bird/none\.jpg'",
        ),
        ("classes.txt", "1 001.Bird\n", r"image 3: image_class_labels\.txt and classes\.txt give it no class"),
        ("classes.txt", "<html>", r"classes\.txt: not a text but an HTML page"),
        ("image_class_labels.txt", "1\n", r"image_class_labels\.txt: not a list of numbers and names \('1'\)"),
    ],
)
def test_damaged_lists_of_cub(list_, content, message, birds):
    refused(write(birds, {f"CUB_200_2011/{list_}": content}), message)


@pytest.mark.parametrize("val", ["annotations", "class folders"])
def test_tiny_imagenet(val, tmp_path):
    names = [f"n0000000{i}" for i in range(5)]
    files = {n: [f"tiny-imagenet-200/train/{n}/images/{n}_{i}.JPEG" for i in range(EACH)] for n in names}
    more = [
        f"val/images/val_{i}.JPEG" if val == "annotations" else f"val/{n}/val_{i}.JPEG" for i, n in enumerate(names)
    ]
    rows = "".join(f"val_{i}.JPEG\t{n}\t0\t0\t9\t9\n" for i, n in enumerate(names))
    others = {f"train/{n}/{n}_boxes.txt": f"{n}_0.JPEG\t0\t0\t9\t9\n" for n in names} | {
        "wnids.txt": "\n".join(names), "words.txt": "n00000000\tentity", "val/val_annotations.txt": rows,
        "test/images/test_0.JPEG": PNG, **{file: data_layouts.png(PIXELS[50 + i, 0]) for i, file in enumerate(more)},
    }  # fmt: skip
    root = write(tmp_path, images(files) | {f"tiny-imagenet-200/{name}": content for name, content in others.items()})
    format, contents = found(root, fractions=(0.6, 0.2, 0.2))
    assert format.startswith("Tiny-ImageNet")
    assert {n: k for classes in contents.values() for n, k in classes.items()} == dict.fromkeys(names, EACH + 1)
    assert [len(contents[split]) for split in data.SPLITS] == [3, 1, 1]
    refused(root, r"tiny-imagenet-200: classes without a split; set data\.fractions")
    if val == "annotations":
        write(root, {"tiny-imagenet-200/val/val_annotations.txt": "val_0.JPEG\tn12345678\n"})
        refused(root, r"val_annotations\.txt, line 1: 'n12345678' is not a class of train/", fractions=(0, 0, 1))


def closer_look(prefix: str) -> dict[str, str]:
    lists = {}
    for split, name in zip(data.SPLITS, ("base", "val", "novel"), strict=True):
        pairs = [(file, list(SPLIT_OF).index(n)) for n in WANTED[split] for file in FILES[n]]
        held = {
            "label_names": list(SPLIT_OF),
            "image_names": [prefix + file for file, _ in pairs],
            "image_labels": [label for _, label in pairs],
        }
        lists[f"{name}.json"] = json.dumps(held)
    return lists


@pytest.mark.parametrize("prefix", ["/home/someone/CUB/", "C:\\Users\\Someone\\", "", "./"])
def test_json_lists_of_closer_look(prefix, tmp_path):
    root = write(tmp_path, images(FILES) | closer_look(prefix))
    assert found(root) == ("images with JSON lists", WANTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_labels": [0]}, r"novel\.json: 4 images but 1 labels; each image needs one"),
        ({"image_labels": [0, 0, 0, 6]}, r"novel\.json: label 6 of image 3 is out of range; there are 6 names"),
        ({"image_labels": [0, 0, 0, True]}, r"novel\.json: image_labels must be a list of int"),
        ({"image_names": ["a0.png", "q.png", "a0.png", "a0.png"]}, r"novel\.json, image 1: there is no image 'q\.png'"),
        ({"label_names": {}}, r"novel\.json: label_names must be a list of str"),
    ],
)
def test_damaged_json_lists(change, message, tmp_path):
    root = write(tmp_path, images(FILES) | closer_look(""))
    held = json.loads((root / "novel.json").read_text()) | change
    refused(write(root, {"novel.json": json.dumps(held)}), message)


def torchmeta(root: Path, form: str) -> Path:
    """mini-ImageNet's, tieredImageNet's or Omniglot's and CIFAR's files, of the classes of `SPLIT_OF`."""
    h5py = pytest.importorskip("h5py")
    root.mkdir(exist_ok=True)
    for split in data.SPLITS if form != "groups" else ():
        with h5py.File(root / f"{split}_data.hdf5", "w") as file:
            group = file.create_group("datasets")
            for label, name in enumerate(WANTED[split]):
                pixels = PIXELS[10 * data.SPLITS.index(split) + label, :EACH]
                if form == "arrays":
                    group.create_dataset(name, data=pixels)
                else:
                    encoded = group.create_dataset(name, (EACH,), dtype=h5py.vlen_dtype(np.uint8))
                    for i, image in enumerate(pixels):
                        encoded[i] = np.frombuffer(data_layouts.png(image), np.uint8)
        (root / f"{split}_labels.json").write_text(json.dumps(list(WANTED[split])))
    if form == "groups":
        with h5py.File(root / "data.hdf5", "w") as file:
            for label, name in enumerate(SPLIT_OF):
                file.create_group(f"super_{name}").create_dataset(name, data=PIXELS[label, :EACH], compression="gzip")
        for split in data.SPLITS:
            for folder in ("fc100", "cifar-fs"):
                kept = list(WANTED[split])[: 1 if folder == "fc100" else EACH]
                write(root, {f"{folder}/{split}_labels.json": json.dumps([[f"super_{n}", n] for n in kept])})
    return root


@pytest.mark.parametrize("form", ["arrays", "encoded"])
def test_torchmetas_hdf5(form, tmp_path):
    assert found(torchmeta(tmp_path / "d", form)) == ("HDF5 of torchmeta", WANTED)
    loaded = data.load("folder", str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))
    stored = {row.tobytes() for row in loaded.splits["val"].images}
    assert stored == {image.tobytes() for image in PIXELS[10:12, :EACH].reshape(-1, 32, 32, 3)}


def test_torchmetas_one_file_for_several_data_sets(tmp_path):
    root = torchmeta(tmp_path / "d", "groups")
    assert found(root, "cifar_fs")[1] == WANTED
    assert {split: list(classes) for split, classes in found(root, "fc100")[1].items()} == {
        "train": ["a"], "val": ["c"], "test": ["e"]
    }  # fmt: skip
    refused(root, r"has lists of classes in (fc100|cifar-fs) and in (fc100|cifar-fs); set data\.name to the one meant")


def test_hdf5_that_is_not_what_it_should_be(tmp_path):
    h5py = pytest.importorskip("h5py")
    root = torchmeta(tmp_path / "d", "arrays")
    path, held = root / "test_data.hdf5", h5py.h5s.UNLIMITED
    cases = {
        "link": lambda g: g.__setitem__("e", h5py.ExternalLink("/etc/passwd", "/x")),
        "external": lambda g: g.create_dataset("e", (2, 4, 4), np.uint8, external=[("x.raw", 0, held)]),
        "floats": lambda g: g.create_dataset("e", data=np.ones((2, 4, 4))),
        "empty": lambda g: g.create_dataset("e", (1 << 40, 84, 84, 3), np.uint8, chunks=(1, 84, 84, 3)),
        "missing": lambda g: None,
    }
    messages = {
        "link": "is a link; copy what it leads to",
        "external": "has no images in the file itself",
        "floats": r"is float64 \[2, 4, 4\]; expected uint8",
        "empty": r"says that it has \d+ bytes, and has 0",
        "missing": "class 'e' is not there",
    }
    for case, change in cases.items():
        with h5py.File(path, "w") as file:
            change(file.create_group("datasets"))
        refused(root, messages[case])
    path.write_bytes(b"<html>quota")
    refused(root, r"test_data\.hdf5: not a readable HDF5 file \(.*\) but an HTML page")


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    root = torchmeta(tmp_path / "d", "arrays")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    refused(root, r"d: HDF5 needs h5py, which is not installed; pip install h5py")


def test_hdf5_in_an_archive(tmp_path):
    root = torchmeta(tmp_path / "d", "arrays")
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        tar.add(root, "d")
    refused(tmp_path / "d.tar", r"d\.tar/d: HDF5 is not read from archives; unpack it and name the folder")

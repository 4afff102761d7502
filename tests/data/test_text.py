"""Text as other systems write it, names of splits and classes, paths of other machines."""

import json
import pickle
import unicodedata
import zipfile

import data_layouts
import numpy as np
import pytest

from mtl_jax import data
from mtl_jax.data.files import names, text
from mtl_jax.data.files.places import Places
from mtl_jax.data.sources import archives, find, splitting
from mtl_jax.errors import DataError

CLASSES = ("Müller", "café", "zoo", "elk", "fox", "owl")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")
NEWLINES = ("\n", "\r\n", "\r")


@pytest.fixture
def folders(tmp_path):
    """Six classes of four images, their folders called in the form of macOS."""
    pixels = data_layouts.pixels()
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "data" / unicodedata.normalize("NFD", name)
        folder.mkdir(parents=True)
        for i in range(4):
            (folder / f"{i}.png").write_bytes(data_layouts.png(pixels[label, i]))
    return tmp_path / "data"


def class_names(path, name: str = "folder", **options) -> dict[str, list[str]]:
    """Split -> class names of what is found at a path."""
    source = find.find(name, str(path), splitting.Splitting(**options))
    return {split: list(classes) for split, classes in source.read(path).items()}


@pytest.mark.parametrize("newline", NEWLINES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_is_read_whatever_wrote_it(encoding, newline):
    wanted = "Müller\ncafé\n"
    assert text.decode(wanted.replace("\n", newline).encode(encoding), "x").text == wanted


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b"a\x81b\xff",
            r"x\.txt: not text in Windows-1252 \(byte 1: character maps to <undefined>\); save it as UTF-8",
        ),
        (b"\xff\xfea\0b", r"x\.txt: not text in UTF-16-LE \(byte 4: truncated data\); save it as UTF-8"),
        (b"\xef\xbb\xbfa\xff", r"x\.txt: not text in UTF-8 \(byte 4: invalid start byte\); save it as UTF-8"),
        (b"a\x01b", r"x\.txt: not text in UTF-8 \(it has the character '\\x01'\)"),
        (b"<html>quota exceeded", r"x\.txt: not a text but an HTML page"),
        (b"PK\x03\x04\0\0\0\0", r"x\.txt: not a text but a zip archive, or a spreadsheet's own file; save it as CSV"),
    ],
)
def test_what_is_no_text_is_named_with_its_encoding(raw, message):
    with pytest.raises(DataError, match=message):
        text.decode(raw, "x.txt")


def test_a_text_has_a_bound(monkeypatch):
    monkeypatch.setattr(text, "MAX_BYTES", 3)
    with pytest.raises(DataError, match=r"x: 4 bytes are more than a list may have"):
        text.decode(b"abcd", "x")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["folder", "json"])
def test_lists_in_any_encoding_and_normal_form(kind, encoding, form, folders, tmp_path):
    lists = {"Train": CLASSES[:2], "validation": CLASSES[2:4], "TEST": CLASSES[4:]}
    if encoding == "cp1252" and form == "NFD":
        pytest.skip("no letter of Windows-1252 has its dots apart")
    if kind == "json":
        content = json.dumps(lists, ensure_ascii=False)
        (tmp_path / "lists.json").write_bytes(unicodedata.normalize(form, content).encode(encoding))
    for split, names_ in lists.items() if kind == "folder" else ():
        file = tmp_path / "lists" / f"{split}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(unicodedata.normalize(form, "\r\n".join(names_)).encode(encoding))
    read = splitting.read_lists(str(tmp_path / ("lists" if kind == "folder" else "lists.json")))
    assert class_names(folders, lists=read) == {
        "train": ["Müller", "café"], "val": ["elk", "zoo"], "test": ["fox", "owl"]
    }  # fmt: skip


def test_lists_that_cannot_be_used(folders, tmp_path):
    (tmp_path / "lists").mkdir()
    with pytest.raises(DataError, match=r"lists: not lists of classes \(there are none\); data\.lists must be"):
        splitting.read_lists(str(tmp_path / "lists"))
    (tmp_path / "lists" / "train.txt").write_bytes("Мюллер".encode("cp1251"))
    with pytest.raises(
        DataError, match=r"are missing, such as .* \(the list was read as Windows-1252; save it as UTF-8 if"
    ):
        class_names(folders, lists=splitting.read_lists(str(tmp_path / "lists")))
    (tmp_path / "lists" / "train.txt").write_bytes(b"\x81")
    with pytest.raises(DataError, match=r"train\.txt: not text in Windows-1252 \(byte 0: .*\); save it as UTF-8"):
        splitting.read_lists(str(tmp_path / "lists"))
    (tmp_path / "lists.json").write_text('{"train": "Müller"}')
    with pytest.raises(DataError, match=r"lists\.json: not lists of classes \('Müller' is not a list\)"):
        splitting.read_lists(str(tmp_path / "lists.json"))


def test_both_normal_forms_of_a_name_are_one_class(folders):
    (folders / "Müller").mkdir()
    (folders / "Müller" / "0.png").write_bytes(data_layouts.png(data_layouts.pixels()[9, 0]))
    source = find.find("folder", str(folders), splitting.Splitting(fractions=(0, 0, 1)))
    assert len(source.read(folders)["test"]["Müller"]) == 5
    with pytest.raises(DataError, match=r"x: two classes are called 'ü', in different Unicode forms; make them one"):
        names.normal(dict.fromkeys(["ü", unicodedata.normalize("NFD", "ü")]), "x")


def test_fractions_split_alike_on_every_system(folders, tmp_path):
    for folder in folders.iterdir():
        (tmp_path / "linux" / unicodedata.normalize("NFC", folder.name)).mkdir(parents=True)
        for file in folder.iterdir():
            (tmp_path / "linux" / unicodedata.normalize("NFC", folder.name) / file.name).write_bytes(file.read_bytes())
    rule = {"fractions": (0.4, 0.3, 0.3)}
    assert class_names(folders, **rule) == class_names(tmp_path / "linux", **rule)


SPELLINGS = {
    "train": ("train", "Train", "TRAINING", "meta-train", "meta_train", "metatrain", "train_set", "trainset", "train "),
    "val": ("val", "Val", "valid", "validation", "Validation", "dev", "meta-val", "meta_validation", "val_images"),
    "test": ("test", "Test", "testing", "meta-test", "Test Set", "test_classes", "Test Data", "meta_test_set"),
    None: ("tests", "vale", "trains", "protest", "cat", "base", "novel", ""),
}


@pytest.mark.parametrize(("split", "spelled"), [(s, n) for s, spelled in SPELLINGS.items() for n in spelled])
def test_split_names(split, spelled):
    assert names.split_of(spelled) == split
    assert names.split_of_file(f"a/mini-imagenet-cache-{spelled}.pkl") == (split or None)


def test_base_and_novel_are_splits_together_alone():
    assert names.splits_of(["base", "val", "Novel"]) == {"base": "train", "val": "val", "Novel": "test"}
    assert names.splits_of(["base_classes", "Novel Classes"]) == {"base_classes": "train", "Novel Classes": "test"}
    assert names.splits_of(["base", "treble"]) == {} and names.splits_of_files(["my-base"]) == {}
    assert names.splits_of_files(["my-base", "my_Novel"]) == {"my-base": "train", "my_Novel": "test"}


@pytest.mark.parametrize(
    "spelled", [("Train", "Val", "Test"), ("training", "validation", "testing"), ("base", "val", "novel")]
)
def test_split_folders_in_any_spelling(spelled, tmp_path):
    for label, split in enumerate(spelled):
        (tmp_path / "data" / split / f"c{label}").mkdir(parents=True)
        (tmp_path / "data" / split / f"c{label}" / "0.png").write_bytes(
            data_layouts.png(data_layouts.pixels()[label, 0])
        )
    assert class_names(tmp_path / "data") == {"train": ["c0"], "val": ["c1"], "test": ["c2"]}


@pytest.mark.parametrize("kind", ["pkl", "npz", "npy", "csv", "hdf5", "json", "txt"])
@pytest.mark.parametrize(
    "spelled",
    [("Train", "valid", "Test"), ("training", "validation", "TEST"), ("Base", "val", "novel"),
     ("train_set", "dev_set", "test_set")],
)  # fmt: skip
def test_split_files_in_any_spelling(spelled, kind, tmp_path):
    pixels = data_layouts.pixels()
    (tmp_path / "images").mkdir()
    for label, split in enumerate(spelled):
        held = {"images": pixels[label], "labels": [f"c{label}"] * 6}
        if kind == "pkl":
            (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(held))
        elif kind == "npz":
            np.savez(tmp_path / f"{split}.npz", **held)
        elif kind == "npy":
            for part, array in held.items():
                np.save(tmp_path / f"{split}_{part}.npy", array)
        elif kind == "hdf5":
            h5py = pytest.importorskip("h5py")
            with h5py.File(tmp_path / f"{split}_data.hdf5", "w") as file:
                file.create_group("datasets").create_dataset(f"c{label}", data=pixels[label])
            (tmp_path / f"{split}_labels.json").write_text(json.dumps([f"c{label}"]))
        elif kind == "txt":
            (tmp_path / "data" / f"c{label}").mkdir(parents=True)
            (tmp_path / "data" / f"c{label}" / "0.png").write_bytes(data_layouts.png(pixels[label, 0]))
            (tmp_path / f"{split}.txt").write_text(f"c{label}\n")
        elif kind == "json":
            (tmp_path / "images" / f"{label}.png").write_bytes(data_layouts.png(pixels[label, 0]))
            lists = {"label_names": [f"c{label}"], "image_names": [f"{label}.png"], "image_labels": [0]}
            (tmp_path / f"{split}.json").write_text(json.dumps(lists))
        else:
            (tmp_path / "images" / f"{label}.png").write_bytes(data_layouts.png(pixels[label, 0]))
            (tmp_path / f"{split}.csv").write_text(f"filename,label\n{label}.png,c{label}\n")
    lists = splitting.read_lists(str(tmp_path)) if kind == "txt" else None
    found = class_names(tmp_path / "data" if kind == "txt" else tmp_path, lists=lists)
    assert found == {"train": ["c0"], "val": ["c1"], "test": ["c2"]}


TABLES = {
    "comma": "filename,label\na.png,Müller\nb.png,zoo\n",
    "other order": "label,filename\nMüller,a.png\nzoo,b.png\n",
    "index of pandas": ",filename,label\n0,a.png,Müller\n1,b.png,zoo\n",
    "index with a name": "Unnamed: 0,label,size,filename\n0,Müller,12,a.png\n1,zoo,9,b.png\n",
    "more fields than names": "filename, label, concept\na.png,Müller,6,12\nb.png,zoo,6,1,1\n",
    "semicolons": "filename;label\na.png;Müller\nb.png;zoo\n",
    "tabs": "filename\tlabel\na.png\tMüller\nb.png\tzoo\n",
    "sep": "sep=;\nfilename;label\na.png;Müller\nb.png;zoo\n",
    "quotes": '"filename","label"\n"a.png","Müller"\n"b.png","zoo"\n',
    "backslashes": "filename,label\nimages\\a.png,Müller\n.\\images\\b.png,zoo\n",
    "another machine": "filename,label\nC:\\Users\\Ä\\images\\a.png,Müller\n/home/me/data/images/b.png,zoo\n",
    "other words": "Image Name,Class\na.png,Müller\nb.png,zoo\n",
    "without suffix": "id,breed\na,Müller\nb,zoo\n",
    "other case": "filename,label\nA.PNG,Müller\nb.png,zoo\n",
    "bars": "filename|label\na.png|Müller\nb.png|zoo\n",
    "spaces before quotes": 'filename, label\n"a.png", "Müller"\n"b.png", "zoo"\n',
    "other marks in quotes": 'filename;label;"x, y, z"\na.png;Müller;1\nb.png;zoo;2\n',
    "empty lines first": "\n\nfilename;label\na.png;Müller\nb.png;zoo\n",
    "number of the class as well": "id,filename,class_id,class_name\n0,a.png,7,Müller\n1,b.png,8,zoo\n",
    "wnid": "Filename,WNID\na.png,Müller\nb.png,zoo\n",
    "empty lines": "filename,label\n\na.png,Müller\n,\nb.png,zoo\n\n\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("table", TABLES)
def test_csv_as_programs_write_it(table, encoding, tmp_path):
    (tmp_path / "images").mkdir()
    for i, name in enumerate("ab"):
        (tmp_path / "images" / f"{name}.png").write_bytes(data_layouts.png(data_layouts.pixels()[i, 0]))
    (tmp_path / "test.csv").write_bytes(TABLES[table].replace("\n", "\r\n").encode(encoding))
    contents = find.find("folder", str(tmp_path), splitting.Splitting()).read(tmp_path)
    assert {name: images.name(0) for name, images in contents["test"].items()} == {
        "Müller": "images/a.png", "zoo": "images/b.png"
    }  # fmt: skip


def test_paths_of_other_machines_are_matched_by_their_ends():
    places = Places(["CUB/images/001.A/x.jpg", "CUB/images/002.B/x.jpg", "CUB/seg/001.A/x.jpg", "y/Ü.png"])
    assert places.find("/home/me/CUB_200_2011/images/001.A/x.jpg") == ["CUB/images/001.A/x.jpg"]
    assert places.find("D:\\CUB\\images\\002.B\\x.jpg") == ["CUB/images/002.B/x.jpg"]
    assert len(places.find("x.jpg")) == 3 and places.find("../../etc/passwd") == []
    assert places.find(unicodedata.normalize("NFD", "y/Ü.png")) == ["y/Ü.png"]
    assert places.find("IMAGES/002.b/X.JPG") == ["CUB/images/002.B/x.jpg"]


def test_zips_with_backslashes_and_entries_for_folders(tmp_path):
    png = data_layouts.png(data_layouts.pixels()[0, 0])
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("test\\", b"")
        archive.writestr("test\\cat\\", b"")
        archive.writestr("test\\cat\\0.png", png)
        folder = zipfile.ZipInfo("test\\dog")
        folder.external_attr = archives.FOLDER
        archive.writestr(folder, b"")
        archive.writestr("test\\dog\\0.png", png)
    tree = archives.open_tree(tmp_path / "data.zip")
    assert tree.files == ("test/cat/0.png", "test/dog/0.png") and tree.read("test/cat/0.png") == png
    assert class_names(tmp_path / "data.zip") == {"test": ["cat", "dog"]}


def test_names_in_a_zip_without_the_flag_of_utf8(tmp_path):
    png = data_layouts.png(data_layouts.pixels()[0, 0])
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("test/Mxxller/0.png", png)
        archive.writestr("test/elk/0.png", png)
    raw = (tmp_path / "data.zip").read_bytes().replace(b"Mxxller", "Müller".encode())
    (tmp_path / "data.zip").write_bytes(raw)
    assert class_names(tmp_path / "data.zip") == {"test": ["Müller", "elk"]}


def test_loading_gives_names_in_one_form(folders, tmp_path):
    found = data.load("folder", str(folders), fractions=(0, 0, 1), cache_dir=str(tmp_path / "cache"))
    assert found.splits["test"].class_names == tuple(sorted(CLASSES))

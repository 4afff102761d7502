"""The same images give the same data set, whatever the format; and the splits are the papers'."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import data_layouts
import numpy as np
import pytest

from mtl_jax import data
from mtl_jax.data import facts
from mtl_jax.data.sources import array_files, safe_pickle
from mtl_jax.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    data_layouts.class_folders(root / "data", data_layouts.pixels(), "fc100")
    return data.load("fc100", str(root / "data"), cache_dir=str(root / "cache"))


def assert_same(one: data.Dataset, other: data.Dataset) -> None:
    assert one.fingerprint == other.fingerprint
    assert set(one.splits) == set(other.splits)
    for name, split in one.splits.items():
        assert split.class_names == other.splits[name].class_names
        np.testing.assert_array_equal(split.labels, other.splits[name].labels)
        np.testing.assert_array_equal(split.images, other.splits[name].images)
        np.testing.assert_array_equal(split.digests, other.splits[name].digests)


@pytest.mark.parametrize("layout", data_layouts.LAYOUTS)
def test_every_layout_gives_the_same_arrays(layout, reference, tmp_path):
    data_layouts.LAYOUTS[layout](tmp_path / "data", data_layouts.pixels(), "fc100")
    found = data.load("fc100", str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert_same(reference, found)
    assert [len(found.splits[split].class_names) for split in data.SPLITS] == [60, 20, 20]


def test_same_arrays_mean_same_episodes(reference, tmp_path):
    import jax

    from mtl_jax import episodes

    data_layouts.compressed_npz(tmp_path / "data", data_layouts.pixels(), "fc100")
    other = data.load("fc100", str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    key = jax.random.key(3)
    for name in data.SPLITS:
        drawn = [
            split.images[np.asarray(episodes.sample_episode(key, split.table(), way=5, shot=1, query=3)[1])]
            for split in (reference.splits[name], other.splits[name])
        ]
        np.testing.assert_array_equal(*drawn)


def pack_tar(source: Path, target: Path) -> None:
    with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as tar:
        tar.add(source, arcname="FC100-images")


def pack_zip(source: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in source.rglob("*"):
            archive.write(file, file.relative_to(source))


@pytest.mark.parametrize("layout", ["class folders", "CSV", "class_dict", "one folder of classes", "cifar-100-python"])
def test_folders_around_the_data_are_seen_through(layout, reference, tmp_path):
    (tmp_path / "outer" / "FC100").mkdir(parents=True)
    data_layouts.LAYOUTS[layout](tmp_path / "outer" / "FC100" / "data", data_layouts.pixels(), "fc100")
    (tmp_path / "outer" / ".DS_Store").write_bytes(b"junk")
    assert_same(reference, data.load("fc100", str(tmp_path / "outer"), cache_dir=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    ("layout", "archive", "pack"),
    [
        ("class folders", "data.tar", pack_tar),
        ("class folders", "data.zip", pack_zip),
        ("CSV", "data.tar.gz", pack_tar),
        ("cifar-100-python", "cifar-100-python.tar.gz", pack_tar),
    ],
)
def test_archives_are_read_in_place(layout, archive, pack, reference, tmp_path):
    data_layouts.LAYOUTS[layout](tmp_path / "data", data_layouts.pixels(), "fc100")
    pack(tmp_path / "data", tmp_path / archive)
    assert_same(reference, data.load("fc100", str(tmp_path / archive), cache_dir=str(tmp_path / "cache")))


def test_split_has_its_facts(reference):
    split = reference.splits["val"]
    assert split.images.dtype == np.uint8 and split.images.shape == (120, 32, 32, 3)
    assert not split.images.flags.writeable
    assert split.labels.dtype == np.int32 and np.all(np.diff(split.labels) >= 0)
    assert split.class_names == tuple(sorted(split.class_names))
    table = split.table()
    assert table.indices.dtype == np.int32 and table.counts.tolist() == [data_layouts.IMAGES] * 20
    np.testing.assert_array_equal(split.labels[table.indices], np.repeat(np.arange(20), 6).reshape(20, 6))
    for rows in table.indices:
        assert [bytes(d) for d in split.digests[rows]] == sorted(bytes(d) for d in split.digests[rows])
    assert split.file_names[0].decode().startswith(f"val/{split.class_names[0]}/")


def test_table_pads_classes_of_unequal_size(tmp_path):
    images = data_layouts.pixels()
    for label, count in enumerate((3, 1, 2)):
        (tmp_path / "data" / "test" / f"c{label}").mkdir(parents=True)
        for i in range(count):
            place = tmp_path / "data" / "test" / f"c{label}" / f"{i}.png"
            place.write_bytes(data_layouts.png(images[label, i]))
    found = data.load("folder", str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert set(found.splits) == {"test"}
    assert found.splits["test"].table().indices.tolist() == [[0, 1, 2], [3, -1, -1], [4, 5, -1]]


def test_published_splits():
    assert {s: len(c) for s, c in facts.class_splits("fc100").items()} == {"train": 60, "val": 20, "test": 20}
    assert {s: len(c) for s, c in facts.class_splits("cifar_fs").items()} == {"train": 64, "val": 16, "test": 20}
    assert {s: len(c) for s, c in facts.class_splits("miniimagenet").items()} == {"train": 64, "val": 16, "test": 20}
    assert {s: len(c) for s, c in facts.class_splits("tieredimagenet").items()} == {
        "train": 351,
        "val": 97,
        "test": 160,
    }
    assert facts.fc100_superclasses()["test"] == ["aquatic_mammals", "insects", "medium_mammals", "people"]
    for name in ("fc100", "cifar_fs", "miniimagenet", "tieredimagenet"):
        classes = [c for names in facts.class_splits(name).values() for c in names]
        assert len(classes) == len(set(classes))
    for classes in facts.miniimagenet().values():
        assert all(len(set(numbers)) == 600 and min(numbers) >= 1 for numbers in classes.values())


def test_fractions_split_classes_and_lists_too(tmp_path):
    data_layouts.flat_classes(tmp_path / "data", data_layouts.pixels(), "")
    options = {"cache_dir": str(tmp_path / "cache")}
    found = data.load("folder", str(tmp_path / "data"), fractions=(0.5, 0.2, 0.3), **options)
    assert [len(found.splits[s].class_names) for s in data.SPLITS] == [50, 20, 30]
    assert sorted(n for s in found.splits.values() for n in s.class_names) == list(data_layouts.NAMES)
    other = data.load("folder", str(tmp_path / "data"), fractions=(0.5, 0.2, 0.3), split_seed=1, **options)
    assert other.splits["test"].class_names != found.splits["test"].class_names
    only = data.load("folder", str(tmp_path / "data"), fractions=(0, 0, 1), **options)
    assert set(only.splits) == {"test"} and len(only.splits["test"].class_names) == 100
    (tmp_path / "lists").mkdir()
    for split, names in (("train", ["bear", "apple"]), ("val", ["bee"]), ("test", ["fox"])):
        (tmp_path / "lists" / f"{split}.txt").write_text("\n".join(names) + "\n")
    listed = data.load("folder", str(tmp_path / "data"), lists=str(tmp_path / "lists"), **options)
    assert {s: split.class_names for s, split in listed.splits.items()} == {
        "train": ("apple", "bear"),
        "val": ("bee",),
        "test": ("fox",),
    }


def test_a_single_npz_is_split_too(tmp_path):
    images = data_layouts.pixels()[:5].reshape(-1, 32, 32, 3)
    np.savez(tmp_path / "all.npz", images=images, labels=np.repeat(np.arange(5), data_layouts.IMAGES))
    found = data.load("folder", str(tmp_path / "all.npz"), fractions=(0.6, 0.2, 0.2), cache_dir=str(tmp_path / "cache"))
    names = sorted(n for s in found.splits.values() for n in s.class_names)
    assert names == ["000", "001", "002", "003", "004"]


def test_stored_npz_members_are_mapped_where_they_lie(tmp_path):
    images = data_layouts.pixels()[0]
    for name, array in (("c", images), ("f", np.asfortranarray(images)), ("empty", images[:0])):
        np.savez(tmp_path / f"{name}.npz", first=np.arange(3), images=array)
        held = array_files.open_file(tmp_path / f"{name}.npz", tmp_path)
        np.testing.assert_array_equal(held["images"], array)
        assert isinstance(held["images"], np.memmap) or name == "empty"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.npz", "empty.npz", "f.npz"]


def test_omniglot_layout_and_rotations(tmp_path):
    from mtl_jax.data.sources.class_folders import OMNIGLOT_VAL

    rng = np.random.default_rng(0)
    for part, alphabets in (("images_background", ("Latin", *OMNIGLOT_VAL)), ("images_evaluation", ("Tengwar",))):
        for alphabet in alphabets:
            folder = tmp_path / "data" / part / alphabet / "character01"
            folder.mkdir(parents=True)
            for i in range(2):
                (folder / f"{i}.png").write_bytes(data_layouts.png(rng.integers(0, 2, (28, 28)) > 0))
    plain = data.load("omniglot", str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert plain.splits["train"].class_names == ("Latin/character01",)
    assert plain.splits["val"].class_names == tuple(f"{name}/character01" for name in sorted(OMNIGLOT_VAL))
    assert plain.splits["test"].class_names == ("Tengwar/character01",)
    assert set(np.unique(plain.splits["train"].images)) == {0, 255}
    turned = data.load("omniglot", str(tmp_path / "data"), rotations=True, cache_dir=str(tmp_path / "cache"))
    names = tuple(f"Latin/character01{turn}" for turn in ("", "/090", "/180", "/270"))
    train = turned.splits["train"]
    assert train.class_names == names and len(turned.splits["test"].class_names) == 1
    upright = {train.file_names[i]: train.images[i] for i in range(2)}
    for i in range(2, 8):
        turns = train.labels[i]
        np.testing.assert_array_equal(train.images[i], np.rot90(upright[train.file_names[i]], turns))


def test_python_2_pickles(reference, tmp_path):
    """Python 2 wrote str where arrays have their bytes; written here by hand, as it did, in protocol 0."""
    (tmp_path / "data").mkdir()
    for split, labels in data_layouts.splits("fc100").items():
        images, targets = data_layouts.interleaved(data_layouts.pixels(), labels)
        (tmp_path / "data" / f"FC100_{split}.pickle").write_bytes(python2_pickle(images, targets))
    assert_same(reference, data.load("fc100", str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")))


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    out = io.BytesIO()
    out.write(b"\x80\x02}(U\x04data")
    out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(")
    for side in images.shape:
        out.write(b"M" + side.to_bytes(2, "little"))
    out.write(b"tcnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T")
    raw = images.tobytes()
    out.write(len(raw).to_bytes(4, "little") + raw + b"tb")
    out.write(b"U\x06labels](")
    for label in labels:
        out.write(b"K" + bytes([label]))
    out.write(b"eu.")
    return out.getvalue()


class Danger:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_run_no_code(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.pkl").write_bytes(pickle.dumps({"images": Danger(), "labels": []}, protocol))
    with pytest.raises(DataError, match=r"train\.pkl: the pickle asks for \S+, which is not data and might run code"):
        array_files.open_file(tmp_path / "train.pkl", tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_plain_data_pass(protocol, tmp_path):
    held = {
        "array": np.arange(6, dtype=">i2").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "names": np.array(["a", "bc"]),
        "objects": np.array([b"png", None], object),
        "bytes": np.array([b"a", b"bcd"]),
        "big scalar": np.array(7, ">i8")[()],
        "scalar": np.float32(2.5),
        "plain": [1, 2.5, None, True, "text", b"bytes", (1, {"nested": 2})],
        "empty": np.zeros((0, 3), np.uint8),
    }
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(held, protocol))
    found = array_files.open_file(tmp_path / "train.pkl", tmp_path)
    for name, value in held.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), "asks for the dtype 'V12'"),
        (np.zeros(2, "M8[s]"), r"asks for the dtype 'M8'"),
        (np.zeros(2).view(np.recarray), r"asks for numpy.*recarray"),
        ({1: frozenset()}, r"asks for builtins\.frozenset|frozenset"),
        (complex, r"asks for \w+\.complex"),
    ],
)
def test_unusual_pickles_are_refused_by_name(held, message, tmp_path):
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(held, 2))
    with pytest.raises(DataError, match=message):
        array_files.open_file(tmp_path / "train.pkl", tmp_path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_damaged_pickles_end_in_one_line(protocol):
    """Whatever bytes are exchanged: it loads, or it is refused; nothing else happens."""
    held = {
        "images": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "labels": [1, 2],
        "names": np.array(["a", "b"], object),
    }
    whole = pickle.dumps(held, protocol)
    rng = np.random.default_rng(protocol)
    refused = 0
    for _ in range(2000):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[place] = rng.integers(256)
        try:
            safe_pickle.loads(bytes(raw), "here.pkl")
        except DataError as error:
            refused += 1
            assert str(error).startswith("here.pkl: ") and "\n" not in str(error)
    assert 200 < refused < 2000


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    if not SHARED.exists():
        pytest.skip("../shared/data with the real data sets is missing")
    import subprocess
    import sys

    root = tmp_path_factory.mktemp("shared")

    def unpack(name: str) -> Path:
        if not (root / name).exists():
            subprocess.run([sys.executable, str(SHARED / "unpack.py"), name, str(root / name)], check=True)
        return root / name

    return unpack


def test_real_cifar100(shared, tmp_path):
    place = str(shared("cifar100"))
    known = facts.known_fingerprints()
    for name, counts in (("fc100", [60, 20, 20]), ("cifar_fs", [64, 16, 20])):
        found = data.load(name, place, cache_dir=str(tmp_path))
        assert [len(found.splits[split].class_names) for split in data.SPLITS] == counts
        assert all(set(split.counts) == {600} for split in found.splits.values())
        assert known[found.fingerprint].startswith({"fc100": "FC100", "cifar_fs": "CIFAR-FS"}[name])

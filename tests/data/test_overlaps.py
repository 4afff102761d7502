"""Classes and images in two splits or twice in one: refused, let through with a caveat, or published so."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from mtl_jax.configs import folder
from PIL import Image
from tiny_runs import tiny_run  # noqa: F401, a fixture

from mtl_jax import config, data, episodes, evaluate, train
from mtl_jax.config import build
from mtl_jax.data import __main__ as program
from mtl_jax.data import facts, overlaps
from mtl_jax.data.cache import reader
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluate import __main__ as evaluate_main
from mtl_jax.report import __main__ as report_main

EACH = 8  # images a class
CAVEATS = {
    "shared_classes": "1 class is in more than one split (class 'train0' is in train and in test)",
    "shared_images": "1 image is in more than one split "
    "(test/test0/x.png: the same image as train/train0/0.png in train)",
    "repeated_images": "2 images occur twice in a split (test/test",
}


def write(root: Path, classes: int = 3) -> Path:
    """Class folders of noise, all images different."""
    rng = np.random.default_rng(0)
    for split in data.SPLITS:
        for c in range(classes):
            (root / split / f"{split}{c}").mkdir(parents=True)
            for k in range(EACH):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / split / f"{split}{c}/{k}.png")
    return root


def share_a_class(root: Path) -> None:
    (root / "test" / "test0").rename(root / "test" / "train0")


def share_an_image(root: Path) -> None:
    shutil.copy(root / "train/train0/0.png", root / "test/test0/x.png")


def repeat_images(root: Path) -> None:
    """One in its class, one in another class of the split; not by its bytes, but by its pixels."""
    Image.open(root / "test/test0/0.png").save(root / "test/test0/x.bmp")
    shutil.copy(root / "test/test1/1.png", root / "test/test2/x.png")


FAULTS = {"shared_classes": share_a_class, "shared_images": share_an_image, "repeated_images": repeat_images}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(reader.VARIABLE, str(tmp_path / "cache"))
    return write(tmp_path / "data")


@pytest.fixture(params=FAULTS)
def fault(request, root):
    """A kind of fault, which the data in `root` have."""
    FAULTS[request.param](root)
    return request.param


def settings(root: Path) -> ConfigDict:
    found = folder.get_config("conv4,1shot")
    found.data.path = str(root)
    found.meta.update({"way": 3, "query": 2})
    found.evaluate.query = 2
    found.data.update({"image_size": 8, "resize": 8, "crop": 0})
    found.pretrain.augment.resized_crop = 8
    return found


def test_every_way_to_a_figure_refuses(fault, root, capsys):
    with pytest.raises(DataError) as error:
        data.load("folder", str(root))
    assert str(error.value).startswith(f"{root}: {CAVEATS[fault]}") and f"data.allow={fault})" in str(error.value)
    assert program.main(["prepare", "folder", str(root)]) == 2
    assert f"--allow={fault}" in capsys.readouterr().err
    for make in (train.run.dry_run, evaluate.evaluate):
        with pytest.raises(DataError, match=f"allow={fault}"):
            make(settings(root), str(root / "none"))


def test_one_option_lets_it_through_and_it_is_said(fault, root, capsys, caplog):
    assert program.main(["prepare", "folder", str(root), f"--allow={fault}"]) == 0
    assert f"let through: {CAVEATS[fault]}" in capsys.readouterr().out
    found = settings(root)
    found.data.allow = fault
    train.run.dry_run(found, str(root / "none"))
    assert f"allowed by data.allow: {CAVEATS[fault]}" in caplog.text
    (caveat,) = build.dataset(found.data).caveats
    assert caveat.startswith(CAVEATS[fault])
    others = ",".join(kind for kind in FAULTS if kind != fault)
    with pytest.raises(DataError, match=f"allow={fault}"):
        data.load("folder", str(root), allow=others)


def test_check_lists_it_and_takes_the_option(fault, root, capsys):
    words = ["check", "folder", str(root), "--way=3", "--shot=1", "--query=2"]
    assert program.main(words) == 2
    assert capsys.readouterr().out.count("problem: ") == (2 if fault == "repeated_images" else 1)
    assert program.main([*words, f"--allow={fault}"]) == 0
    assert f"(allowed by --allow={fault})" in capsys.readouterr().out


def test_an_unknown_kind_is_named(root):
    with pytest.raises(DataError, match=r"data\.allow: 'copies' is unknown; it is one or more of shared_classes,"):
        data.load("folder", str(root), allow="shared_images,copies")
    found = settings(root)
    found.data.allow = "copies"
    with pytest.raises(ConfigError, match=r"config\.data\.allow: 'copies' is unknown"):
        config.validate(found)


def test_support_and_query_share_no_pixels_where_copies_are_let_through(root):
    for c in range(3):
        for k in range(0, EACH, 2):
            shutil.copy(root / f"test/test{c}/{k}.png", root / f"test/test{(c + k // 2) % 3}/copy of {k} from {c}.png")
    test = data.load("folder", str(root), allow="repeated_images").splits["test"]
    table = test.table()
    assert len(test.images) == 3 * EACH + 12 and table.counts.sum() == 3 * EACH
    drawn = np.sort(table.indices[table.indices >= 0])
    assert len(set(map(bytes, test.digests[drawn]))) == 3 * EACH
    for number in range(20):
        key = jax.random.fold_in(jax.random.key(0), number)
        sizes = {"way": 3, "shot": 3, "query": int(table.counts.min()) - 3}
        parts = episodes.sample_episode(key, table, **sizes)
        support, query = ({bytes(test.digests[i]) for i in np.ravel(part)} for part in parts)
        assert not support & query


def test_without_copies_the_table_is_that_of_all_images(root):
    test = data.load("folder", str(root)).splits["test"]
    table = test.table()
    np.testing.assert_array_equal(table.indices, np.arange(3 * EACH).reshape(3, EACH))
    assert table.counts.tolist() == [EACH] * 3 and table.indices.dtype == table.counts.dtype == np.int32


def test_the_facts_are_found_once_and_kept(fault, root, monkeypatch):
    first = data.load("folder", str(root), allow=fault)
    index = Path(first.cache) / "index.json"
    kept = json.loads(index.read_text())
    assert list(kept["overlaps"]) == [fault]
    without = {key: value for key, value in kept.items() if key != "overlaps"}
    index.write_text(json.dumps(without))  # as a version has left it that did not look
    with pytest.raises(DataError, match=f"allow={fault}"):
        data.load("folder", str(root))
    assert json.loads(index.read_text()) == kept
    monkeypatch.setattr(overlaps, "find", lambda *args: pytest.fail("found again"))
    assert data.load("folder", str(root), allow=fault).caveats == first.caveats


def test_a_cache_that_cannot_be_written_to_is_read(root, monkeypatch):
    place = Path(data.load("folder", str(root)).cache) / "index.json"
    without = {key: value for key, value in json.loads(place.read_text()).items() if key != "overlaps"}
    place.write_text(json.dumps(without))

    def refuse(folder, index):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reader, "write_index", refuse)
    assert data.load("folder", str(root)).overlaps == {}


def publish(monkeypatch, root: Path) -> None:
    known = {data.load("folder", str(root), allow=",".join(FAULTS)).fingerprint: "a paper's"}
    monkeypatch.setattr(facts, "known_fingerprints", lambda: known)


@pytest.mark.parametrize("rotations", [False, True])
def test_a_published_set_with_copies_gives_the_tasks_that_it_gave(rotations, root, monkeypatch):
    repeat_images(root)
    share_an_image(root)
    publish(monkeypatch, root)
    found = data.load("folder", str(root), rotations=rotations)
    assert found.caveats == ()
    for split in found.splits.values():
        assert split.table().counts.tolist() == split.counts.tolist()


def test_a_turned_image_that_looks_the_same_is_no_fault_and_is_drawn_once(root):
    Image.new("RGB", (8, 8), "red").save(root / "train/train0/red.png")
    found = data.load("folder", str(root), rotations=True)
    train_split = found.splits["train"]
    assert found.overlaps == {} and found.caveats == ()
    names = [train_split.class_names[c] for c in np.flatnonzero(train_split.table().counts != train_split.counts)]
    assert names == ["train0/090", "train0/180", "train0/270"]


@pytest.mark.parametrize(
    ("name", "class_name", "size", "right"),
    [
        ("fc100", "apple", 600, True), ("fc100", "apple", 599, False), ("miniimagenet", "n01532829", 600, True),
        ("omniglot", "Greek/character01", 20, True),
        ("tieredimagenet", "n04429376", 976, True), ("tieredimagenet", "n04429376", 1300, False),
        ("tieredimagenet", "017", 976, True), ("tieredimagenet", "017", 977, True), ("tieredimagenet", "017", 1, False),
        ("folder", "apple", 600, False), ("glyphs", "A", 20, False),
    ],
)  # fmt: skip
def test_published_sizes(name, class_name, size, right):
    assert facts.is_published_size(name, class_name, size) == right


def classes(count: int, copies: int, files=lambda c, i: "") -> overlaps.Classes:
    """Classes of 600 images each in one split; the first `copies` images of the first class are the same."""
    digests = np.zeros((count, 600, 16), np.uint8)
    digests[..., :4] = np.arange(count * 600, dtype=np.uint32).view(np.uint8).reshape(count, 600, 4)
    digests[0, :copies] = 255
    return {
        "test": {
            f"c{c}": overlaps.ClassImages(digests[c], str, lambda i, c=c: files(c, i)) for c in range(count)
        }
    }  # fmt: skip


@pytest.mark.parametrize(("name", "copies", "right"), [("fc100", 7, True), ("fc100", 20, False), ("folder", 7, False)])
def test_another_form_of_a_published_set_is_known_by_its_sizes_if_copies_are_few(name, copies, right):
    split = classes(2, copies)
    assert overlaps.is_published(name, ".npz files", split, overlaps.find(split, ".npz files")) == right


def test_mini_imagenet_is_known_by_file_names_that_are_there_once():
    lists = [(c, numbers) for found in facts.miniimagenet().values() for c, numbers in found.items()]

    def named(twice: bool) -> overlaps.Classes:
        full = classes(2, 3, lambda c, i: f"{lists[c][0]}{lists[c][1][0 if twice and i == 1 else i]:08d}.jpg")
        return {"test": {name: images._replace(digests=images.digests[:590]) for name, images in full["test"].items()}}

    for twice in (False, True):
        split = named(twice)
        found = overlaps.find(split, "class folders")
        assert overlaps.is_published("miniimagenet", "class folders", split, found) is not twice


def test_the_files_of_ilsvrc_are_published_whatever_copies_they_have():
    split = classes(2, 300)
    assert overlaps.is_published("tieredimagenet", "ILSVRC2012 train tar", split, overlaps.find(split, ""))


def save_arrays(place: Path, **more) -> None:
    place.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3), ("test", 3)):
        images = rng.integers(0, 256, (count * 4, 8, 8, 3), np.uint8)
        np.savez(place / f"{split}.npz", images=images, labels=np.repeat(np.arange(count), 4), **more)


def test_numbers_as_labels_of_two_files_are_no_class_names(root, tmp_path, capsys):
    save_arrays(tmp_path / "numbers")
    assert program.main(["check", "folder", str(tmp_path / "numbers"), "--way=3", "--shot=1", "--query=2"]) == 0
    assert data.load("folder", str(tmp_path / "numbers")).overlaps == {}
    save_arrays(tmp_path / "names", class_names=["cat", "dog", "cow", "pig"])
    with pytest.raises(DataError, match="3 classes are in more than one split"):
        data.load("folder", str(tmp_path / "names"))
    (root / "val" / "val0").rename(root / "val" / "007")
    (root / "test" / "test0").rename(root / "test" / "007")
    with pytest.raises(DataError, match="class '007' is in val and in test"):  # a folder's name is one
        data.load("folder", str(root))


def test_numbers_in_csv_files_are_no_class_names_either(root):
    for split in data.SPLITS:
        rows = [f"{split}/{split}{c}/{k}.png,{c}" for c in range(3) for k in range(EACH)]
        (root / f"{split}.csv").write_text("\n".join(["filename,label", *rows]))
    assert data.load("folder", str(root)).overlaps == {}


@pytest.fixture
def let_through(tiny_run, tmp_path, monkeypatch):  # noqa: F811
    """A run whose data have a caveat."""
    shutil.copytree(tiny_run, tmp_path / "run")
    load = build.dataset
    monkeypatch.setattr(
        build, "dataset", lambda *args, **kw: dataclasses.replace(load(*args, **kw), caveats=("Beware",))
    )
    return tmp_path / "run"


def test_a_figure_carries_its_caveats_everywhere(let_through, tmp_path, capsys):
    assert evaluate_main.main(["evaluate.py", f"--workdir={let_through}"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("; caveat: Beware")
    assert json.loads((let_through / "evaluation" / "test.json").read_text())["caveats"] == ["Beware"]
    assert report_main.main(["", str(let_through), "--num_tasks=5"]) == 0
    assert "; caveat: Beware" in capsys.readouterr().out
    assert "; caveat: Beware" in (let_through / "report" / "index.html").read_text()
    shutil.copytree(let_through, tmp_path / "other")
    words = [str(let_through), str(tmp_path / "other"), "--num_tasks=5", f"--output={tmp_path / 'both'}"]
    assert report_main.main(["", *words]) == 0
    assert capsys.readouterr().out.count("; caveat: Beware") == 2
    assert (tmp_path / "both" / "index.html").read_text().count("caveat: Beware") == 2


def test_a_figure_without_caveats_says_so(tiny_run, capsys):  # noqa: F811
    result = evaluate.evaluate(config.read(Path(tiny_run) / "config.json"), str(tiny_run))
    assert result["caveats"] == [] and "caveat" not in evaluate.describe(result)
